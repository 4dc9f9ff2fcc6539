"""Names as people write them: of splits, and of labels that are meant to be the same."""

import re
import unicodedata
from collections.abc import Iterable

from stages.core.dataset.data import UNLABELLED, Split

# Names of split folders and of values in a split column, as `_core` gives them: those of Hugging
# Face's datasets, Keras, Ultralytics, Roboflow and Kaggle; COCO and STL-10 have unlabelled ones.
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "trn": "train", "learning": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "validating": "val",
    "vali": "val", "dev": "val", "devel": "val", "development": "val",
    "test": "test", "testing": "test", "tst": "test",
    "unlabelled": UNLABELLED, "unlabeled": UNLABELLED,
}  # fmt: skip
# The test split, as Hugging Face's datasets have it; beside one called so, the one that chooses.
_SECOND_TEST = {"eval", "evaluation", "evaluate", "evaluating", "holdout", "heldout"}
# What stands around a split's name: training_set, test-images, val2017, seg_train.
_AROUND = (
    r"\d+$",
    r"(?:datasets?|sets?|data|split|folder|dir|images?|imgs?|pics|pictures|samples|examples"
    r"|lists?|files?)$",
    r"^(?:seg|images?|imgs?|dataset|data|my)",
)
# Blanks that `str.strip` leaves: a byte order mark and what has no width.
_NO_WIDTH = "\ufeff\u200b\u200c\u200d\u2060"


def _core(name: str) -> str:
    core = re.sub(r"[\W_]+", "", name.casefold())
    for pattern in _AROUND:
        if core in _SPLITS or core in _SECOND_TEST:
            break
        core = re.sub(pattern, "", core)
    return core


def split_names(names: Iterable[str]) -> dict[str, Split]:
    """Those of the names that mean a split, each with the split."""
    cores = {name: _core(name) for name in names}
    second: Split = "val" if "test" in map(_SPLITS.get, cores.values()) else "test"
    table = _SPLITS | dict.fromkeys(_SECOND_TEST, second)
    return {name: table[core] for name, core in cores.items() if core in table}


def means_unlabelled(name: str) -> bool:
    """Whether a split, a folder or a label says that an image has no label."""
    return split_names([name]).get(name) == UNLABELLED


def trimmed(text: str) -> str:
    """`text` without blanks around it, those without a width among them."""
    before = ""
    while text != before:
        before, text = text, text.strip().strip(_NO_WIDTH)
    return text


def plain(name: str) -> str:
    """`name` in one Unicode form."""
    return unicodedata.normalize("NFC", name)


def _meaning(name: str, *, numbers: bool) -> str:
    """The same for names that differ only in blanks, case or Unicode form (or as `1` and `1.0`)."""
    core = " ".join(unicodedata.normalize("NFKC", trimmed(name)).casefold().split())
    if numbers and re.fullmatch(r"[+-]?\d+(\.\d*)?", core):
        return str(float(core))
    return core


def twins(names: Iterable[str], *, numbers: bool = False) -> list[tuple[str, str]]:
    """Pairs of names that differ only in blanks, case or Unicode form.

    Args:
        numbers: whether `1`, `1.0` and `01` are the same, too.
    """
    first: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        other = first.setdefault(_meaning(name, numbers=numbers), name)
        if other != name:
            pairs.append((other, name))
    return pairs
