from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.core.nets.faster import faster
from stages.core.nets.onnx_export import as_model, released
from stages.core.nets.onnx_run import OUTPUT, session
from tests.helpers import exported

pytestmark = pytest.mark.usefixtures("one_thread")


def answers(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    running = session(model.SerializeToString(), "cpu", threads=1)
    output: NDArray[np.float32] = running.run(None, {"images": images})[0]
    return output


@pytest.mark.parametrize(("channels", "means"), [(1, 0.5), (1, None), (3, 0.5), (3, None)])
def test_fewer_passes_and_the_same_answers(channels: int, means: float | None) -> None:
    net = exported.net(channels)
    if means is None:  # ImageNet's, which differ by channel
        net.mean.copy_(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        net.std.copy_(torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
    example = torch.zeros(2, 64, 64, channels, dtype=torch.uint8)
    before = as_model(released(net, 1.0, None), example, outputs=[OUTPUT])
    after = faster(before)
    counts = [Counter(node.op_type for node in model.graph.node) for model in (before, after)]
    assert (counts[0]["Pow"], counts[1]["Pow"], counts[1]["Mul"]) == (3, 0, counts[0]["Mul"] + 3)
    assert counts[0]["Div"] - counts[1]["Div"] == 2
    first = next(node for node in after.graph.node if node.op_type == "Conv")
    weight = next(i for i in after.graph.initializer if i.name == first.input[1])
    assert weight.dims[1] == (1 if channels == 1 and means else 3)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, channels), dtype=np.uint8)
    np.testing.assert_allclose(answers(after, images), answers(before, images), atol=1e-6)


class Grouped(nn.Module):
    """A convolution whose channels are apart: what goes into each is scaled for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, groups=3)

    def forward(self, images: Tensor) -> Tensor:
        mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
        x = images.permute(0, 3, 1, 2).float() / 255
        output: Tensor = self.conv((x - mean) / (2 * mean)).mean((2, 3))
        return output


def test_what_does_not_fit_stays() -> None:
    example = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    before = as_model(Grouped().eval(), example)
    after = faster(before)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(answers(after, images), answers(before, images))
