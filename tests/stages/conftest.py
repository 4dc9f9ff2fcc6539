"""What the tests of several stages share."""

import pytest

from tests.helpers.classroom import Classroom, enrolled


@pytest.fixture(scope="session")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Classroom:
    """Images, some without a label, and what a teacher says of them."""
    return enrolled(tmp_path_factory.mktemp("classroom"), target=True)
