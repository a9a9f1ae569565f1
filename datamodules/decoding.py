"""Image files of any kind as 8-bit squares of one size."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datamodules.dequantize import ImageError

_MODES = {1: "L", 3: "RGB"}


def read_square(data: Path | bytes, image_size: int, channels: int) -> np.ndarray:
    """The central square of an image, (C, image_size, image_size), uint8.

    Turned upright as its EXIF data say, converted to 8 bits and to grey or RGB, then scaled with
    an antialiasing (Lanczos) filter. 16 bits are divided by 256, transparency is laid on white.

    Args:
        data: a file, or the bytes of one.
        image_size: H = W of the result.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ImageError: why there is no such image: damaged, animated, smaller than ``image_size``, or
            of more than 16 bits.
    """
    try:
        with Image.open(data if isinstance(data, Path) else BytesIO(data)) as image:
            pixels = _square(_converted(_single(image), channels), image_size)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("cannot be decoded (no known kind of image)") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"cannot be decoded ({reason})") from error
    return np.ascontiguousarray(pixels.reshape(image_size, image_size, -1).transpose(2, 0, 1))


def _single(image: Image.Image) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's photograph with its previews
        raise ImageError(f"has {frames} frames, expected one")
    if image.format == "PPM" and image.mode == "I":  # Pillow's 16 bits of these files
        return _eight_bits(image)
    return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError("has 32 bits per pixel, expected 8 or 16")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if channels == 1 and image.mode not in ("1", "L"):
        image = image.convert("RGB")  # the only way to grey from CMYK and palettes
    return image.convert(_MODES[channels])


def _square(image: Image.Image, size: int) -> np.ndarray:
    width, height = image.size
    side = min(width, height)
    if side < size:
        raise ImageError(f"has {width}x{height} pixels, expected at least {size}x{size}")
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS, box=box))
