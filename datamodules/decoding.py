"""Encoded images, and how they become 8-bit squares of one size."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from datamodules.dequantize import ImageSource
from datamodules.errors import ImageError

# Pillow's own reader mixes up the channels of 16-bit TIFFs that are stored in planes.
TiffImagePlugin.READ_LIBTIFF = True

_MODES = {1: "L", 3: "RGB"}
_HASHED_WHOLE = 2**29
_HASHED_HEAD = 2**16


class Pictures(ABC):
    """Encoded images of one split, in a fixed order."""

    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def data(self, index: int) -> Path | bytes:
        """A file, or the bytes of one."""

    @abstractmethod
    def stamps(self) -> Iterator[str]:
        """Texts that change when the images do, found without reading the images."""


@dataclass(eq=False)
class Files(Pictures):
    """Image files of a folder; the names are paths relative to it."""

    folder: Path
    names: Sequence[str]

    def data(self, index: int) -> Path:
        """The file of a name."""
        return self.folder / self.names[index]

    def stamps(self) -> Iterator[str]:
        """Name, size and time of change of each file."""
        return (_stamp(self.folder / name, name) for name in self.names)


def printable(name: str) -> str:
    """The name of a file, which need not be UTF-8, as text."""
    return name.encode(errors="backslashreplace").decode()


def _stamp(path: Path, name: str) -> str:
    """A name with the size and the time of change of its file, if it is there."""
    try:
        status = path.stat()
    except OSError:
        return name
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def read_square(data: Path | bytes, image_size: int, channels: int) -> np.ndarray:
    """Read the central square of an image, (C, image_size, image_size), uint8.

    The image is turned upright as its EXIF data say, converted to 8 bits and to grey (1 channel) or
    RGB (3), and scaled with an antialiasing (Lanczos) filter. Of 16 bits the upper 8 are kept.
    Transparent pixels become white.

    Args:
        data: a file, or the bytes of one.
        image_size: H = W of the result.
        channels: 1 or 3.

    Raises:
        ImageError: the image is damaged, animated, smaller than ``image_size``, or has more than
            16 bits per channel.
    """
    if isinstance(data, Path) and data.exists() and not data.is_file():
        raise ImageError("is not a regular file")  # reading a pipe would wait for ever
    try:
        with Image.open(data if isinstance(data, Path) else BytesIO(data)) as image:
            _check_single(image)
            pixels = _square(_converted(_upright(image), channels), image_size)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("cannot be decoded (unknown format)") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"cannot be decoded ({reason})") from error
    return np.ascontiguousarray(pixels.reshape(image_size, image_size, -1).transpose(2, 0, 1))


def _check_single(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's photograph with its previews
        raise ImageError(f"has {frames} frames, expected one")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image upright, and reduce 9 to 16 bits of grey to 8."""
    # Pillow reads a PGM of 16 bits as one of 32.
    deep = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    # Pillow inverts a TIFF whose 0 is white only if it has 8 bits or fewer.
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    image = ImageOps.exif_transpose(image)
    if not deep:
        return image
    pixels = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - pixels if white_is_zero else pixels)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ImageError("has signed, floating-point or 32-bit pixels, expected 8 or 16 bits")
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
    left, top = (width - side) // 2, (height - side) // 2  # half a pixel would blur the image
    box = (left, top, left + side, top + side)
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


@dataclass(eq=False)
class DecodedPictures(ImageSource):
    """Pictures that are decoded each time they are asked for."""

    pictures: Pictures
    image_size: int
    channels: int

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Arrays (C, image_size, image_size), uint8; an ImageError names a bad image."""
        return [self._square(index) for index in indices]

    def _square(self, index: int) -> np.ndarray:
        try:
            return read_square(self.pictures.data(index), self.image_size, self.channels)
        except ImageError as error:
            raise ImageError(
                f"image {printable(self.pictures.names[index])} {error}; "
                "python -m datamodules.prepare makes a set without such images (docs/data.md)"
            ) from error

    def digest(self) -> str:
        """Hash of names and contents; after 512 MiB, of the beginning and stamp of each file."""
        hashed, left = blake2b(digest_size=16), _HASHED_WHOLE
        for index, name in enumerate(self.pictures.names):
            data = self.pictures.data(index)
            read = data if isinstance(data, bytes) else _head(data, max(left, _HASHED_HEAD))
            left -= len(read)
            hashed.update(f"{printable(name)} {len(read)} ".encode())
            hashed.update(read)
            if isinstance(data, Path) and data.is_file() and data.stat().st_size > len(read):
                hashed.update(_stamp(data, "").encode())
        return hashed.hexdigest()


def _head(path: Path, length: int) -> bytes:
    """The first bytes of a file; nothing of one that is missing or is no regular file."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(length)
