"""Peak anonymous memory with 100,000 images of 96 px, in WebDataset shards: validating, training.

Each has a process of its own, set up as the stage's is, so that the libraries count too (PyTorch
and Great Expectations: about half a gigabyte). RssAnon of /proc is read every 5 ms; what maps a
file (the packed pixels, 2.8 GB, in colour) is not in it, since the kernel can drop that at any
time. Validating is the stage's whole `run`. Training is what the distill stage does for a student
with the project's params and one epoch, on made-up targets: the statistics of all training images,
the frozen layers' views, the epoch, the validation. The probe and the GAN's training are the parts
of their stages that once held every image's features, or pixels, in memory.

One run each: it takes minutes, and memory does not depend on what else the machine does.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from stages import augment, distill, teacher
from stages.core.dataset.data import load_dataset
from stages.core.dataset.views import Views
from stages.core.training.targets import load_targets, save_targets
from tests.benchmarks import synthetic
from tests.benchmarks.project import paths, resources, section, validate_stage
from tests.benchmarks.record import Result
from tests.conftest import outputs

IMAGES, PX = 100_000, 96
# Enough that all buffers have been used.
GAN_STEPS = 20


def validate(work: Path) -> None:
    """The validate stage on the shards."""
    validate_stage(paths(work / "stage", work / "shards"), image_px=PX)


def train(work: Path) -> None:
    """The distill stage on what `validate` has left, for one epoch."""
    validated = work / "stage" / "validated"
    data = load_dataset(validated)
    draws = np.random.default_rng(0)
    count, classes = len(data.labels), len(data.classes)
    logits = draws.normal(size=(1, len(data.rows("train")), classes)).astype(np.float32)
    plain = draws.normal(size=(count, classes)).astype(np.float32)
    targets = work / "targets"
    save_targets(
        targets, Views(data.pixels, seed=2, jitter=0.2, symmetries="all"), 1, outputs(logits), plain
    )
    params = section("distill", distill.Params)
    recipe = params.recipe.model_copy(update={"epochs": 1})
    params = params.model_copy(update={"recipe": recipe})
    written = {name: work / f"{name}.out" for name in distill.Paths.outputs()}
    where = distill.Paths(
        scratch=work / "scratch",
        validated=validated,
        targets=targets,
        teacher=work,
        weights=work,
        cache=work / "cache",
        **written,
    )
    trainer = distill.StudentTrainer(params, where, data, load_targets(targets, data), resources())
    trainer.train(params.seed, control=False, name="student")


def probe(work: Path) -> None:
    """The teacher's probe on what `validate` has left."""
    where = work / "stage" / "validated"
    inputs = {"validated": where, "weights": work, "cache": work / "cache"}
    outputs_ = {name: work / f"{name}.probe" for name in teacher.Paths.outputs()}
    at = teacher.Paths(scratch=work / "scratch", **inputs, **outputs_)
    params = section("teacher", teacher.Params)
    teacher.TeacherTrainer(params, at, load_dataset(where), resources()).probe(0)


def gan(work: Path) -> None:
    """A few steps of the GAN on what `validate` has left."""
    data = load_dataset(work / "stage" / "validated")
    params = section("augment", augment.Params)
    short = params.translate.model_copy(update={"steps": GAN_STEPS})
    params = params.model_copy(update={"translate": short})
    task = augment.find_task(params, data)
    augment.find_makers(params, data, task, torch.device("cpu"), work / "scratch")


def peak(work: Path, step: str) -> float:
    """Highest RssAnon, in GB, of a process of its own that does a step of this module."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_memory", step, str(work)]
    highest, started = 0, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = [x for x in status.read_text().splitlines() if x.startswith("RssAnon")]
            if lines:  # none once it has ended
                highest = max(highest, int(lines[0].split()[1]))
            time.sleep(0.005)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    gigabytes = highest * 1024 / 1e9
    print(f"  {step}: {gigabytes:.2f} GB, {time.monotonic() - started:.0f} s", flush=True)
    return gigabytes


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    count = round(IMAGES * scale)
    synthetic.shards(work / "shards", range(count), PX)
    what = f"{count:,} colour images of {PX} px: peak anonymous memory of"
    steps = {
        "validate": "validating",
        "train": "one epoch",
        "probe": "the teacher's probe",
        "gan": "the GAN's training",
    }
    return [
        Result(f"memory_{step}", f"{what} {name}", [peak(work, step)], 1.5, unit="GB")
        for step, name in steps.items()
    ]


if __name__ == "__main__":
    resources().apply()
    steps = {"validate": validate, "train": train, "probe": probe, "gan": gan}
    steps[sys.argv[1]](Path(sys.argv[2]))
