import pytest

from flows.workspace import merge
from stages.core.errors import ParamsError


def test_merge_changes_only_what_is_named() -> None:
    params = {"a": {"x": 1, "y": {"z": 2}}, "b": {"w": [1, 2]}}
    merge(params, {"a": {"y": {"z": 3}}, "b": {"w": [9]}}, source="o.yaml")
    assert params == {"a": {"x": 1, "y": {"z": 3}}, "b": {"w": [9]}}


@pytest.mark.parametrize("overlay", [{"c": {}}, {"a": {"typo": 1}}, {"a": {"y": {"q": 1}}}])
def test_merge_refuses_unknown_keys(overlay: dict[str, object]) -> None:
    params = {"a": {"x": 1, "y": {"z": 2}}}
    with pytest.raises(ParamsError, match=r"o\.yaml: .*params\.yaml has no such key"):
        merge(params, overlay, source="o.yaml")
