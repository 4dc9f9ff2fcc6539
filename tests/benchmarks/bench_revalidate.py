"""A second validation after 1 % more images against the first.

Both are the validate stage's whole `run`, in this process, after imports: looking at the images,
suites, near duplicates, split, Data Docs, pictures, packing. 20,000 colour JPEGs of 500 px
(ImageNet's average) in an imagefolder with groups of ten; the first starts with an empty cache,
the second has that cache and 200 images more. Before each, all that it will read is read once, so
that the disk is in neither. DVC and the stage hash the folder before and after `run`; that is left
out.

The same without groups, as class folders, is measured once beside it: scikit-learn's grouped split
takes as long as there are groups, and here every image is one.
"""

import shutil
from pathlib import Path

from tests.benchmarks import synthetic
from tests.benchmarks.project import paths, validate_stage
from tests.benchmarks.record import Result, interleaved, ratios, seconds

IMAGES, MORE, SOURCE_PX, ROUNDS = 20_000, 0.01, 500, 3
PER_GROUP = 10


def into_page_cache(folder: Path) -> None:
    """Read every file once."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.read_bytes()


def describe(images: Path, numbers: range) -> None:
    """Make class folders an imagefolder: a metadata.csv with groups of images that follow."""
    rows = [f"{synthetic.place(n)},{synthetic.label(n)},series {n // PER_GROUP}\n" for n in numbers]
    (images / "metadata.csv").write_text("".join(["file_name,label,group\n", *rows]))


class Folder:
    """Images that grow by 1 % and shrink again, and the stage's runs on them."""

    def __init__(self, work: Path, count: int, *, grouped: bool) -> None:
        self.images, self.root, self.grouped = work / "images", work / "stage", grouped
        self.later = work / "later"
        self.few, self.all = range(count), range(count + max(round(count * MORE), 1))

    def first(self) -> float:
        """Seconds of a run with an empty cache."""
        shutil.rmtree(self.root, ignore_errors=True)
        for number in self.all[len(self.few) :]:
            (self.images / synthetic.place(number)).unlink(missing_ok=True)
        return self._seconds(self.few)

    def second(self) -> float:
        """Seconds of a run with 1 % more images, after `first`."""
        for number in self.all[len(self.few) :]:
            name = synthetic.place(number)
            shutil.copyfile(self.later / name, self.images / name)
        return self._seconds(self.all)

    def _seconds(self, numbers: range) -> float:
        (self.images / "metadata.csv").unlink(missing_ok=True)
        if self.grouped:
            describe(self.images, numbers)
        into_page_cache(self.images)
        into_page_cache(self.root)
        where = paths(self.root, self.images)
        return seconds(lambda: validate_stage(where))


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    count = round(IMAGES * scale)
    grouped, alone = (Folder(work, count, grouped=g) for g in (True, False))
    synthetic.class_folders(grouped.images, grouped.few, SOURCE_PX)
    synthetic.class_folders(grouped.later, grouped.all[count:], SOURCE_PX)
    synthetic.class_folders(work / "small", range(400), 100)
    validate_stage(paths(work / "warm", work / "small"))  # imports
    slow, fast = interleaved(ROUNDS, grouped.first, grouped.second)
    without = interleaved(1, alone.first, alone.second)
    what = f"validating {count:,} JPEGs of {SOURCE_PX} px: the first time over again with 1 % more"
    return [
        Result("revalidate", f"{what}, in groups of ten", ratios(slow, fast), 10.0),
        Result("revalidate_alone", f"{what}, without groups", ratios(*without), 10.0),
    ]
