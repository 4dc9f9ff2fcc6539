"""What no longer learns, over many images: on a CPU, ONNX Runtime takes a third of the time."""

import numpy as np
import torch
from torch import Tensor, nn

from stages.core import onnx_run
from stages.core.onnx_export import INPUT, as_model

# Fewer images do not make up for the seconds that the export takes.
WORTH = 2000


class Frozen:
    """A module in evaluation mode, its weights as they are now.

    Both engines agree up to rounding; which one runs depends on nothing but device and number.
    """

    def __init__(self, module: nn.Module, example: Tensor, *, images: int) -> None:
        """Prepare it.

        Args:
            module: uint8 images (B, P, P, C) to a tuple of tensors (B, ...).
            example: two such images, on the module's device.
            images: how many it is going to see.
        """
        self._module, self._device = module.eval(), example.device
        self._session = None
        if self._device.type == "cpu" and images >= WORTH:
            self._session = onnx_run.session(
                as_model(module, example).SerializeToString(),
                "cpu",
                threads=torch.get_num_threads(),
            )

    def __call__(self, images: Tensor) -> list[Tensor]:
        """What the module makes of images (B, P, P, C), wherever they are; on its own device."""
        if self._session is None:
            with torch.inference_mode():
                return list(self._module(images.to(self._device)))
        found = self._session.run(None, {INPUT: images.numpy()})
        return [torch.from_numpy(np.asarray(x)) for x in found]
