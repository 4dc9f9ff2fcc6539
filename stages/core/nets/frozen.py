"""Runs frozen layers over many images: in ONNX Runtime on a CPU, which is three times as fast."""

import torch
from torch import Tensor, nn

from stages.core.nets import onnx_run
from stages.core.nets.onnx_export import as_model
from stages.core.nets.onnx_run import INPUTS

# Fewer images do not make up for the seconds that the export takes.
WORTH = 2000
ORT = f"onnxruntime {onnx_run.VERSION}"


def engine(device: torch.device, images: int) -> str:
    """The engine for a module on `device`, by the number of images that it is going to see."""
    return ORT if device.type == "cpu" and images >= WORTH else "torch"


class Frozen:
    """A module in evaluation mode, its weights as they are now; engines agree up to rounding."""

    def __init__(self, module: nn.Module, example: Tensor, *, images: int) -> None:
        """Prepare it.

        Args:
            module: uint8 images (B, P, P, C) to a tuple of tensors (B, ...).
            example: two such images, wherever they are.
            images: how many it is going to see.

        Raises: ParamsError when the module cannot be exported.
        """
        self._module, self._session = module.eval(), None
        self._device = next(module.parameters()).device
        if engine(self._device, images) == ORT:
            model = as_model(module, example).SerializeToString()
            threads = torch.get_num_threads()
            self._session = onnx_run.session(model, "cpu", threads=threads)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """What the module makes of images (B, P, P, C), wherever they are; on its own device."""
        if self._session is None:
            with torch.inference_mode():
                return list(self._module(images.to(self._device)))
        return [torch.from_numpy(x) for x in self._session.run(None, {INPUTS[0]: images.numpy()})]
