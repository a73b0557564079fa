"""One image, from a file or from encoded bytes, as RGB pixels of 8 bits.

Notable choices:

- What is no such image is converted, and the kinds of conversion are told, so that a reader can
  count them: the same photograph in grey or turned on its side is other data to a model.
- Transparent pixels are shown on white; of an animation, the first frame is taken.
- Of 16 bits, the upper 8 are kept, as Pillow does in colour. Pixels of 32 bits have no scale that
  a file tells, and are refused.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from chapbook.core.errors import Error

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
GREY = ("1", "L", "LA", "La")
WIDE = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image, and what had to be done to it.

    Attributes:
        pixels: RGB.
        converted: Kinds of conversion: `grey`, `palette`, `CMYK` or another colour space,
            `transparent`, `16-bit`, `rotated`, `animated`; none for an upright RGB image.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    converted: tuple[str, ...]


def decode(content: Path | bytes, place: str | None = None) -> Decoded:
    """Reads one image.

    Args:
        content: The file, or its bytes.
        place: What an error calls it; the path if None.

    Raises:
        Error: There is no such file, or it is damaged, cut off or no image; with the place.
    """
    place = place or (str(content) if isinstance(content, Path) else "the image")
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as image:
            made, converted = _rgb(image)
            return Decoded(np.array(made), converted)
    except MemoryError:
        raise
    except FileNotFoundError:
        raise Error(f"{place}: no such file") from None
    except UnidentifiedImageError:
        raise Error(f"{place}: not an image of a known format") from None
    except Exception as problem:  # a damaged file raises errors of many kinds
        raise Error(f"{place}: not a readable image ({problem})") from None


def _rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Returns an opened image as RGB, and the kinds of conversion."""
    mode = image.mode
    wide = mode == "I" and image.format in ("PNG", "PPM")  # so older Pillows call 16 bits
    if mode in ("I", "F") and not wide:
        raise ValueError("its pixels have 32 bits; save it with 8 or 16")
    transparent = mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    kinds = {
        "grey": mode in GREY or mode in WIDE or wide,
        "palette": mode in ("P", "PA"),
        mode: mode in ("CMYK", "YCbCr", "LAB", "HSV"),
        "transparent": transparent,
        # The decoder's name for the raw pixels, which is gone once they are loaded.
        "16-bit": mode in WIDE or wide or ";16" in str(getattr(image, "tile", "")),
        "rotated": image.getexif().get(ORIENTATION, 1) in range(2, 9),
        "animated": getattr(image, "is_animated", False),
    }
    image.load()
    upright = ImageOps.exif_transpose(image)
    if mode in WIDE or wide:
        upright = Image.fromarray((np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8))
    if transparent:
        over = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return upright.convert("RGB"), tuple(kind for kind, found in kinds.items() if found)
