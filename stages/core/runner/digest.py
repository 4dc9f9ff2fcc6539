"""Content digests, the same as DVC writes into dvc.lock."""

import hashlib
import json
from pathlib import Path

Stamp = dict[str, tuple[int, int, int]]


def files(path: Path) -> list[Path]:
    """All files of `path`, itself if it is one, in a fixed order."""
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    return [path]


def file_md5(path: Path) -> str:
    """Hexadecimal md5 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def md5(path: Path) -> str:
    """DVC's md5 of a file or, ending in `.dir`, of a folder (md5 of its sorted JSON listing)."""
    if not path.is_dir():
        return file_md5(path)
    listing = sorted(
        ({"md5": file_md5(p), "relpath": p.relative_to(path).as_posix()} for p in files(path)),
        key=lambda entry: entry["relpath"],
    )
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def stamp(path: Path) -> Stamp:
    """Size, modification time (ns) and inode of each file: equal stamps mean equal content."""
    return {str(p): (s.st_size, s.st_mtime_ns, s.st_ino) for p in files(path) for s in [p.stat()]}
