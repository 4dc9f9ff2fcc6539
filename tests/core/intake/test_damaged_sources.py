"""Damaged folders are refused in words or read; no name leads out of one."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.intake.source import Source, Unreadable, locate
from stages.core.intake.sources import open_source
from stages.core.runner.errors import AtelierError
from tests.helpers.layouts import FORMATS, ROWS, as_tar, put

HYPOTHESIS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


SHARD = as_tar(
    [
        (f"{i}.{ending}", data)
        for i in range(3)
        for ending, data in (("png", b"x" * 700), ("cls", b"a"), ("json", b'{"group": "g"}'))
    ]
)
VALID = {name: write(ROWS) for name, write in FORMATS.items()} | {"a.tar": SHARD}
changes = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["put", "set", "cut", "drop"]),
        st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from(
                [b'"', b",", b"\n", b"\r", b"\0", b"\xe2\x80\xa8", b"\\ud800", b"1e999", b"NaN",
                 b"[" * 3000, b"9" * 5000, b"{}", b"\xef\xbb\xbf"]
            ),
        ),
    ),
    max_size=6,
)  # fmt: skip


def changed(content: bytes, edits: list[tuple[int, str, bytes]]) -> bytes:
    for place, kind, data in edits:
        at = place % (len(content) + 1)
        if kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[at + len(data) :]
        else:
            after = at + len(data) * (kind == "set")
            content = content[:at] + data + content[after:]
    return content


def opened(folder: Path) -> Source | str:
    """What is in a folder, or why not."""
    try:
        return open_source(folder)
    except AtelierError as error:
        return str(error)


@pytest.mark.parametrize("name", list(VALID))
@HYPOTHESIS
@given(edits=changes)
def test_damaged_files_are_refused_or_read(
    tmp_path: Path, name: str, edits: list[tuple[int, str, bytes]]
) -> None:
    (tmp_path / name).write_bytes(changed(VALID[name], edits))
    actual = opened(tmp_path)
    if isinstance(actual, str):
        assert str(tmp_path) in actual
        return
    cells = "".join(cell for row in actual.table.to_numpy() for cell in row)
    assert cells.encode()
    assert "\r" not in "".join(actual.table.drop(columns="file_name").to_numpy().ravel())


@pytest.mark.parametrize("name", list(VALID))
@HYPOTHESIS
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    actual = opened(tmp_path)
    assert isinstance(actual, str)
    assert str(tmp_path) in actual


@HYPOTHESIS
@given(
    parts=st.lists(
        st.sampled_from(["..", ".", "", "sub", "up", "images", "1.png", "out.png", "link.png"]),
        max_size=6,
    )
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, parts: list[str]) -> None:
    folder = tmp_path / "images"
    if not folder.exists():
        put(tmp_path, "out.png", "images/1.png", "images/sub/1.png")
        (folder / "up").symlink_to("..")
        (folder / "link.png").symlink_to("../out.png")
    try:
        actual = locate(folder, "/".join(parts), {})
    except Unreadable:
        return
    assert actual.is_file()
    assert actual.resolve().is_relative_to(folder.resolve())
