"""Constructors of the papers' operators, as deepinv physics.

`image_shape` is (C, H, W) everywhere. An operator takes images (B, C, H, W) in any range and adds
no noise. The same seed gives the same operator on every device. Operators are float32 and move
with `.to(...)`; `.double()` leaves stored weights rounded to float32, unless `dtype` says float64.
Wrong options raise a ValueError that names the option.
"""

import math

import torch
from deepinv.physics import MRI, Blur, Denoising, Inpainting, ZeroNoise
from torch import Tensor

from flowprior.checks import check_choice, check_integer, check_number, check_positive, shown
from flowprior.physics.intensities import Intensities
from flowprior.physics.linear import (
    BilinearDownsampling,
    BoxDownsampling,
    ChannelMean,
    GaussianMeasurements,
    ParallelBeam,
    RealMRI,
)

ImageShape = tuple[int, int, int]


def denoising(image_shape: ImageShape) -> Denoising:
    """The identity, A = I; without the noise of σ = 0.1 that deepinv adds by default."""
    _check_shape(image_shape)
    return Denoising(ZeroNoise())


def gaussian_blur(
    image_shape: ImageShape,
    tau: float = 3.0,
    kernel_size: int | None = None,
    padding: str = "reflect",
    dtype: torch.dtype = torch.float32,
) -> Blur:
    """Convolution with a Gaussian kernel ∝ exp(−(i² + j²)/(2τ²)) of sum 1; y has the shape of x.

    The Gaussianization layers paper: τ = 3, 25×25, reflect.

    Args:
        image_shape: (C, H, W).
        tau: standard deviation τ > 0, in pixels.
        kernel_size: odd number of pixels; 2⌈4τ⌉ + 1 if None, which is 25 for τ = 3.
        padding: "reflect" (about the centre of the border pixels, SciPy's "mirror"), "replicate",
            "circular" or "zeros".
        dtype: type of the weights.
    """
    check_positive("tau", tau)
    size = 2 * math.ceil(4 * tau) + 1 if kernel_size is None else kernel_size
    _check_kernel("kernel_size", size, image_shape, padding)
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    profile = torch.exp(-offsets.square() / (2 * tau**2))
    kernel = torch.outer(profile, profile) / profile.sum() ** 2
    return Blur(kernel[None, None].to(dtype), padding=padding)


def mean_blur(
    image_shape: ImageShape,
    size: int = 3,
    padding: str = "zeros",
    dtype: torch.dtype = torch.float32,
) -> Blur:
    """Mean over size×size pixels around each pixel; y has the shape of x.

    Chavez's deblurring: 3×3 with zeros around the image, so that borders darken.

    Args:
        image_shape: (C, H, W).
        size: odd number of pixels.
        padding: as for `gaussian_blur`.
        dtype: type of the weights.
    """
    _check_kernel("size", size, image_shape, padding)
    return Blur(torch.full((1, 1, size, size), 1 / size**2, dtype=dtype), padding=padding)


def box_inpainting(
    image_shape: ImageShape,
    box: tuple[int, int] | float = 0.5,
    centre: tuple[int, int] | None = None,
) -> Inpainting:
    """Set a box of pixels to zero; y has the shape of x, and `physics.mask` is 0 in the box.

    TRUMPET has a box of (10, 10) pixels, Chavez of (13, 13), both in the middle.

    Args:
        image_shape: (C, H, W).
        box: (height, width) in pixels, or the fraction of both sides that is hidden, in (0, 1).
        centre: (row, column) of the box, whose first row is row − height//2; the middle of the
            image if None.
    """
    _check_shape(image_shape)
    sides = image_shape[1:]
    if isinstance(box, int | float):
        _check_fraction("box", box)
        box = tuple(max(1, round(box * side)) for side in sides)
    _check_pair("box", box)
    starts = [(side - length) // 2 for side, length in zip(sides, box, strict=True)]
    if centre is not None:
        _check_pair("centre", centre)
        starts = [middle - length // 2 for middle, length in zip(centre, box, strict=True)]
    spans = list(zip(starts, box, sides, strict=True))
    if any(length < 1 or start < 0 or start + length > side for start, length, side in spans):
        raise ValueError(f"box={box} with centre={centre} does not fit in {sides} pixels")
    mask = torch.ones(1, *sides)
    mask[:, starts[0] : starts[0] + box[0], starts[1] : starts[1] + box[1]] = 0
    return _inpainting(image_shape, mask)


def random_inpainting(image_shape: ImageShape, kept: float = 0.15, seed: int = 0) -> Inpainting:
    """Keep round(kept·H·W) random pixels, the same in all channels, and set the others to zero.

    TRUMPET keeps 15 %.

    Args:
        image_shape: (C, H, W).
        kept: fraction of the pixels that is kept, in (0, 1).
        seed: of the random choice, ≥ 0.
    """
    _check_shape(image_shape)
    _check_fraction("kept", kept)
    pixels = image_shape[1] * image_shape[2]
    order = torch.randperm(pixels, generator=_generator(seed))
    mask = torch.zeros(pixels)
    mask[order[: max(1, round(kept * pixels))]] = 1
    return _inpainting(image_shape, mask.view(1, *image_shape[1:]))


def super_resolution(
    image_shape: ImageShape, factor: int = 4, smoothing: str = "box"
) -> BoxDownsampling | BilinearDownsampling:
    """A smaller image, (B, C, H/factor, W/factor).

    TRUMPET's code has factor 4 and the smoothing "bilinear".

    Args:
        image_shape: (C, H, W).
        factor: divides H and W.
        smoothing: "box", means of blocks that do not overlap, or "bilinear", antialiased.
    """
    _check_shape(image_shape)
    check_integer("factor", factor, least=1)
    check_choice("smoothing", smoothing, ("box", "bilinear"))
    if any(side % factor for side in image_shape[1:]):
        raise ValueError(f"factor={factor} must divide the sides of {image_shape}")
    return (BoxDownsampling if smoothing == "box" else BilinearDownsampling)(factor)


def colourisation(image_shape: ImageShape) -> ChannelMean:
    """Mean of the channels, as in Chavez; y is (B, 1, H, W). Needs at least two channels."""
    _check_shape(image_shape)
    if image_shape[0] < 2:
        raise ValueError(f"colourisation needs at least two channels, got {image_shape}")
    return ChannelMean(image_shape[0])


def random_gaussian(
    image_shape: ImageShape,
    measurements: int = 250,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> GaussianMeasurements:
    """Random projections y = Gx, (B, m); G is m×CHW with independent entries ~ N(0, 1/m).

    TRUMPET has m = 250. All m·CHW numbers of G are kept in memory.

    Args:
        image_shape: (C, H, W).
        measurements: m ≥ 1.
        seed: of G, ≥ 0.
        dtype: type of G.
    """
    _check_shape(image_shape)
    check_integer("measurements", measurements, least=1)
    matrix = _normal_rows(measurements, image_shape, seed)
    return GaussianMeasurements(image_shape, (matrix / measurements**0.5).to(dtype))


def phase_retrieval(
    image_shape: ImageShape,
    measurements: int = 2048,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Intensities:
    """Intensities y_i = |⟨a_i, x⟩|², (B, m); a_i is complex normal with E|a_ij|² = 1/(C·H·W).

    A y_i is the mean square of the pixels times an exponential variable of mean 1. Not linear; the
    model of Candès et al., Phase retrieval via Wirtinger flow (2015), section 2.

    Args:
        image_shape: (C, H, W).
        measurements: m ≥ 1; two to four times C·H·W determine an image up to its sign.
        seed: of the a_i, ≥ 0.
        dtype: type of the a_i.
    """
    _check_shape(image_shape)
    check_integer("measurements", measurements, least=1)
    rows = _normal_rows(2 * measurements, image_shape, seed)
    parts = (rows / (2 * rows.shape[1]) ** 0.5).to(dtype).chunk(2)
    return Intensities(*(GaussianMeasurements(image_shape, part.clone()) for part in parts))


def _normal_rows(count: int, image_shape: ImageShape, seed: int) -> Tensor:
    """Entries ~ N(0, 1), (count, C·H·W), in double precision: the same in every precision."""
    shape = count, math.prod(image_shape)
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def cartesian_mri(
    image_shape: ImageShape,
    acceleration: float = 4.0,
    centre_fraction: float = 0.08,
    seed: int = 0,
) -> MRI:
    """Some columns of the centred orthonormal DFT; y is (B, 2, H, W), zero where not measured.

    round(W/acceleration) columns are measured: the round(centre_fraction·W) lowest frequencies
    and a random choice of the others, as in fastMRI. Channel 0 of y is the real part, channel 1 the
    imaginary part.

    Args:
        image_shape: (1, H, W) for real images, (2, H, W) for real and imaginary part.
        acceleration: ≥ 1.
        centre_fraction: in [0, 1/acceleration].
        seed: of the random columns, ≥ 0.
    """
    _check_shape(image_shape)
    channels, height, width = image_shape
    if channels > 2:
        raise ValueError(f"cartesian_mri takes one or two channels, got {image_shape}")
    check_number("acceleration", acceleration, least=1)
    check_number("centre_fraction", centre_fraction, least=0)
    total, centre = max(1, round(width / acceleration)), round(centre_fraction * width)
    if centre > total:
        raise ValueError(
            f"centre_fraction={centre_fraction} must be at most 1/acceleration: {centre} central "
            f"columns of {total} in all"
        )
    columns = _mri_columns(width, total, centre, _generator(seed))
    mask = columns.expand(1, 2, height, width).clone()
    return (RealMRI if channels == 1 else MRI)(mask=mask)


def _mri_columns(width: int, total: int, centre: int, generator: torch.Generator) -> Tensor:
    start = (width - centre + 1) // 2
    columns = torch.zeros(width)
    columns[start : start + centre] = 1
    others = (columns == 0).nonzero().squeeze(1)
    order = torch.randperm(len(others), generator=generator)
    columns[others[order[: total - centre]]] = 1
    return columns


def limited_angle_ct(
    image_shape: ImageShape,
    angles: int = 30,
    first: float = 30.0,
    last: float = 150.0,
    dtype: torch.dtype = torch.float32,
) -> ParallelBeam:
    """Parallel-beam line integrals in pixels; y is (B, C, ⌈√2·H⌉, angles).

    TRUMPET has 30 angles from 30° to 150°. Angles and results are those of
    `skimage.transform.radon`.

    Args:
        image_shape: (C, H, H).
        angles: number of equally spaced angles, both ends included.
        first: first angle in degrees.
        last: last angle in degrees, ≥ first.
        dtype: type of the interpolation grid.
    """
    _check_shape(image_shape)
    if image_shape[1] != image_shape[2]:
        raise ValueError(f"limited_angle_ct needs square images, got {image_shape}")
    check_integer("angles", angles, least=1)
    check_number("first", first)
    check_number("last", last, least=first)
    degrees = torch.linspace(first, last, angles, dtype=torch.float64).to(dtype)
    return ParallelBeam(degrees, image_shape[1], normalize=False, dtype=dtype)


def _inpainting(image_shape: ImageShape, mask: Tensor) -> Inpainting:
    return Inpainting(tuple(image_shape), mask.expand(image_shape).clone())


def _generator(seed: int) -> torch.Generator:
    check_integer("seed", seed, least=0)
    return torch.Generator().manual_seed(seed)


def _check_shape(image_shape: ImageShape) -> None:
    if isinstance(image_shape, str) or not hasattr(image_shape, "__len__") or len(image_shape) != 3:
        raise ValueError(f"image_shape must be (C, H, W), got {shown(image_shape)}")
    for side in image_shape:
        check_integer("image_shape: C, H and W", side, least=1)


def _check_pair(name: str, value: object) -> None:
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError(f"{name} must be two integers for rows and columns, got {shown(value)}")
    for entry in value:
        check_integer(name, entry, least=0)


def _check_fraction(name: str, value: object) -> None:
    check_positive(name, value)
    if value >= 1:
        raise ValueError(f"{name} must be a fraction in (0, 1), got {value}")


def _check_kernel(name: str, size: int, image_shape: ImageShape, padding: str) -> None:
    _check_shape(image_shape)
    check_integer(name, size, least=1)
    if size % 2 == 0:
        raise ValueError(f"{name} must be odd, got {size}")
    check_choice("padding", padding, ("reflect", "replicate", "circular", "zeros"))
    if size // 2 >= min(image_shape[1:]):
        raise ValueError(f"{name}={size} is too large for images {tuple(image_shape)}")
