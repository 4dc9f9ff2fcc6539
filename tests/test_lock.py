"""The lock file serves every Python that the project names, not only the one that resolved it."""

import re
from collections.abc import Set as AbstractSet
from importlib.metadata import Distribution, distributions

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def missing(lock: AbstractSet[str], installed: list[Distribution], python: str) -> list[str]:
    """What installed packages need on Python `python` and the lock lacks."""
    environment = {str(k): str(v) for k, v in default_environment().items()}
    environment |= {
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "extra": "",
    }
    requirements = [Requirement(line) for package in installed for line in package.requires or ()]
    return sorted(
        str(requirement)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(environment)
        if canonicalize_name(requirement.name) not in lock
    )


# Debian 12 has 3.11.2.
@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.11.14"])
def test_every_requirement_is_in_the_lock(python: str) -> None:
    text = (ROOT / "requirements.lock").read_text()
    lock = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", text, re.M)}
    installed = list(distributions())
    assert missing(lock, installed, python) == []
    assert "torch" in lock
    assert missing(lock - {"numpy"}, installed, python)


def test_what_only_an_older_patch_release_needs_is_noticed() -> None:
    text = (ROOT / "requirements.lock").read_text()
    lock = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", text, re.M)}
    installed = list(distributions())
    assert missing(lock - {"async-timeout"}, installed, "3.11.14") == []
    assert any(
        "async-timeout" in line for line in missing(lock - {"async-timeout"}, installed, "3.11.2")
    )
