"""Images divided by their background: one rule for validation and for the exported network."""

from typing import Any

# What is as bright as its background becomes this grey. A background of this grey changes nothing.
FLAT = 128
# A darker background counts as this: dividing by less would blow up the noise of dark pixels.
DARKEST = 16


def divided(images: Any, backgrounds: Any) -> Any:
    """Images divided by their backgrounds: floats of 0 to 255, whose whole part is the pixel.

    That is FLAT * image / background, rounded, and 255 at most. It never lies halfway between two
    pixels, since no background is a multiple of 256, but at least 1 / 510 from there: so any
    float32 arithmetic gives the same pixels.

    Args:
        images, backgrounds: float32, 0 to 255: arrays of numpy, or tensors of PyTorch.
    """
    return (FLAT * images / backgrounds.clip(DARKEST, 255) + 0.5).clip(0, 255)
