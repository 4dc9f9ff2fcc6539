"""Does the evidence for a defect point at the defect? The default run's student, on its test split.

Planted: a dark crack is drawn on functional cells, so it is known where it is. Real: of 48
defective cells, drawn at random, the defects of 36 are marked by eye: by an AI model, not by an
expert, beside the cells' quotients with their module's median and before any map was seen. In the
others nothing could be marked with confidence, so these are the defects that are easy to see. A
map hits where its highest place, after smoothing, is at most `NEAR` from the defect (the pointing
game: Zhang et al. 2016, arXiv 1608.00507). Beside it stand a place drawn at random, which hits by
the size of the defect alone, and the image's centre.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from stages.core.dataset.data import Dataset
from stages.core.nets.evidence import Evidence
from stages.core.nets.files import load_net
from tests.benchmarks.project import default_run
from tests.benchmarks.record import Result

STUDENT = Path("data/models/refined")
Mask = NDArray[np.bool_]
# As shares of the image's side: how near is a hit, and the box that maps are smoothed with.
NEAR, SMOOTH = 0.05, 0.05
# A planted crack: grey values are multiplied by this; its width as a share of the side.
DARKNESS, WIDTH = 0.5, 0.015
# By file: outlines of areas, and lines; points in percent of the side, from the upper left.
DEFECTS = Path(__file__).with_name("defects.json")


def crack(px: int, draws: np.random.Generator) -> Mask:
    """A jagged line of eight pieces, half as long as the side or longer."""
    at, way = draws.uniform(0.2, 0.8, 2) * px, draws.uniform(0, 2 * np.pi)
    points = [tuple(at)]
    for _ in range(8):
        way += draws.normal(0, 0.5)
        at = (at + draws.uniform(0.06, 0.12) * px * np.array([np.cos(way), np.sin(way)])).clip(
            0, px
        )
        points.append(tuple(at))
    image = Image.new("1", (px, px))
    ImageDraw.Draw(image).line(points, fill=1, width=max(round(WIDTH * px), 2))
    return np.asarray(image)


def marked(defects: dict[str, list[list[list[int]]]], px: int) -> Mask:
    """What `DEFECTS` says of one cell, as a mask (P, P); lines as wide as planted cracks."""
    image = Image.new("1", (px, px))
    draw = ImageDraw.Draw(image)
    for kind, shapes in defects.items():
        for shape in shapes:
            points = [(x * px / 100, y * px / 100) for x, y in shape]
            if kind == "areas":
                draw.polygon(points, fill=1)
            else:
                draw.line(points, fill=1, width=max(round(WIDTH * px), 2))
    return np.asarray(image)


def hit(point: tuple[int, int], mask: Mask, px: int) -> bool:
    """Whether a place is at most `NEAR` from the defect."""
    return bool(ndimage.distance_transform_edt(~mask)[point] <= NEAR * px)


def judge(
    maps: NDArray[np.float32], masks: list[Mask], draws: np.random.Generator
) -> dict[str, float]:
    """Percentage of hits of the maps (N, S, S), of random places, and of the centre."""
    px = len(masks[0])
    hits: dict[str, list[bool]] = {"evidence": [], "random": [], "centre": []}
    for values, mask in zip(maps, masks, strict=True):
        scale = px // len(values)
        fine = ndimage.uniform_filter(values.repeat(scale, 0).repeat(scale, 1), SMOOTH * px)
        row, column = np.unravel_index(int(fine.argmax()), fine.shape)
        hits["evidence"].append(hit((int(row), int(column)), mask, px))
        for _ in range(20):
            hits["random"].append(hit(tuple(draws.integers(0, px, 2)), mask, px))
        hits["centre"].append(hit((px // 2, px // 2), mask, px))
    return {name: 100 * float(np.mean(each)) for name, each in hits.items()}


def evidence_for_a_defect(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Maps (N, S, S) of what speaks for the last class and against the first."""
    explain = Evidence(load_net(STUDENT))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), 64):
            both = explain(torch.from_numpy(images[start : start + 64])).numpy()
            parts.append(both[:, 1] - both[:, 0])
    return np.concatenate(parts)


def planted(data: Dataset, draws: np.random.Generator) -> tuple[NDArray[np.uint8], list[Mask]]:
    """The test split's functional cells, each with a crack."""
    rows = data.rows("test")[data.labels[data.rows("test")] == 0]
    images, masks = data.pixels[rows].copy(), [crack(data.image_px, draws) for _ in rows]
    for image, mask in zip(images, masks, strict=True):
        image[mask] = (DARKNESS * image[mask]).astype(np.uint8)
    return images, masks


def real(data: Dataset) -> tuple[NDArray[np.uint8], list[Mask]]:
    """The test split's defective cells whose defects are marked."""
    defects = json.loads(DEFECTS.read_text())
    rows = [row for row in data.rows("test") if data.files[row] in defects]
    return data.pixels[rows], [marked(defects[data.files[row]], data.image_px) for row in rows]


def run(work: Path, scale: float) -> Iterator[Result]:
    """Point at planted and at real defects."""
    data, draws = default_run(), np.random.default_rng(0)
    for kind, (images, masks) in (("planted", planted(data, draws)), ("real", real(data))):
        count = max(round(scale * len(images)), 1)
        shares = judge(evidence_for_a_defect(images[:count]), masks[:count], draws)
        for name, share in shares.items():
            what = f"{count} test cells with a {kind} defect: {name} points at it"
            yield Result(f"pointing_{kind}_{name}", what, [share], unit="%")
