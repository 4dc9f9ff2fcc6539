"""Networks: a backbone cut where the task wants it, statistics of its feature maps, a linear head.

The head reads mean, standard deviation and maximum of several feature maps: early ones hold
the texture that defects are made of, late ones the shape, and small data favours reading both.
Every network takes raw images, uint8 (B, P, P, C), so what is trained is what is exported.
"""

from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from pydantic import BaseModel, ConfigDict
from timm.models import group_parameters
from timm.models._efficientnet_builder import BN_EPS_TF_DEFAULT
from timm.models.efficientnet import _gen_efficientnet_lite
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stages.core.dataset.data import Dataset
from stages.core.nets.weights import Weights, at_this_size, select_weights
from stages.core.runner import processes
from stages.core.runner.errors import ParamsError, Unavailable


class NetSpec(BaseModel):
    """All that is needed to build a network again; `config.json` of a model folder.

    Attributes:
        backbone: name in timm.
        width, depth: of the backbone's channels and blocks, as shares of timm's own.
        out_indices: of the backbone's feature maps that the head reads, as in timm; the deepest
            ends the network.
        classes: names, in the order of the logits.
        image_px, channels: the images that go in.
        reduce: the image is averaged over reduce x reduce pixels at the door.
        mean, std: of RGB values in 0 to 1, as the backbone was pretrained with.
        frozen_statistics: whether BatchNorm keeps its statistics in training.
    """

    model_config = ConfigDict(frozen=True)

    backbone: str
    width: float
    depth: float
    out_indices: list[int]
    classes: list[str]
    image_px: int
    channels: int
    reduce: int
    mean: list[float]
    std: list[float]
    frozen_statistics: bool = True


# timm's own channel and depth multipliers of the one family that can be made thinner here.
LITE = {
    "tf_efficientnet_lite0": (1.0, 1.0),
    "tf_efficientnet_lite1": (1.0, 1.1),
    "tf_efficientnet_lite2": (1.1, 1.2),
    "tf_efficientnet_lite3": (1.2, 1.4),
    "tf_efficientnet_lite4": (1.4, 1.8),
}


def _backbone(spec: NetSpec) -> Any:
    how: dict[str, Any] = {
        "features_only": True, "feature_cls": "getter", "out_indices": spec.out_indices,
    }  # fmt: skip
    config = timm.models.get_pretrained_cfg(spec.backbone, allow_unregistered=False)
    if config is not None and config.fixed_input_size:
        how["img_size"] = spec.image_px // spec.reduce
    if spec.width == spec.depth == 1:
        return timm.create_model(spec.backbone, **how)
    if spec.backbone not in LITE:
        raise ParamsError(
            f"backbone {spec.backbone!r}: width {spec.width:g}, depth {spec.depth:g}: only "
            f"{', '.join(LITE)} can be made thinner; set both to 1"
        )
    width, depth = LITE[spec.backbone]
    # timm's public name takes no multipliers; its builder is pinned with timm's version.
    return _gen_efficientnet_lite(
        spec.backbone,
        channel_multiplier=width * spec.width,
        depth_multiplier=depth * spec.depth,
        bn_eps=BN_EPS_TF_DEFAULT,
        pad_type="same",
        **how,
    )


# The square root's slope at 0 is infinite: a dead channel must not become NaN.
VARIANCE_FLOOR = 1e-5


def statistics(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 3 C): mean, deviation and maximum over the image."""
    mean = feature_map.mean((2, 3))
    variance = (feature_map - mean[:, :, None, None]).square().mean((2, 3))
    return torch.cat([mean, (variance + VARIANCE_FLOOR).sqrt(), feature_map.amax((2, 3))], 1)


def _chain(backbone: Any) -> list[tuple[str, nn.Module]]:
    """The modules of a timm feature network, if running them in turn is what it does, else []."""
    outputs = backbone.feature_info.module_name()
    parents = {name.rpartition(".")[0] for name in outputs} - {""}
    links: list[tuple[str, nn.Module]] = []
    for name, child in backbone.model.named_children():
        if name in parents:
            links += [(f"{name}.{inner}", module) for inner, module in child.named_children()]
        else:
            links.append((name, child))
    names = [name for name, _ in links]
    if outputs[-1] not in names:
        return []
    links = links[: names.index(outputs[-1]) + 1]
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.inference_mode():
            example = torch.rand(1, 3, 64, 64, device=next(backbone.parameters()).device)
            expected, actual, x = backbone(example), [], example
            for name, module in links:
                x = module(x)
                # A copy: what follows may work in place.
                actual += [x.clone()] if name in outputs else []
        same = all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    except (RuntimeError, ValueError, TypeError, AssertionError):
        same = False
    finally:
        for module, training in modes.items():
            module.training = training
    return links if same else []


@dataclass(frozen=True)
class Activations:
    """What a network's lowest links make of a batch of images; the others go on from there.

    Attributes:
        maps: (B, C, H, W), of the last of these links.
        pooled: (B, F0), the statistics of the feature maps among them.
        links: how many links these are.
    """

    maps: Tensor
    pooled: Tensor
    links: int


class Net(nn.Module):
    """Images to float (B, K) logits: uint8 (B, P, P, C), or what its lowest links make of them.

    Attributes:
        frozen_statistics: BatchNorm keeps its running statistics in training. The pretrained ones
            are far from these images' (cosine 0.19 on ELPV), and training with batch statistics
            loses what the weights know. Without pretrained weights there is nothing to lose.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetSpec, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.frozen_statistics = spec.frozen_statistics
        self.backbone = _backbone(spec)
        self._links: list[tuple[str, nn.Module]] | None = None
        self.head = Head(3 * sum(self.backbone.feature_info.channels()), len(spec.classes), dropout)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, P, P, C) to normalised float (B, 3, P / reduce, P / reduce)."""
        x = images.permute(0, 3, 1, 2).float() / 255
        if self.spec.reduce > 1:
            x = nn.functional.avg_pool2d(x, self.spec.reduce)
        return (x - self.mean) / self.std

    def features(self, inputs: Tensor | Activations) -> Tensor:
        """Images to float (B, F): mean, deviation and maximum of each feature map."""
        if isinstance(inputs, Activations):
            _, rest = self._run(inputs.maps, self.links()[inputs.links :])
            return torch.cat([inputs.pooled, rest], 1)
        x = self.prepare(inputs).contiguous(memory_format=torch.channels_last)
        return torch.cat([statistics(feature_map) for feature_map in self.backbone(x)], 1)

    def links(self) -> list[tuple[str, nn.Module]]:
        """The backbone as a chain of modules, up to the deepest feature map that the head reads.

        Empty when its children, run one after the other, do not give its features (transformers).
        """
        if self._links is None:
            self._links = _chain(self.backbone)
        return self._links

    def freezes(self) -> bool:
        """Whether a part of the backbone does not learn."""
        return not all(p.requires_grad for p in self.backbone.parameters())

    def frozen_links(self) -> int:
        """How many of the lowest links do not learn."""
        learn = [any(p.requires_grad for p in m.parameters()) for _, m in self.links()]
        return learn.index(True) if True in learn else len(learn)

    def lowest(self, images: Tensor, links: int) -> Activations:
        """What the lowest `links` links make of images, uint8 (B, P, P, C)."""
        x = self.prepare(images).contiguous(memory_format=torch.channels_last)
        return Activations(*self._run(x, self.links()[:links]), links)

    def _run(self, x: Tensor, links: list[tuple[str, nn.Module]]) -> tuple[Tensor, Tensor]:
        outputs = self.backbone.feature_info.module_name()
        pooled = [x.new_empty(len(x), 0)]
        for name, module in links:
            x = module(x)
            if name in outputs:
                pooled.append(statistics(x))
        return x, torch.cat(pooled, 1)

    def forward(self, inputs: Tensor | Activations) -> Tensor:
        logits: Tensor = self.head(self.features(inputs))
        return logits

    def train(self, mode: bool = True) -> "Net":
        """As always, but for `frozen_statistics`; a frozen BatchNorm keeps its own anyway."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
                self.frozen_statistics or not any(p.requires_grad for p in module.parameters())
            ):
                module.eval()
        return self

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """The backbone's parameters from the image upwards, in timm's groups (stem, stages ...)."""
        model = self.backbone.model
        named = dict(model.named_parameters())
        groups = group_parameters(model, model.group_matcher(coarse=True))
        present = [[named[n] for n in names if n in named] for _, names in sorted(groups.items())]
        return [group for group in present if group]

    def freeze_lowest(self, groups: int) -> None:
        """Stop the lowest layer groups from learning, and those alone. Raises: ParamsError."""
        there = self.layer_groups()
        if groups > len(there):
            raise ParamsError(
                f"frozen_groups = {groups}: {self.spec.backbone} up to stage "
                f"{self.spec.out_indices[-1]} has {len(there)} layer groups"
            )
        for number, group in enumerate(there):
            for parameter in group:
                parameter.requires_grad_(number >= groups)


class Ensemble(nn.Module):
    """Several networks as one: its logits are the mean of theirs."""

    def __init__(self, members: list[Net]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.spec = members[0].spec

    def each(self) -> list[Net]:
        """The networks."""
        return [cast(Net, member) for member in self.members]

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


AnyNet = Net | Ensemble


class Dropout(nn.Dropout):
    """Dropout whose draws do not depend on how many processes share the batch, nor on the device.

    They are the CPU's, for the whole batch; each process takes those of its own share.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, F)."""
        if not self.training or not self.p:
            return x
        whole = (
            torch.empty(len(x) * processes.size(), *x.shape[1:])
            .bernoulli_(1 - self.p)
            .div_(1 - self.p)
        )
        return x * whole[processes.rank() :: processes.size()].to(x.device)


class Head(nn.Module):
    """Standardise with fixed statistics, then a linear layer that starts at zero."""

    def __init__(self, features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(features, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    mean: Tensor
    std: Tensor

    def standardize(self, features: Tensor) -> Tensor:
        """(B, F) to (B, F) with mean 0 and deviation 1 on the images that `fit` has seen."""
        return (features - self.mean) / self.std

    def fit_statistics(self, features: Tensor) -> None:
        """Take mean and deviation from (N, F) features of the training images."""
        self.mean.copy_(features.mean(0))
        # A channel that hardly varies in training must not be blown up on other images.
        self.std.copy_(features.std(0).clamp_min(1e-3))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(self.standardize(features)))
        return logits


def build(
    backbone: str,
    weights: Weights | None,
    *,
    out_indices: list[int],
    data: Dataset,
    width: float = 1.0,
    depth: float = 1.0,
    reduce: int = 1,
    dropout: float = 0.0,
) -> Net:
    """A network for `data` whose backbone starts from the given weights (see weights.py).

    A thinner or shallower backbone takes a selection of the whole one's weights. Without weights,
    or with a selection, BatchNorm learns its statistics in training.

    Returns: the network in evaluation mode: a forward pass changes nothing in it.

    Raises: ParamsError, Unavailable.
    """
    if out_indices != sorted(set(out_indices)) or out_indices[0] < 0:
        raise ParamsError(
            f"out_indices = {out_indices}: expected indices from 0 on, in rising order"
        )
    config = timm.models.get_pretrained_cfg(backbone)
    whole = width == depth == 1
    spec = NetSpec(
        backbone=backbone,
        width=width,
        depth=depth,
        out_indices=out_indices,
        classes=data.classes,
        image_px=data.image_px,
        channels=data.channels,
        reduce=reduce,
        mean=list(config.mean),
        std=list(config.std),
        frozen_statistics=whole and weights is not None,
    )
    try:
        net = Net(spec, dropout=dropout)
        net.layer_groups()
    except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
        raise ParamsError(
            f"backbone {backbone!r}, out_indices {out_indices}: timm does not give these feature "
            f"maps, or no layer groups that could be frozen ({error})"
        ) from error
    if weights is not None:
        target_state = net.backbone.model.state_dict()
        weights = at_this_size(weights, target_state, net.backbone.model)
        for name, tensor in target_state.items():
            shape = tuple(weights[name].shape) if name in weights else "nothing"
            if shape == "nothing" or (whole and shape != tuple(tensor.shape)):
                raise Unavailable(
                    f"weights for {backbone}: {name} is {shape}, expected {tuple(tensor.shape)}: "
                    f"the state dict of timm's {backbone}"
                )
        start = weights if whole else select_weights(weights, target_state)
        net.backbone.model.load_state_dict({name: start[name] for name in target_state})
    return net.to(memory_format=torch.channels_last).eval()


def count_macs(net: Net) -> int:
    """Multiply-accumulates of one image, convolutions and matrix products counted by PyTorch."""
    spec = net.spec
    image = torch.zeros(
        1, spec.image_px, spec.image_px, spec.channels, dtype=torch.uint8, device=net.mean.device
    )
    net.eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(image)
    return int(counter.get_total_flops()) // 2


def count_parameters(net: nn.Module) -> int:
    """Number of weights, frozen ones included."""
    return sum(p.numel() for p in net.parameters())
