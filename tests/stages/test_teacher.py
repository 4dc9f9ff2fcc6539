import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from stages import teacher
from stages.core.dataset.data import Dataset, load_dataset
from stages.core.dataset.views import Views
from stages.core.nets.files import load_teacher
from stages.core.nets.inference import features_of, logits_of
from stages.core.nets.net import Net, count_macs, count_parameters
from stages.core.results import metrics, predictions
from stages.core.runner.errors import ParamsError
from tests.conftest import RESOURCES, RowsFitted
from tests.helpers.classroom import CLASSES, validated
from tests.helpers.teaching import LITES, params, paths_of

pytestmark = pytest.mark.usefixtures("one_thread")

MCC = {"adapt": "mcc", "soft_labels": ["p"]}
DANN = {"adapt": "dann", "soft_labels": ["p"]}
WAYS: list[dict[str, Any]] = [{"adapt": "adabn"}, MCC, DANN]


@dataclass
class Taught:
    """What a run of the stage has left."""

    paths: teacher.Paths
    params: teacher.Params

    def __post_init__(self) -> None:
        self.data = load_dataset(self.paths.validated)
        self.rows = {s: self.data.rows(s) for s in ("train", "val", "test", "unlabelled")}
        self.labels = self.data.labels[self.rows["test"]]
        self.members = load_teacher(self.paths.teacher).each()
        self.metrics = json.loads(self.paths.metrics.read_text())
        self.curves = pd.read_csv(self.paths.curves)
        self.predictions = pd.read_csv(self.paths.predictions)

    def logits_by(self, name: str) -> Any:
        result = predictions.logits(self.predictions, name)
        assert result.size
        return result

    def again(self, net: Net) -> Any:
        return logits_of(net, Views(self.data.pixels, 0, 0, "all").plain, self.rows["test"])

    def probe(self, member: int) -> Net:
        return teacher.TeacherTrainer(self.params, self.paths, self.data, RESOURCES).probe(member)


Teach = Callable[..., Taught]


@pytest.fixture(scope="module")
def teach(tmp_path_factory: pytest.TempPathFactory) -> Teach:
    """Runs the stage, but only once in the same way."""
    root = tmp_path_factory.mktemp("teacher")
    folders: dict[str, Path] = {}
    runs: dict[str, Taught] = {}

    def run(data: dict[str, Any] | None = None, **changes: Any) -> Taught:
        data = data or {}
        name = json.dumps(data)
        if name not in folders:
            folders[name] = validated(root / f"data {len(folders)}", **data)
        key = json.dumps([data, changes])
        if key not in runs:
            paths = paths_of(root / f"run {len(runs)}", folders[name])
            teacher.run(params(**changes), paths=paths, resources=RESOURCES)
            runs[key] = Taught(paths, params(**changes))
        return runs[key]

    return run


def mean_of_stem(net: Net, data: Dataset, rows: Any) -> torch.Tensor:
    with torch.inference_mode():
        images = net.prepare(torch.from_numpy(data.pixels[rows]))
        result: torch.Tensor = net.backbone.model.conv_stem(images).mean((0, 2, 3))
    return result


def same_nets(a: Net, b: Net) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_teacher_of_two_says_the_mean(teach: Teach) -> None:
    one, two = teach(), teach(members=2)
    assert sorted(p.name for p in two.paths.teacher.iterdir()) == ["member_0", "member_1"]
    each = [two.again(net) for net in two.members]
    assert np.abs(each[0] - each[1]).max() > 0.01
    assert np.allclose(two.logits_by("finetuned"), (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-5)
    assert same_nets(one.members[0], two.members[0])
    assert two.metrics["members"] == 2
    assert two.metrics["parameters"] == 2 * one.metrics["parameters"]
    assert two.metrics["macs"] == 2 * one.metrics["macs"]
    assert list(two.curves["net"]) == ["member 0"] * 2 + ["member 1"] * 2


def test_members_take_the_backbones_in_turn(teach: Teach) -> None:
    three = teach(members=3, backbones=LITES)
    assert [net.spec.backbone for net in three.members] == [LITES[0], LITES[1], LITES[0]]
    assert three.metrics["backbone"] == " + ".join([LITES[0], LITES[1], LITES[0]])
    assert three.metrics["parameters"] == sum(map(count_parameters, three.members))
    assert three.metrics["macs"] == sum(map(count_macs, three.members))
    for name, nets in (("finetuned", three.members), ("probe", map(three.probe, range(3)))):
        each = [three.again(net) for net in nets]
        assert np.allclose(three.logits_by(name), np.mean(each, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", [{}, *WAYS], ids=["none", "adabn", "mcc", "dann"])
def test_figures_are_those_of_the_predictions(teach: Teach, way: dict[str, Any]) -> None:
    result = teach(**way)
    assert result.predictions["file_name"].tolist() == list(result.data.files[result.rows["test"]])
    aurocs = {}
    groups = result.data.groups[result.rows["test"]]
    for name in ("probe", *["source_only"] * bool(way), "finetuned"):
        aurocs[name] = metrics.auroc(result.logits_by(name), result.labels)
        loss = metrics.negative_log_likelihood(result.logits_by(name), result.labels)
        assert result.metrics[name]["auroc"] == pytest.approx(aurocs[name])
        within = metrics.auroc_within_groups(result.logits_by(name), result.labels, groups)
        assert result.metrics[name]["auroc_within_groups"] == pytest.approx(within)
        assert result.metrics[name]["nll"] == pytest.approx(loss, rel=1e-4)
    assert len(set(aurocs.values())) == len(aurocs)
    for name, before in (("finetuning_gain", "probe"), ("adaptation_gain", "source_only")):
        assert (name in result.metrics) == (before in aurocs) == (before in result.metrics)
        if name in result.metrics:
            gain = aurocs["finetuned"] - aurocs[before]
            assert result.metrics[name]["gain"] == pytest.approx(gain)
            assert result.metrics[name]["low"] <= gain <= result.metrics[name]["high"]
            better, worse = (
                result.metrics[m]["auroc_within_groups"] for m in ("finetuned", before)
            )
            gain = better - worse
            assert result.metrics[name]["within_groups"]["gain"] == pytest.approx(gain, abs=1e-6)
    val = result.rows["val"]
    seen = logits_of(result.members[0], Views(result.data.pixels, 0, 0, "all").plain, val)
    expected = metrics.ranking(seen, result.data.labels[val], result.data.groups[val])
    assert result.metrics["validation"] == pytest.approx(expected.model_dump())


def test_feature_extraction_leaves_the_probe_as_it_is(teach: Teach) -> None:
    result = teach(mode="feature_extraction")
    assert np.array_equal(result.logits_by("finetuned"), result.logits_by("probe"))
    assert np.array_equal(result.logits_by("probe"), teach().logits_by("probe"))
    assert same_nets(result.members[0], result.probe(0))
    assert result.metrics["finetuning_gain"]["gain"] == 0
    assert result.curves.empty
    assert result.paths.picture.exists()
    assert not result.paths.scratch.exists()
    assert not np.allclose(teach().logits_by("finetuned"), teach().logits_by("probe"), atol=0.01)


@pytest.mark.parametrize("way", WAYS, ids=["adabn", "mcc", "dann"])
def test_adaptation_starts_from_the_source_alone(teach: Teach, way: dict[str, Any]) -> None:
    plain, adapted = teach(), teach(**way)
    # Columns p are the labels: the source's training is the same.
    assert np.array_equal(adapted.logits_by("source_only"), plain.logits_by("finetuned"))
    assert not np.allclose(
        adapted.logits_by("finetuned"), adapted.logits_by("source_only"), atol=1e-3
    )
    again = adapted.again(adapted.members[0])
    assert np.allclose(adapted.logits_by("finetuned"), again, rtol=1e-4, atol=1e-5)


def test_every_way_of_adapting_is_another(teach: Teach) -> None:
    result = [teach(**way).logits_by("finetuned") for way in WAYS]
    for one, other in itertools.combinations(result, 2):
        assert not np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("way", [{}, *WAYS], ids=["none", "adabn", "mcc", "dann"])
def test_the_probe_has_the_sources_statistics(teach: Teach, way: dict[str, Any]) -> None:
    result = teach(**way)
    assert np.array_equal(result.logits_by("probe"), teach().logits_by("probe"))
    net, data, train = result.probe(0), result.data, result.rows["train"]
    mean = net.backbone.model.bn1.running_mean
    assert torch.allclose(mean, mean_of_stem(net, data, train), atol=1e-4)
    assert not torch.allclose(mean, mean_of_stem(net, data, result.rows["unlabelled"]), atol=0.05)
    features = net.features(torch.from_numpy(data.pixels[train])).detach()
    assert torch.allclose(net.head.mean, features.mean(0), atol=1e-3)
    assert np.allclose(result.logits_by("probe"), result.again(net), rtol=1e-4, atol=1e-5)


def test_adabn_ships_the_targets_statistics_and_the_sources_weights(teach: Teach) -> None:
    plain, adapted = teach(), teach(adapt="adabn")
    net, data, rows = adapted.members[0], adapted.data, adapted.rows["unlabelled"]
    norm = net.backbone.model.bn1
    assert torch.allclose(norm.running_mean, mean_of_stem(net, data, rows), atol=1e-4)
    features = net.features(torch.from_numpy(data.pixels[rows])).detach()
    assert torch.allclose(net.head.mean, features.mean(0), atol=1e-3)
    for (name, result), source in zip(
        net.named_parameters(), plain.members[0].parameters(), strict=True
    ):
        assert torch.equal(result, source), name


@pytest.mark.parametrize("way", ["mcc", "dann"])
def test_without_weight_it_is_the_sources_training_once_more(teach: Teach, way: str) -> None:
    result = teach(adapt=way, adapt_weight=0.0)
    assert np.allclose(result.logits_by("finetuned"), result.logits_by("source_only"), atol=1e-3)
    assert list(result.curves["net"]) == ["member 0"] * 2 + [f"member 0, {way}"] * 2


@pytest.mark.parametrize("way", WAYS, ids=["adabn", "mcc", "dann"])
def test_adaptation_is_to_the_unlabelled_images(teach: Teach, way: dict[str, Any]) -> None:
    one, other = teach(**way), teach({"contrast": 1.6}, **way)
    for name in ("probe", "source_only"):
        assert np.array_equal(one.logits_by(name), other.logits_by(name))
    assert not np.allclose(one.logits_by("finetuned"), other.logits_by("finetuned"), atol=1e-3)


@pytest.mark.parametrize("way", [MCC, DANN], ids=["mcc", "dann"])
def test_what_the_unlabelled_images_are_teaches_nothing(teach: Teach, way: dict[str, Any]) -> None:
    ones, zeros = teach(**way), teach({"hidden": 0.0}, **way)
    for result, hidden in ((ones, 1.0), (zeros, 0.0)):
        rows = result.rows["unlabelled"]
        assert len(rows) == 16
        assert (result.data.labels[rows] == -1).all()
        assert (np.delete(result.data.labels, rows) >= 0).all()
        assert (result.data.numbers("p")[rows] == hidden).all()
        assert not result.params.probabilities(result.data)[rows].any()
    assert ones.predictions.equals(zeros.predictions)
    assert same_nets(ones.members[0], zeros.members[0])


@pytest.mark.parametrize("imbalance", ["none", "balanced"])
@pytest.mark.parametrize("way", [{}, *WAYS], ids=["none", "adabn", "mcc", "dann"])
def test_only_labelled_training_images_are_learned_from(
    tmp_path: Path, rows_fitted: RowsFitted, way: dict[str, Any], imbalance: str
) -> None:
    fitted = rows_fitted()
    paths = paths_of(tmp_path / "run", validated(tmp_path / "data"))
    teacher.run(params(imbalance=imbalance, **way), paths=paths, resources=RESOURCES)
    data = load_dataset(paths.validated)
    train = data.rows("train")
    sound, cracked = np.bincount(data.labels[train])
    assert len(fitted) == 1 + (way in (MCC, DANN))
    for rows in fitted:
        assert set(rows) == set(train)
        each = [sound, sound if imbalance == "balanced" else cracked]
        assert np.bincount(data.labels[rows]).tolist() == each


@pytest.mark.parametrize("way", ["adabn", "mcc", "dann"])
def test_without_unlabelled_images_there_is_nothing_to_adapt_to(tmp_path: Path, way: str) -> None:
    paths = paths_of(tmp_path / "run", validated(tmp_path / "data", target=False))
    words = rf"teacher\.adapt = '{way}': there are no unlabelled images; .*validate\.target_domain"
    with pytest.raises(ParamsError, match=words):
        teacher.run(params(adapt=way), paths=paths, resources=RESOURCES)
    assert not paths.teacher.exists()


@pytest.mark.parametrize("way", ["mcc", "dann"])
def test_adapting_needs_whole_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    paths = paths_of(tmp_path / "run", validated(tmp_path / "data"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParamsError, match=rf"teacher\.adapt = '{way}'.*resources\.processes"):
        teacher.run(params(adapt=way), paths=paths, resources=RESOURCES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapt": "adabn", "own_statistics": 0.5}, "'adabn': .*set own_statistics to 1"),
        ({"adapt": "adabn", "own_statistics": 0.0}, "'adabn': .*set own_statistics to 1"),
        ({"adapt": "mcc", "mode": "feature_extraction"}, "'mcc': .*but mode is feature_extraction"),
        ({"adapt": "dann", "mode": "feature_extraction"}, "'dann': .*mode is feature_extraction"),
    ],
)
def test_adaptations_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ParamsError, match=r"^here: teacher\.adapt = " + words):
        params(**changes)


def test_adaptations_that_fit_are_not() -> None:
    params(adapt="adabn", mode="feature_extraction")
    params(adapt="mcc", own_statistics=0.5)
    params(adapt="dann", own_statistics=0.5)
    params(adapt="none", own_statistics=0.5, mode="feature_extraction")


def test_a_probe_weighs_classes(teach: Teach) -> None:
    """The regression of sklearn's own class weights; repeated images are the same to it."""
    plain, weighed = (
        teach(mode="feature_extraction"),
        teach(mode="feature_extraction", imbalance="weights"),
    )
    assert weighed.predictions.equals(
        teach(mode="feature_extraction", imbalance="balanced").predictions
    )
    rows = plain.rows["train"]
    labels = plain.data.labels[rows]
    counts = np.bincount(labels)
    assert counts[0] != counts[1]
    net = plain.probe(0)
    features = features_of(net, Views(plain.data.pixels, 0, 0, "all").plain, rows)
    known = net.head.standardize(torch.from_numpy(features)).numpy()
    for result, weight in ((plain, None), (weighed, "balanced")):
        sklearn = LogisticRegression(
            C=result.params.probe_c, max_iter=3000, class_weight=weight
        ).fit(known, labels)
        logits = result.again(result.members[0])
        unseen = features_of(net, Views(plain.data.pixels, 0, 0, "all").plain, plain.rows["test"])
        expected = sklearn.decision_function(net.head.standardize(torch.from_numpy(unseen)).numpy())
        assert logits[:, 1] - logits[:, 0] == pytest.approx(expected, abs=1e-3)
    assert not np.allclose(plain.logits_by("probe"), weighed.logits_by("probe"), atol=1e-3)


def test_adabn_needs_batch_norm(tmp_path: Path) -> None:
    how = params(
        adapt="adabn", backbones=["convnext_atto"], weights="none", mode="feature_extraction"
    )
    paths = paths_of(tmp_path / "run", validated(tmp_path / "data"))
    with pytest.raises(ParamsError, match=r"adapt = 'adabn': convnext_atto has no BatchNorm"):
        teacher.run(how, paths=paths, resources=RESOURCES)


def test_random_weights_are_not_frozen() -> None:
    with pytest.raises(ParamsError, match=r"teacher\.frozen_groups = 2: would freeze random"):
        params(weights="none")
    params(weights="none", frozen_groups=0)
    params(weights="none", mode="feature_extraction")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"soft_labels": ["p"]}, "soft_labels"),
        ({"imbalance": "focal"}, "imbalance: focal"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"mixup": 0.2}, "mixup"),
        ({"mixup": 0.2, "soft_labels": ["p"]}, "soft_labels, mixup"),
    ],
)
def test_a_probe_refuses_what_it_cannot_learn_with(changes: dict[str, Any], name: str) -> None:
    words = rf"teacher\.mode = 'feature_extraction': a linear probe cannot learn with {name}: "
    with pytest.raises(ParamsError, match=words):
        params(mode="feature_extraction", **changes)
    params(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"members": 2}, "same network: expected at most 1, one per different backbone"),
        ({"members": 3, "backbones": LITES}, "expected at most 2"),
        ({"members": 2, "backbones": LITES[:1] * 2}, "expected at most 1"),
        ({"members": 1, "backbones": LITES}, "leaves backbones out: expected one for each"),
        ({"members": 1, "backbones": LITES, "mode": "finetune"}, "leaves backbones out"),
    ],
)
def test_members_that_are_no_others_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ParamsError, match=rf"^here: teacher\.members = \d: .*{words}"):
        params(**({"mode": "feature_extraction"} | changes))


def test_members_that_differ_are_not() -> None:
    params(mode="feature_extraction", members=2, backbones=LITES)
    params(mode="feature_extraction", members=2, weights="none")
    params(members=3, backbones=LITES)


@pytest.mark.parametrize("target", [True, False])
def test_class_weights_are_of_labelled_training_images(tmp_path: Path, target: bool) -> None:
    data = load_dataset(validated(tmp_path / "data", target=target))
    assert len(data.rows("unlabelled")) == 16 * target
    table = pd.read_csv(tmp_path / "data" / "manifest.csv")
    train = table["label"][table["split"] == "train"]
    sound, cracked = ((train == name).sum() for name in CLASSES)
    everywhere = np.bincount(data.labels[data.labels >= 0])
    assert cracked / sound != everywhere[1] / everywhere[0]
    result = params(imbalance="weights").class_weights(data)
    assert result is not None
    expected = [len(train) / (2 * sound), len(train) / (2 * cracked)]
    assert result.tolist() == pytest.approx(expected)
    assert params().class_weights(data) is None
