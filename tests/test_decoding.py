"""Image files of every kind, good and bad, as squares of bytes."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from datamodules.decoding import read_square
from datamodules.errors import ImageError
from tests.picture_files import encoded, picture


def decoded(data, size=4, channels=3):
    return read_square(data, size, channels)


def flat(mode, colour, size=(8, 8), kind="PNG", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def test_central_square_in_channels_rows_columns():
    pixels = np.zeros((30, 10, 3), dtype=np.uint8)
    pixels[10:20] = (10, 20, 30)  # the centre; above it black, below white
    pixels[20:] = 255
    for data in (pixels, pixels.transpose(1, 0, 2)):
        square = decoded(encoded(Image.fromarray(data)), size=10)
        assert square.shape == (3, 10, 10)
        assert square.dtype == np.uint8
        # The filter reaches over the edge of the crop, as that of a resized whole image does.
        assert (square[:, 1:-1, 1:-1] == np.array([10, 20, 30])[:, None, None]).all()


def test_scaling_keeps_the_directions():
    square = decoded(encoded(picture(3, 64, 64)), size=8).astype(int)
    assert (square[0] == 111).all()
    assert (np.diff(square[1], axis=0) > 20).all()  # green grows downwards
    assert (np.diff(square[2], axis=1) > 20).all()  # blue to the right


def test_scaling_averages_what_is_finer_than_a_pixel():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    square = decoded(encoded(Image.fromarray(board.astype(np.uint8))), size=8, channels=1)
    assert abs(square.astype(int) - 127).max() <= 3


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shot with the camera turned: rotate by 90 degrees clockwise
    buffer = io.BytesIO()
    picture(0, 16, 16).save(buffer, "PNG", exif=exif)
    upright = decoded(encoded(picture(0, 16, 16)), size=16)
    assert (decoded(buffer.getvalue(), size=16) == np.rot90(upright, -1, axes=(1, 2))).all()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (flat("L", 7), (7, 7, 7)),
        (flat("1", 1), (255, 255, 255)),
        (flat("LA", (100, 255)), (100, 100, 100)),
        (flat("LA", (100, 0)), (255, 255, 255)),
        (flat("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (flat("RGBA", (0, 0, 0, 51)), (204, 204, 204)),
        (flat("I;16", 0x1234), (0x12, 0x12, 0x12)),
        (b"P5 8 8 65535 " + 64 * b"\x12\x34", (0x12, 0x12, 0x12)),
        (b"P5 8 8 1023 " + 64 * b"\x02\x00", (0x80, 0x80, 0x80)),
        (flat("P", 0), (0, 0, 0)),
        (flat("CMYK", (0, 255, 255, 0), kind="TIFF"), (255, 0, 0)),
        (flat("RGB", (1, 2, 3), transparency=(1, 2, 3)), (255, 255, 255)),
    ],
)
def test_colours_of_every_mode(data, expected):
    assert (decoded(data) == np.array(expected)[:, None, None]).all()


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


SIXTEEN = np.arange(192, dtype=np.uint16).reshape(8, 8, 3) * 341


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_whose_zero_is_white(compression):
    for pixels in (SIXTEEN[..., 0], (SIXTEEN[..., 0] >> 8).astype(np.uint8)):
        data = tiff(pixels, photometric="miniswhite", compression=compression)
        assert (decoded(data, 8, 1)[0] == 255 - (SIXTEEN[..., 0] >> 8)).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [True, False])
def test_tiff_of_16_bits_in_colour(planar, order, compression):
    pixels = SIXTEEN.transpose(2, 0, 1) if planar else SIXTEEN
    config = "separate" if planar else "contig"
    options = {"photometric": "rgb", "byteorder": order, "compression": compression}
    data = tiff(np.ascontiguousarray(pixels), planarconfig=config, **options)
    assert (decoded(data, 8) == SIXTEEN.transpose(2, 0, 1) >> 8).all()


def test_tiff_of_12_bits():
    """Two pixels, 0x123 and 0xFFF, in three bytes; as cameras write it."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 12)
    data = head + b"\x12\x3f\xff\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decoded(data, 1, 1).item() == 0x12


@pytest.mark.parametrize("size", [(65, 64), (64, 65)])
def test_crop_keeps_whole_pixels(size):
    board = np.indices(size).sum(axis=0) % 2 * 255
    square = decoded(encoded(Image.fromarray(board.astype(np.uint8))), size=64, channels=1)
    assert (square[0] == board[:64, :64]).all()


def test_cmyk_photograph():
    data = flat("CMYK", (0, 255, 255, 0), kind="JPEG", quality=95)
    assert abs(decoded(data).astype(int) - np.array([255, 0, 0])[:, None, None]).max() < 4
    assert abs(decoded(data, channels=1).astype(int) - 76).max() < 4


def test_grey_of_a_palette():
    assert (decoded(encoded(picture(1).quantize(4)), channels=1).shape) == (1, 4, 4)


def animation(kind):
    buffer = io.BytesIO()
    frames = [picture(i) for i in range(3)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


PNG = encoded(picture(0, 64, 64))
BAD = {
    "zero bytes": (b"", "cannot be decoded"),
    "text": (b"not an image at all", "cannot be decoded"),
    "cut in the head": (PNG[:20], "cannot be decoded"),
    "cut PNG": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "cut JPEG": (encoded(picture(0, 64, 64), "JPEG")[:700], "cannot be decoded"),
    "broken PNG": (PNG[:60] + bytes(40) + PNG[100:], "cannot be decoded"),
    "one pixel": (encoded(picture(0, 1, 1)), "has 1x1 pixels, expected at least 4x4"),
    "narrow": (encoded(picture(0, 3, 90)), "has 3x90 pixels, expected at least 4x4"),
    "GIF": (animation("GIF"), "has 3 frames, expected one"),
    "APNG": (animation("PNG"), "has 3 frames, expected one"),
    "WebP": (animation("WEBP"), "has 3 frames, expected one"),
    "float": (flat("F", 0.5, kind="TIFF"), "has signed, floating-point or 32-bit pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_image_is_refused_with_its_reason(kind):
    data, reason = BAD[kind]
    with pytest.raises(ImageError, match=reason) as error:
        decoded(data)
    assert "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"cannot be decoded .*no\.png"):
        decoded(tmp_path / "no.png")
