"""Folders as people have them: small pieces to build and to mend them with."""

import io
import shutil
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

# Changes the images' folder; the second one does what a message advises.
Step = Callable[[Path], None]


def picture(seed: int, px: int = 40) -> Image.Image:
    """A smooth random scene, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return Image.fromarray(coarse).resize((px, px), Image.Resampling.NEAREST)


def put(folder: Path, names: "list[str] | str", *, seed: int = 0, kind: str | None = None) -> None:
    """Images under the given names; no two of one call are alike."""
    for number, name in enumerate([names] if isinstance(names, str) else names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed + number).save(path, kind or ("JPEG" if name.endswith("jpg") else "PNG"))


def classes(*folders: str, count: int = 12, ending: str = ".png") -> Step:
    """Folders with so many images each."""

    def step(root: Path) -> None:
        for number, folder in enumerate(folders):
            put(root, [f"{folder}/{i}{ending}" for i in range(count)], seed=1000 * number)

    return step


def table(text: str, name: str = "metadata.csv", encoding: str = "utf-8") -> Step:
    """A file of text."""

    def step(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode(encoding))

    return step


def rows(
    *,
    header: str = "file_name,label",
    row: Callable[[int, str], str] = lambda i, name: f"{name},{'ab'[i % 2]}",
    names: Callable[[int], str] = lambda i: f"{i}.png",
    files: Callable[[int], str] | None = None,
    count: int = 24,
    end: str = "",
) -> Step:
    """Images in one folder and a metadata.csv, one row per image."""

    def step(root: Path) -> None:
        put(root, [(files or names)(i) for i in range(count)])
        lines = [header, *(row(i, names(i)) for i in range(count))]
        (root / "metadata.csv").write_text("\n".join(lines) + "\n" + end, encoding="utf-8")

    return step


def replace(old: str, new: str, name: str = "metadata.csv") -> Step:
    """Another text in a file, wherever it stands."""

    def step(root: Path) -> None:
        path = root / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    return step


def moved(old: str, new: str) -> Step:
    """A file or folder under another name."""

    def step(root: Path) -> None:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)

    return step


def gone(*names: str) -> Step:
    """Files or folders taken out."""

    def step(root: Path) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    return step


def linked(name: str, target: str) -> Step:
    """A link."""

    def step(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)

    return step


def steps(*several: Step) -> Step:
    """One after the other."""

    def step(root: Path) -> None:
        for one in several:
            one(root)

    return step


def as_bytes(seed: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, kind)
    return file.getvalue()


def shard(key: Callable[[int], str], more: dict[str, bytes] | None = None, count: int = 24) -> Step:
    """One shard with so many images and their labels."""

    def step(root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / "train-0.tar", "w") as tar:
            for i in range(count):
                for name, data in (
                    (f"{key(i)}.png", as_bytes(i)),
                    (f"{key(i)}.cls", b"%d" % (i % 2)),
                ):
                    add(tar, name, data)
            for name, data in (more or {}).items():
                add(tar, name, data)

    return step


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(data)
    tar.addfile(about, io.BytesIO(data))


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def elongated(root: Path) -> None:
    """Scans of strips: upright in one class, lying in the other."""
    for label, size in (("a", (40, 120)), ("b", (120, 40))):
        for i in range(12):
            path = root / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(100 * (label == "b") + i, 120).crop((0, 0, *size)).save(path)


def fixed_camera(root: Path) -> None:
    """One background with sensor noise; what is bad has a scratch, each in another place."""
    coarse = np.random.default_rng(7).integers(0, 256, (10, 10), dtype=np.uint8)
    scene = Image.fromarray(coarse).resize((240, 240), Image.Resampling.BILINEAR)
    # What is rough in the scene keeps the hash of its copies alike.
    base = np.asarray(scene) * 0.6 + np.random.default_rng(8).normal(0, 4, (240, 240))
    for label in ("good", "scratched"):
        for i in range(24):
            draws = np.random.default_rng(100 * len(label) + i)
            grey = base + draws.normal(0, 1, base.shape)
            if label == "scratched":
                y, x = draws.integers(20, 200, 2)
                grey[y : y + 4, x : x + 40] = 255
            path = root / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path)
