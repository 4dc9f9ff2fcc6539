"""A small study, and rows and predictions as its trials would give them."""

import numpy as np
import pandas as pd

from flows.study import (
    CODE,
    COMMIT,
    DATA,
    DEVICE,
    MESSAGE,
    PARAMS,
    STATE,
    Inputs,
    Study,
)

STUDY = Study(
    question="?",
    base={"a": {"x": 1}},
    trials={"one": {"a": {"y": 2}}, "two": {"a": {"x": 3}}},
    grid={"a.seed": [0, 1], "b.fold": [5]},
    show={"AUROC": "distill.student.auroc"},
    gains={"over control": ["student", "control"], "over one": ["student", "one/student"]},
)
NOW = Inputs("p", "d", "k")
ROW = {
    PARAMS: "p", DATA: "d", CODE: "k", COMMIT: "c", DEVICE: "cpu", STATE: "done", MESSAGE: "",
    "distill.student.auroc": 0.5,
}  # fmt: skip


def predicted(strength: float, seed: int) -> pd.DataFrame:
    """Logits of a student that tells two classes apart by `strength`, and of a weaker control."""
    draws = np.random.default_rng(seed)
    label = np.arange(80) % 2
    logits = {
        f"{model}/class {k}": draws.normal(s * (label == k), 1)
        for model, s in (("student", strength), ("control", 0.5))
        for k in range(2)
    }
    return pd.DataFrame({"file_name": label, "group": np.arange(80) // 8, "label": label} | logits)
