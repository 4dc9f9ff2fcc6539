"""BatchNorm that keeps its statistics, folded into the convolution before it while they learn.

With fixed statistics it is a linear function per channel, so both are one convolution with
weights W g / s and bias b + (c - m) g / s, for BatchNorm's weight g, bias b, mean m and deviation
s, and the convolution's own bias c. That is computed in every step, so W, g, b and c learn as
before, but the activations are passed over once instead of twice (the Tune mode of You et al.
2024, arXiv 2305.11624).
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.nets.net import Net

# The `forward` of any other class may do more.
CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)

# Rounding of float64 is far below this share of the largest feature; a wrong fold is far above it.
TOLERANCE = 1e-6

Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]


def _convolve(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What `norm(conv(x))` is before an activation of the norm's own."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    slope = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    weight, bias = conv.weight * slope.view(-1, 1, 1, 1), norm.bias - mean * slope
    how = (conv.stride, conv.padding, conv.dilation, conv.groups)
    run: Any = conv2d_same if isinstance(conv, Conv2dSame) else F.conv2d
    output: Tensor = run(x, weight, bias, *how)
    return output


def _activate(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What is left of `norm`."""
    if not isinstance(norm, BatchNormAct2d):
        return x
    output: Tensor = norm.act(norm.drop(x))
    return output


@contextlib.contextmanager
def folded(pairs: Pairs) -> Iterator[None]:
    """Fold, as long as this lasts, those of the pairs whose BatchNorm keeps its statistics now."""
    now = [(conv, norm) for conv, norm in pairs if not norm.training]
    for conv, norm in now:
        conv.__dict__["forward"] = partial(_convolve, conv, norm)
        norm.__dict__["forward"] = partial(_activate, norm)
    try:
        yield
    finally:
        for module in (module for pair in now for module in pair):
            module.__dict__.pop("forward", None)


def pairs(net: Net) -> Pairs:
    """Convolutions of a network with the BatchNorm that alone sees their output.

    Empty when folding all of them would change what the network computes. The network is left in
    evaluation mode.
    """
    net.eval()
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: Pairs = []

    def leave(conv: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        outputs[id(out)] = (conv, out)

    def enter(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], norm))

    hooks = []
    for module in net.backbone.modules():
        if type(module) in CONVOLUTIONS and module.padding_mode == "zeros":
            hooks.append(module.register_forward_hook(leave))
        elif type(module) in NORMS and module.affine and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(enter))
    spec = net.spec
    shape = (2, spec.image_px, spec.image_px, spec.channels)
    always = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=always).to(net.mean.device)
    net.double()
    with torch.inference_mode():
        expected = net.features(images)
        for hook in hooks:
            hook.remove()
        with folded(pairs):
            same = net.features(images)
    net.float()
    apart = (same - expected).abs().max()
    return pairs if apart <= TOLERANCE * expected.abs().max() else []
