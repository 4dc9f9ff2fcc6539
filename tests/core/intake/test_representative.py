"""The validation split resembles what it is taken from, as far as the data can tell."""

import importlib.resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from stages.core.intake import representative as module
from stages.core.intake.drift import NUMBERS
from stages.core.intake.images import look
from stages.core.intake.representative import representative
from stages.core.results import metrics, predictions
from tests.conftest import ROOT
from tests.helpers.manifests import built, split


def odd(groups: int = 20) -> pd.DataFrame:
    """Groups of ten images; in each, one number, the group's own, says how it looks."""
    group = np.repeat(np.arange(groups), 10)
    table = pd.DataFrame(
        {
            "label": np.where(np.arange(len(group)) % 2, "a", "b"),
            "domain": "",
            "group": [f"g{g:02}" for g in group],
        }
    )
    return table.assign(**dict.fromkeys(NUMBERS, 5.0)).assign(mean=group.astype(float))


def first(manifest: pd.DataFrame, count: int) -> "pd.Series[bool]":
    return manifest["group"].isin(sorted(set(manifest["group"]))[:count])


def chosen(
    manifest: pd.DataFrame, fold: "pd.Series[bool]", share: float = 0.2, seed: int = 0
) -> "pd.Series[bool]":
    return representative(manifest, fold, share=share, seed=seed)


def distance(manifest: pd.DataFrame, inside: "pd.Series[bool]", share: float) -> float:
    """The distance as its docstring has it, step by step."""
    stratum = manifest["label"] + "/" + manifest["domain"]
    here, everywhere = (
        part.value_counts(normalize=True).reindex(sorted(set(stratum)), fill_value=0)
        for part in (stratum[inside], stratum)
    )
    by_group = manifest.groupby("group")["label"]
    own = manifest.groupby(["group", "label"])["label"].transform("size")
    profile = manifest[list(NUMBERS)].assign(
        size=by_group.transform("size"), alike=own / by_group.transform("size")
    )
    profile = profile.loc[:, profile.nunique() > 1]
    gaps = [ks_2samp(profile.loc[inside, c], profile[c]).statistic for c in profile]
    total_variation = (here - everywhere).abs().sum() / 2
    return float(total_variation + np.mean(gaps) + abs(inside.mean() - share))


def test_dark_groups_do_not_choose_for_bright_ones() -> None:
    manifest = odd()
    dark = first(manifest, 4)
    inside = chosen(manifest, dark)
    assert inside.sum() == 40
    assert manifest.loc[inside, "mean"].mean() == pytest.approx(9.5, abs=1)
    assert manifest.loc[dark, "mean"].mean() == 1.5


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_is_what_it_says(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = built(seed=seed)
    fold = first(manifest, 12)
    inside = chosen(manifest, fold, seed=seed)
    after, before = (distance(manifest, part, 0.2) for part in (inside, fold))
    assert after < before
    assert f"distance {after:.3f} from" in capsys.readouterr().out


def test_no_other_draw_is_closer() -> None:
    manifest = built()
    inside = chosen(manifest, first(manifest, 12))
    members, groups = pd.factorize(manifest["group"], sort=True)
    sets = module._draws(np.bincount(members), 0.2, seed=0)
    assert sets.shape == (module.DRAWS, len(groups))
    distances = [
        distance(manifest, pd.Series(one[members], index=manifest.index), 0.2) for one in sets[:40]
    ]
    assert distance(manifest, inside, 0.2) <= min(distances) + 1e-9


def test_a_fold_that_is_closest_stays() -> None:
    """Every draw of these groups is as good as any other."""
    manifest = odd().assign(mean=5.0)
    fold = first(manifest, 4)
    assert chosen(manifest, fold).equals(fold)


def test_each_class_is_in_it_and_outside() -> None:
    manifest = odd()
    rare = manifest.index[[15, 195]]
    manifest.loc[rare, "label"] = "rare"
    for fold in (first(manifest, 1), first(manifest, 4), manifest["group"].isin(["g01", "g19"])):
        inside = chosen(manifest, fold)
        assert inside[rare].sum() == 1


def test_groups_stay_whole_and_sizes_are_kept() -> None:
    manifest = built(groups=30)
    inside = chosen(manifest, first(manifest, 6), share=0.25)
    assert inside.groupby(manifest["group"]).nunique().eq(1).all()
    assert inside.mean() == pytest.approx(0.25, abs=0.02)


def test_seed_and_images_decide_but_not_their_order() -> None:
    manifest = built()
    fold = first(manifest, 12)
    inside = chosen(manifest, fold)
    assert chosen(manifest, fold).equals(inside)
    assert not chosen(manifest, fold, seed=1).equals(inside)
    shuffled = manifest.sample(frac=1, random_state=0)
    assert chosen(shuffled, fold[shuffled.index]).sort_index().equals(inside)


def test_a_fold_without_any_image_is_never_chosen() -> None:
    manifest = odd()
    assert chosen(manifest, first(manifest, 0)).sum() == 40


def test_many_groups_keep_the_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = odd()
    dark = first(manifest, 4)
    monkeypatch.setattr(module, "MOST_GROUPS", 19)
    assert chosen(manifest, dark).equals(dark)


MODELS = ("probe", "finetuned", "student", "student 1", "control", "control 1")


def cells() -> pd.DataFrame:
    """ELPV's cells with the logits of six models that have not seen their modules."""
    folder = Path(str(importlib.resources.files("elpv_dataset"))) / "data"
    table = pd.read_parquet(ROOT / "data/reports/studies/elpv.parquet")
    table = table[table["trial"].str.startswith("grouped-")].reset_index(drop=True)
    names = ["file_name", "probability", "domain"]
    given = pd.read_csv(folder / "labels.csv", sep=r"\s+", header=None, names=names)
    table = table.merge(given, on="file_name", validate="one_to_one")
    looks = [look((folder / name).read_bytes(), 160, 10**6) for name in table["file_name"]]
    numbers = {name: [getattr(one, name) for one in looks] for name in NUMBERS}
    return table.assign(number=table["label"], label=table["label"].astype(str), **numbers)


@pytest.mark.slow
def test_it_tells_of_models_what_all_images_tell() -> None:
    """AUROC, and its difference between two models, deviate less from those on all images.

    Eleven modules are drawn to be tested; the validation split comes from the others.
    """
    table = cells()
    labels = table["number"].to_numpy(np.int64)
    logits = [predictions.logits(table, model) for model in MODELS]
    members, groups = pd.factorize(table["group"])
    draws = np.random.default_rng(0)
    errors: dict[str, list[tuple[float, float]]] = {"representative": [], "fold": [], "random": []}
    for seed in range(100):
        rest = table[~np.isin(members, draws.permutation(len(groups))[:11])]
        given = rest.assign(split=np.where(rest.index == rest.index[0], "test", "train"))
        inside = {
            name: (split(given, "column", val_split=name, seed=seed) == "val").to_numpy()
            for name in ("representative", "fold")
        }
        codes = pd.factorize(rest["group"])[0]
        inside["random"] = module._draws(np.bincount(codes), 0.2, seed + 1000)[0][codes]
        everywhere = np.array([metrics.auroc(x[rest.index], labels[rest.index]) for x in logits])
        for name, places in inside.items():
            rows = rest.index[places]
            here = np.array([metrics.auroc(x[rows], labels[rows]) for x in logits])
            gap = here - everywhere
            errors[name].append((np.abs(gap).mean(), np.abs(gap[:, None] - gap).mean()))
    means = {name: np.mean(each, axis=0) for name, each in errors.items()}
    print(means)
    assert (means["representative"] < 0.9 * means["fold"]).all()
    assert (means["representative"] < 0.9 * means["random"]).all()
