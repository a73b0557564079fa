"""A sheet of images, a row for each class."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from chapbook.core.io import write_atomic

GAP, LEAST = 1, 56  # pixels between images, and how wide an image is drawn at least


def write_sheet(
    path: str | Path,
    images: Float[np.ndarray, "n height width channels"],
    classes: Int[np.ndarray, " n"],
) -> None:
    """Writes images as one picture, each stretched to its own darkest and brightest value.

    Args:
        path: The picture; its suffix names the format.
        images: Of one or three channels.
        classes: Of each; a class has a row of its own, in which it goes on.
    """
    from PIL import Image

    height, width, channels = images.shape[1:]
    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    pixels = ((images - low) / np.where(high > low, high - low, 1) * 255).round().astype(np.uint8)
    if channels != 3:
        pixels = np.repeat(pixels[..., :1], 3, -1)
    each = [np.flatnonzero(classes == one) for one in np.unique(classes)]
    shape = (len(each) * (height + GAP) + GAP, max(map(len, each)) * (width + GAP) + GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    for row, places in enumerate(each):
        for column, place in enumerate(places):
            y, x = GAP + row * (height + GAP), GAP + column * (width + GAP)
            sheet[y : y + height, x : x + width] = pixels[place]
    scale = max(1, -(-LEAST // width))
    picture = Image.fromarray(sheet).resize(
        (shape[1] * scale, shape[0] * scale), Image.Resampling.NEAREST
    )
    write_atomic(path, lambda part: picture.save(part, format=Path(path).suffix[1:] or "png"))
