"""The model in use, as data/accepted.json remembers it: a candidate is held against it.

Only a release writes this. It keeps the model's logits on the test split, so that both models can
be compared image by image, as long as the test split stays the same.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.results import metrics, predictions
from stages.core.results.metrics import Logits
from stages.core.results.schema.base import Gain
from stages.core.runner.errors import DataError

# Of export's predictions: what the ONNX file answers.
SHIPPED = "shipped"
# Two bytes per logit: a difference in the fourth digit changes no ranking that matters.
PACKED = "<f2"
VERSION = r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){2}"


def fingerprint(table: pd.DataFrame, files: str) -> str:
    """What identifies a test split: the names, labels and contents of its images, in order.

    Args:
        table: as `predictions.write` has it.
        files: `ExportMetrics.test_files`.
    """
    content = table[["file_name", "label"]].to_csv(index=False, lineterminator="\n") + files
    return hashlib.md5(content.encode()).hexdigest()


def read_predictions(path: Path) -> pd.DataFrame:
    """What export wrote beside its metrics; names stay text, whatever they look like."""
    names = {"file_name": str, "group": str}
    return pd.read_csv(path, dtype=names, keep_default_na=False, na_values={})


class Champion(BaseModel):
    """A released model.

    Attributes:
        version: of the release.
        release: md5 of its folder, as DVC has it.
        before: version of the release that it replaced; None for the first.
        auroc: on its test split.
        test_split: see `fingerprint`; "" in releases of version 0.2.0, which kept no logits.
        logits: on it, (N, K) float16, little-endian, in base64.
        decisions: releases that this very test split has decided, this one among them, and, after
            a rollback, later ones.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    version: str = Field(pattern=f"^{VERSION}$")
    release: str
    before: str | None = Field(pattern=f"^{VERSION}$")
    auroc: float = Field(ge=0, le=1)
    test_split: str = ""
    logits: str = ""
    decisions: int = Field(ge=1, default=1)

    def has_seen(self, table: pd.DataFrame, files: str) -> bool:
        """Whether it was measured on these very images; see `fingerprint`."""
        return self.test_split == fingerprint(table, files)

    def gain_of(self, table: pd.DataFrame) -> Gain:
        """Of a candidate in AUROC over the champion, image by image, with its interval.

        Args:
            table: the candidate's predictions, for a test split that the champion `has_seen`.

        Raises: DataError.
        """
        # Rounded as the champion's, so that a model is as good as itself.
        candidate = _kept(predictions.logits(table, SHIPPED)).astype(np.float32)
        try:
            packed = np.frombuffer(base64.b64decode(self.logits, validate=True), PACKED)
            own = packed.reshape(candidate.shape).astype(np.float32)
            if not np.isfinite(own).all():
                raise ValueError
        except ValueError:
            raise DataError(
                f"the champion's logits do not fit the test split's {len(table)} images and "
                f"{candidate.shape[1]} classes"
            ) from None
        groups = pd.factorize(table["group"])[0].astype(np.int64)
        return metrics.paired_gain(candidate, own, table["label"].to_numpy(np.int64), groups)


def pack(logits: Logits) -> str:
    """Logits (N, K) as `Champion.logits` has them."""
    return base64.b64encode(_kept(logits).tobytes()).decode()


def _kept(logits: Logits) -> NDArray[np.float16]:
    largest = float(np.finfo(PACKED).max)
    return logits.clip(-largest, largest).astype(PACKED)


@dataclass(frozen=True)
class History:
    """The model in use, and a candidate's gain over it; None where there is nothing to compare."""

    champion: Champion | None
    gain: Gain | None


def compare(accepted: Path, candidate: Path, files: str) -> History:
    """Hold a candidate's predictions against the model in use; `files` as in `fingerprint`.

    Raises: DataError.
    """
    champion = load(accepted)
    if champion is None:
        return History(None, None)
    table = read_predictions(candidate)
    seen = champion.has_seen(table, files)
    return History(champion, champion.gain_of(table) if seen else None)


def parse(text: str, source: str) -> Champion | None:
    """The champion in the text of data/accepted.json, or None before the first release.

    Raises: DataError.
    """
    try:
        entry = json.loads(text).get("champion")
        return None if entry is None else Champion.model_validate_json(json.dumps(entry))
    except ValidationError as error:
        problem = "; ".join(
            f"champion.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]
        )
    except (ValueError, AttributeError, RecursionError) as error:
        problem = " ".join(str(error).split())
    raise DataError(
        f"{source}: {problem}; only `python -m flows.release` writes it: take it back from a "
        f"commit that has it whole (git checkout COMMIT -- {source})"
    )


def load(path: Path) -> Champion | None:
    """The champion in a file. Raises: DataError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({' '.join(str(error).split())})") from None
    return parse(text, str(path))
