"""Random changes of images in training: on the host by Pillow, pairs mixed on the device.

Notable choices:

- An operation takes an image of 8 bits and a NumPy generator to the changed image. Generators come
  from `chapbook.core.data.Batches`, one for each (seed, epoch, image): a resumed run sees the same
  images as one that was never stopped.
- RandAugment has the sixteen operations and ranges of the V-MoE paper's code. Distances that are
  pixels there, where images have 224, are shares of the image's size here.
- Pixels that come from beyond the border are grey in RandAugment, so that levels stay in the
  middle, and copies of the border in `RandomShift`, whose images have plain borders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from PIL import Image, ImageEnhance, ImageOps

from chapbook.core.data import Map
from chapbook.core.errors import Error

Pixels = UInt8[np.ndarray, "height width 3"]
Square = UInt8[np.ndarray, "size size 3"]
Operation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

GREY = (128, 128, 128)
TRIES = 10  # of a random crop, before the greatest one that fits


def augment(*operations: Operation) -> Map:
    """Returns a map for `Batches` that applies operations to an example's `image`, in order.

    Args:
        operations: From this module, or any function of an image and a generator.
    """

    def apply(example: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        image = example["image"]
        for operation in operations:
            image = operation(image, generator)
        return {**example, "image": image}

    return apply


@dataclass(frozen=True)
class CentralCrop:
    """The middle square, after the shorter side was made `zoom * size` pixels long.

    An image that has the size already stays as it is if zoom is 1.

    Args:
        size: Pixels of the square's side.
        zoom: 256 / 224 for the released models' evaluations.
    """

    size: int
    zoom: float = 1.0

    def __post_init__(self):
        if self.size < 1 or self.zoom < 1:
            raise Error(f"a crop of size={self.size}, zoom={self.zoom} is none; both are 1 or more")

    def __call__(self, image: Pixels, generator: np.random.Generator | None = None) -> Square:
        """Returns the crop; the generator is not used."""
        height, width = image.shape[:2]
        side = min(height, width) / self.zoom
        left, top = (width - side) / 2, (height - side) / 2
        return _resized(image, (left, top, left + side, top + side), self.size)


@dataclass(frozen=True)
class InceptionCrop:
    """A random part of the image, of random shape, as a square.

    Its area is a share of the image's drawn from U(least, 1), its width over its height from
    exp(U(-log(4/3), log(4/3))).

    Args:
        size: Pixels of the square's side.
        least: The smallest share; 0.05 for the released models.

    Reference:
        Szegedy et al., "Going Deeper with Convolutions" (2015), section 6.
    """

    size: int
    least: float = 0.05

    def __post_init__(self):
        if self.size < 1 or not 0 < self.least <= 1:
            raise Error(f"an inception crop has a size of 1 or more and a least share of up to 1, "
                        f"not {self.size} and {self.least}")  # fmt: skip

    def __call__(self, image: Pixels, generator: np.random.Generator) -> Square:
        """Returns the crop."""
        height, width = image.shape[:2]
        bound = np.log(4 / 3)
        for _ in range(TRIES):
            area = generator.uniform(self.least, 1) * height * width
            shape = np.exp(generator.uniform(-bound, bound))
            wide, high = (max(round(np.sqrt(each)), 1) for each in (area * shape, area / shape))
            if wide <= width and high <= height:
                left = generator.integers(width - wide, endpoint=True)
                top = generator.integers(height - high, endpoint=True)
                return _resized(image, (left, top, left + wide, top + high), self.size)
        return CentralCrop(self.size)(image)


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors half of the images from left to right, which digits and letters must not be."""

    def __call__(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Returns the image or its mirror image."""
        return np.ascontiguousarray(image[:, ::-1]) if generator.random() < 0.5 else image


@dataclass(frozen=True)
class RandomShift:
    """Shifts an image by whole pixels, each way alike; its border is copied into what is left free.

    Args:
        pixels: The greatest shift along either axis.
    """

    pixels: int = 2

    def __post_init__(self):
        if self.pixels < 0:
            raise Error(f"a shift of at most {self.pixels} pixels is none")

    def __call__(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Returns the shifted image."""
        height, width = image.shape[:2]
        top, left = generator.integers(2 * self.pixels, size=2, endpoint=True)
        room = ((self.pixels, self.pixels), (self.pixels, self.pixels), (0, 0))
        return np.pad(image, room, mode="edge")[top : top + height, left : left + width]


@dataclass(frozen=True)
class RandAugment:
    """Applies `count` operations one after the other, each drawn evenly from `OPERATIONS`.

    Args:
        count: Operations, N.
        magnitude: Their strength, M, from 0 to 30; 10 is the end of AutoAugment's ranges. The
            released models take 10 to 20.

    Reference:
        Cubuk, Zoph, Shlens and Le, "RandAugment" (2020).
    """

    count: int = 2
    magnitude: float = 10.0

    def __post_init__(self):
        if self.count < 0 or not 0 <= self.magnitude <= 30:
            raise Error(f"RandAugment({self.count}, {self.magnitude}) is out of range: it takes 0 "
                        "or more operations of magnitude 0 to 30")  # fmt: skip

    def __call__(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        """Returns the changed image."""
        made = Image.fromarray(image)
        for place in generator.integers(len(OPERATIONS), size=self.count):
            made = list(OPERATIONS.values())[place](made, self.magnitude / 10, generator)
        return np.array(made)


def _resized(image: Pixels, box: tuple[float, float, float, float], size: int) -> Square:
    if box == (0, 0, size, size) and image.shape[:2] == (size, size):
        return image
    found = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.array(found)


Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _enhanced(kind: Callable[[Image.Image], Any]) -> Change:
    """From 0.1, nearly all of the property gone, over 1, unchanged, to 1.9 at magnitude 10."""
    return lambda image, level, _: kind(image).enhance(0.1 + 1.8 * level)


def _either_way(value: float, generator: np.random.Generator) -> float:
    return value if generator.random() < 0.5 else -value


def _moved(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Takes each pixel (x, y) from (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY)


def _rotated(image: Image.Image, level: float, generator: np.random.Generator) -> Image.Image:
    return image.rotate(_either_way(30 * level, generator), fillcolor=GREY)


def _sheared(across: bool) -> Change:
    def change(image: Image.Image, level: float, generator: np.random.Generator) -> Image.Image:
        slope = _either_way(0.3 * level, generator)
        return _moved(image, (1, slope, 0, 0, 1, 0) if across else (1, 0, 0, slope, 1, 0))

    return change


def _translated(across: bool) -> Change:
    def change(image: Image.Image, level: float, generator: np.random.Generator) -> Image.Image:
        share = _either_way(100 / 224 * level, generator)
        width, height = image.size
        moves = (share * width, 0) if across else (0, share * height)
        return _moved(image, (1, 0, moves[0], 0, 1, moves[1]))

    return change


def _cut_out(image: Image.Image, level: float, generator: np.random.Generator) -> Image.Image:
    """Covers a square about a random pixel, as much of it as lies in the image."""
    half = int(40 / 224 * level * min(image.size))
    x, y = (int(generator.integers(each)) for each in image.size)
    covered = image.copy()
    covered.paste(GREY, (max(x - half, 0), max(y - half, 0), x + half, y + half))
    return covered


def _posterized(image: Image.Image, level: float, _: np.random.Generator) -> Image.Image:
    # The code keeps more bits the stronger it is meant to be, and none below magnitude 2.5.
    return ImageOps.posterize(image, min(max(int(4 * level), 1), 8))


def _added(image: Image.Image, level: float, _: np.random.Generator) -> Image.Image:
    """Makes dark pixels brighter."""
    table = [min(value + int(110 * level), 255) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


OPERATIONS: dict[str, Change] = {
    "AutoContrast": lambda image, _level, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _level, _: ImageOps.equalize(image),
    "Invert": lambda image, _level, _: ImageOps.invert(image),
    "Rotate": _rotated,
    "Posterize": _posterized,
    "Solarize": lambda image, level, _: ImageOps.solarize(image, int(256 * level)),
    "Color": _enhanced(ImageEnhance.Color),
    "Contrast": _enhanced(ImageEnhance.Contrast),
    "Brightness": _enhanced(ImageEnhance.Brightness),
    "Sharpness": _enhanced(ImageEnhance.Sharpness),
    "ShearX": _sheared(across=True),
    "ShearY": _sheared(across=False),
    "TranslateX": _translated(across=True),
    "TranslateY": _translated(across=False),
    "Cutout": _cut_out,
    "SolarizeAdd": _added,
}


def mixup(
    images: Float[Array, "batch ..."],
    targets: Float[Array, "batch classes"],
    concentration: float,
    *,
    key: Key[Array, ""],
) -> tuple[Float[Array, "batch ..."], Float[Array, "batch classes"]]:
    """Mixes each image with the next one of the batch, and their targets alike.

    x_i' = a x_i + (1 - a) x_(i+1), with one a = max(b, 1 - b) for the batch, b ~ Beta(c, c):
    a = (1 + sqrt(w / (p + w))) / 2, with w = (1 - p) cos^2(2 pi v), p = u^(1/c), u, v ~ U(0, 1)

    Args:
        images: The batch, x.
        targets: Probabilities of the classes.
        concentration: Both parameters c of the Beta distribution, above 0: near 0 hardly anything
            is mixed, at 1 all shares are equally likely.
        key: Randomness.

    Returns:
        The mixed images and targets. The larger share stays where it was, so that no image is lost.

    Reference:
        Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (2018);
        Bailey, "Polar generation of random variates with the t-distribution" (1994), by which
        T / sqrt(2c + T^2) of Student's T with 2c degrees of freedom is 2b - 1.
    """
    if not concentration > 0:
        raise Error(f"mixup needs a concentration above 0, not {concentration}")
    # As exact as jax.random.beta, whose loops take many seconds to compile.
    bits, turns = jax.random.split(key)
    power = (1 - jax.random.uniform(bits)) ** (1 / concentration)
    wave = (1 - power) * jnp.cos(2 * jnp.pi * jax.random.uniform(turns)) ** 2
    share = (1 + jnp.sqrt(wave / (power + wave))) / 2

    def mixed(x: Array) -> Array:
        a = share.astype(x.dtype)
        return a * x + (1 - a) * jnp.roll(x, -1, axis=0)

    return mixed(images), mixed(targets)
