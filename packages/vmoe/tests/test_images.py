"""Every kind of image file becomes upright RGB of 8 bits, and what is no image is named."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from chapbook.core.errors import Error
from chapbook.vmoe.images import ORIENTATION, decode

RED, TEAL = (200, 30, 60), (10, 120, 140)
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def encoded(image, kind="png", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_rgb_is_read_as_it_is():
    found = decode(encoded(Image.fromarray(PHOTO)))
    np.testing.assert_array_equal(found.pixels, PHOTO)
    assert found.converted == ()
    assert found.pixels.flags.writeable


def test_files_and_bytes_are_read_alike(tmp_path):
    (tmp_path / "photo.webp").write_bytes(encoded(Image.fromarray(PHOTO), "webp", lossless=True))
    np.testing.assert_array_equal(decode(tmp_path / "photo.webp").pixels, PHOTO)


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("1", "png"), ("L", "jpeg")])
def test_grey_is_in_all_three_channels(mode, kind):
    found = decode(encoded(Image.new(mode, (4, 3), 255), kind))
    np.testing.assert_array_equal(found.pixels, np.full((3, 4, 3), 255))
    assert found.converted == ("grey",)


def test_palettes_are_looked_up():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *TEAL])
    image.putdata([0, 1])
    found = decode(encoded(image))
    np.testing.assert_array_equal(found.pixels, [[RED, TEAL]])
    assert found.converted == ("palette",)


def test_cmyk_is_converted():
    found = decode(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "tiff"))
    np.testing.assert_array_equal(found.pixels, np.full((4, 4, 3), (255, 0, 0)))
    assert found.converted == ("CMYK",)


def test_what_is_transparent_is_white():
    pixels = np.array([[[*RED, 255], [*RED, 0], [0, 0, 0, 51]]], np.uint8)
    found = decode(encoded(Image.fromarray(pixels, "RGBA")))
    np.testing.assert_array_equal(found.pixels, [[RED, (255, 255, 255), (204, 204, 204)]])
    assert found.converted == ("transparent",)


def test_a_transparent_colour_of_a_palette_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *TEAL])
    image.putdata([0, 1])
    found = decode(encoded(image, transparency=1))
    np.testing.assert_array_equal(found.pixels, [[RED, (255, 255, 255)]])
    assert found.converted == ("palette", "transparent")


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_of_sixteen_bits_the_upper_eight_are_kept(kind):
    deep = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    found = decode(encoded(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(found.pixels[..., 0], [[0, 0, 1, 156, 255]])
    assert found.converted == ("grey", "16-bit")


def test_sixteen_bits_in_colour_are_told():
    # Pillow writes no such file: a PNG by hand, of one pixel.
    import struct
    import zlib

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">3H", 0x1234, 0x5678, 0xFFFF)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    found = decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    np.testing.assert_array_equal(found.pixels, [[[0x12, 0x56, 0xFF]]])
    assert found.converted == ("16-bit",)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, PHOTO), (2, PHOTO[:, ::-1]), (3, PHOTO[::-1, ::-1]), (6, np.rot90(PHOTO, -1)),
     (8, np.rot90(PHOTO))],
)  # fmt: skip
def test_photographs_are_turned_upright(orientation, upright):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = decode(encoded(Image.fromarray(PHOTO), exif=exif))
    np.testing.assert_array_equal(found.pixels, upright)
    assert found.converted == (("rotated",) if orientation > 1 else ())


def test_sixteen_bits_are_turned_upright_too():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    deep = (PHOTO[..., 0].astype(np.uint16)) << 8
    found = decode(encoded(Image.fromarray(deep), exif=exif))
    np.testing.assert_array_equal(found.pixels[..., 0], np.rot90(PHOTO[..., 0], -1))
    assert set(found.converted) == {"grey", "16-bit", "rotated"}


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, TEAL)]
    content = encoded(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True)
    found = decode(content)
    np.testing.assert_array_equal(found.pixels, np.full((4, 4, 3), RED))
    assert found.converted == ("animated",)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "gif", "bmp"])
def test_a_truncated_file_is_named(tmp_path, kind):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(encoded(large, kind)[:-1000])
    with pytest.raises(Error, match=rf"cut\.{kind}: not "):
        decode(path)


def test_what_is_no_image_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no image")
    with pytest.raises(Error, match=r"notes\.png: not an image of a known format"):
        decode(path)
    with pytest.raises(Error, match=r"gone\.png: no such file"):
        decode(tmp_path / "gone.png")
    with pytest.raises(Error, match="row 3: not an image"):
        decode(b"", "row 3")


def test_pixels_of_32_bits_are_refused():
    with pytest.raises(Error, match=r"deep: .*32 bits; save it with 8 or 16"):
        decode(encoded(Image.new("F", (2, 2)), "tiff"), "deep")
