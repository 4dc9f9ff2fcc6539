"""What becomes of images in use, at stated strengths: another focus, sensor, lamp or file format.

The kinds are those of Hendrycks & Dietterich 2019 (arXiv 1903.12261) that happen to a fixed camera;
the strengths are what a person notices and would still decide by.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

# Deviation of the Gaussian blur, as a share of the image's side.
BLUR = 0.01
# Deviation of the noise, in grey levels of 255; drawn per pixel and channel.
NOISE = 8.0
# Factor of all values; clipped to 0 to 255.
BRIGHTER = 1.25
# Of 100: most programs write 75 and more.
JPEG_QUALITY = 30

# uint8 (B, C, P, P) to the same.
Disturbance = Callable[[Tensor], Tensor]


def _blurred(images: Tensor) -> Tensor:
    deviation = BLUR * images.shape[-1]
    side = 2 * int(np.ceil(3 * deviation)) + 1
    output: Tensor = functional.gaussian_blur(images, [side, side], [deviation, deviation])
    return output


def _noisy(images: Tensor) -> Tensor:
    always = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=always) * NOISE
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def _as_jpeg(images: Tensor) -> Tensor:
    again = []
    for image in images:
        file = io.BytesIO()
        functional.to_pil_image(image).save(file, "JPEG", quality=JPEG_QUALITY)
        again.append(functional.pil_to_tensor(Image.open(file)))
    return torch.stack(again)


DISTURBANCES: dict[str, Disturbance] = {
    "blur": _blurred,
    "noise": _noisy,
    "darker": lambda images: functional.adjust_brightness(images, 1 / BRIGHTER),
    "brighter": lambda images: functional.adjust_brightness(images, BRIGHTER),
    "jpeg": _as_jpeg,
}


def disturbed(images: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Images (B, P, P, C), C being 1 or 3, after one of `DISTURBANCES`."""
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return np.ascontiguousarray(DISTURBANCES[kind](channels_first).permute(0, 2, 3, 1).numpy())
