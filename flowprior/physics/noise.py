"""Noise whose convention is stated and which belongs to an image, not to a batch.

The noise of an image depends on (seed, index of the image) only: a result never depends on batch
size, order, device or number of processes. Signals are (B, ...), real floating point, one image a
row; `indices` has the B indices of the images in the data set.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Scale = Literal["data", "255"]
Indices = Sequence[int] | Tensor


def gaussian_noise(
    y: Tensor,
    sigma: float,
    *,
    seed: int,
    indices: Indices,
    scale: Scale = "data",
    data_range: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    r"""Add n ~ N(0, σ²) to every entry of y.

    Args:
        y: signals (B, ...).
        sigma: σ ≥ 0.
        seed: of the run, ≥ 0.
        indices: of the images, B integers ≥ 0.
        scale: "data", σ is in the units of y; "255", σ is on 8-bit pixels, of which 0 and 255 are
            the ends of `data_range`: σ (high − low)/255 is added.
        data_range: (low, high) of y; only scale="255" looks at it.
    """
    deviation = sigma_in_data_units(sigma, scale, data_range)
    return y + deviation * standard_normal(y, seed, indices)


def sigma_in_data_units(
    sigma: float, scale: Scale = "data", data_range: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Standard deviation in the units of the data.

    >>> sigma_in_data_units(51.0, "255", (-1.0, 1.0))
    0.4
    """
    _check_sigma(sigma)
    if scale not in ("data", "255"):
        raise ValueError(f'scale must be "data" or "255", got {scale!r}')
    low, high = data_range
    if not low < high:
        raise ValueError(f"data_range must be (low, high) with low < high, got {data_range}")
    return sigma if scale == "data" else sigma * (high - low) / 255


def noise_for_snr(
    y: Tensor, snr_db: float, *, seed: int, indices: Indices, observed: Tensor | None = None
) -> Tensor:
    r"""Add n ~ N(0, σ²) to y, with 10 log₁₀(‖y‖²/E‖n‖²) = snr_db for every image.

    Sums run over the observed entries only, the mean of y is part of the signal, and the ratio
    holds in expectation: σ² = ‖y‖² 10^(−snr_db/10)/m, m the number of observed entries. What is
    not observed is returned as it is.

    Args:
        y: signals (B, ...).
        snr_db: in decibels.
        seed: of the run, ≥ 0.
        indices: of the images, B integers ≥ 0.
        observed: mask that broadcasts to the shape of y, non-zero where y is measured; all of it
            if None. `physics.mask` of inpainting or MRI.
    """
    if not np.isfinite(snr_db):
        raise ValueError(f"snr_db must be finite, got {snr_db}")
    noise = standard_normal(y, seed, indices)
    mask = _mask(observed, y)
    # One image at a time: the order of a sum over a batch may depend on the batch.
    sigmas = [_sigma(row, seen, snr_db) for row, seen in zip(y.detach(), mask, strict=True)]
    for index, sigma in zip(indices, sigmas, strict=True):
        if not (sigma.isfinite() and sigma > 0):
            raise ValueError(
                f"the SNR of image {int(index)} is undefined: nothing is observed, or what is "
                "observed is zero or not finite"
            )
    sigma = torch.stack(sigmas).view(-1, *[1] * (y.ndim - 1))
    return torch.where(mask, y + sigma.to(y.dtype) * noise, y)


def relative_noise(y: Tensor, sigma: float, *, seed: int, indices: Indices) -> Tensor:
    r"""Multiply y by 1 + ε, ε ~ N(0, σ²) in every entry; arguments as for `gaussian_noise`.

    For travel times: Li & Denli, Gaussianization layers for deep generative models.
    """
    _check_sigma(sigma)
    return y * (1 + sigma * standard_normal(y, seed, indices))


def standard_normal(like: Tensor, seed: int, indices: Indices) -> Tensor:
    """N(0, 1) of the shape, type and device of `like`; row b depends on (seed, indices[b]) only.

    The numbers are the same in every precision, to rounding.
    """
    if not like.is_floating_point() or like.ndim < 2:
        raise ValueError(
            f"signals must be real floating point (B, ...), got {like.dtype} {tuple(like.shape)}"
        )
    if len(indices) != len(like):
        raise ValueError(f"{len(like)} images need as many indices, got {len(indices)}")
    rows = [_draw(like.shape[1:], seed, index) for index in indices]
    return torch.stack(rows).to(like) if rows else torch.zeros_like(like)


def _draw(shape: torch.Size, seed: int, index: int | Tensor) -> Tensor:
    key = (int(seed), int(index))
    if key != (seed, index) or min(key) < 0:
        raise ValueError(f"seed and index must be integers of at least 0, got {seed} and {index}")
    # NumPy's generator, because torch's keeps 32 bits of its seed and images would share noise.
    return torch.from_numpy(np.random.default_rng(key).standard_normal(tuple(shape)))


def _sigma(row: Tensor, seen: Tensor, snr_db: float) -> Tensor:
    energy = torch.where(seen, row, 0).double().square().sum()
    return (energy / seen.sum() * 10 ** (-snr_db / 10)).sqrt()


def _mask(observed: Tensor | None, y: Tensor) -> Tensor:
    if observed is None:
        return torch.ones_like(y, dtype=torch.bool)
    try:
        return (observed.to(y.device) != 0).expand(y.shape)
    except RuntimeError as error:
        raise ValueError(
            f"observed must broadcast to {tuple(y.shape)}, got {tuple(observed.shape)}"
        ) from error


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma must be finite and at least 0, got {sigma}")
