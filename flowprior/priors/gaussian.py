"""A normal distribution with the moments of examples: the least a trained prior should beat."""

from typing import Any

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import OVERSHOOT, check_number, check_unit_images, is_precise
from flowprior.latent import Latent, standard_normal_log_prob
from flowprior.linear_algebra import ROUNDING, cosines
from flowprior.own_code import digest
from flowprior.priors.base import Prior

LARGEST_COVARIANCE = 4096
"""Entries of an image, C·H·W, whose whole covariance is kept: 64 MB in single precision."""


class GaussianPrior(Prior):
    """Images x ~ N(μ, Σ), with the mean and the covariance of examples: no training.

    x = μ + Σ^½ z, with the symmetric root, so that z has the shape of an image. It is a flow
    without a network, and solvers take it as one. With a linear operator and normal noise the
    posterior is normal, and `MAP(penalty="latent_norm")` finds its mean: the Wiener estimate.

    Args:
        images: examples (N, C, H, W) in [0, 1], finite.
        stationary: take what is the same everywhere: one mean for each channel, and the mean power
            of each frequency of the mirrored images (of the cosine transform), with the covariance
            of the channels. It takes few examples and images of any size. Otherwise Σ is that of
            all pairs of pixels, which takes more examples than an image has entries.
        least_deviation: in any direction, in [1e-10, 1]; the default is that of the rounding of
            8-bit images.

    It is frozen and in evaluation mode from the beginning.

    Raises:
        ValueError: names the argument: it is out of range, there are too few examples, or images
            are too large for a covariance of all pairs.

    >>> images = torch.rand(100, 1, 8, 8)
    >>> prior = GaussianPrior(images)
    >>> z, log_det = prior.encode(images[:5])
    >>> torch.allclose(prior.generate(z), images[:5], atol=1e-4)
    True
    """

    def __init__(
        self, images: Tensor, stationary: bool = False, least_deviation: float = ROUNDING
    ) -> None:
        check_types(GaussianPrior.__init__, locals())
        check_unit_images("images", images)
        _check_enough(images, stationary)
        x = images.detach().double()
        mean = x.mean((0, 2, 3) if stationary else 0, keepdim=True)
        self._begin(tuple(images.shape[1:]), mean, stationary, {"images": digest(images)})
        if stationary:
            for name, size in zip(("rows", "columns"), self.image_shape[1:], strict=True):
                self.register_buffer(name, cosines(size).to(x.device))
            spectra = self._spectra(x - mean)
            covariance = torch.einsum("nhwc,nhwd->hwcd", spectra, spectra) / len(x)
        else:
            covariance = torch.atleast_2d(x.flatten(1).T.cov())
        self._end(covariance, least_deviation, images.dtype)

    @classmethod
    def from_moments(
        cls, mean: Tensor, covariance: Tensor, least_deviation: float = ROUNDING
    ) -> "GaussianPrior":
        """The prior of a mean image and a covariance that are known.

        Args:
            mean: μ (C, H, W) in [0, 1].
            covariance: Σ (n, n) of all pairs of entries, n = C·H·W in the order of
                `mean.flatten()`; symmetric, without negative eigenvalues.
            least_deviation: in any direction, in [1e-10, 1].

        Raises:
            ValueError: names the argument.

        >>> at = torch.arange(8.0)
        >>> covariance = 0.01 * torch.exp(-(at[:, None] - at).abs() / 3)
        >>> prior = GaussianPrior.from_moments(torch.full((1, 1, 8), 0.5), covariance)
        >>> prior.generate(torch.randn(4, 1, 1, 8)).shape
        torch.Size([4, 1, 1, 8])
        """
        check_types(cls.from_moments, locals())
        size = mean.numel()
        if mean.ndim != 3 or not size or not is_precise(mean):
            raise ValueError(
                "mean must be finite numbers (C, H, W), float32 or float64, got "
                f"{mean.dtype} of shape {tuple(mean.shape)}"
            )
        if tuple(covariance.shape) != (size, size) or not is_precise(covariance):
            raise ValueError(
                f"covariance must be finite numbers ({size}, {size}), float32 or float64, got "
                f"{covariance.dtype} of shape {tuple(covariance.shape)}"
            )
        if size > LARGEST_COVARIANCE:
            raise ValueError(
                f"mean has {size} entries, expected at most {LARGEST_COVARIANCE} for a covariance "
                "of all pairs"
            )
        low, high = mean.min().item(), mean.max().item()
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            raise ValueError(f"mean must be in [0, 1], got values from {low:.3g} to {high:.3g}")
        largest = covariance.abs().max().item()
        if not torch.allclose(covariance, covariance.mT, rtol=0, atol=1e-5 * largest):
            raise ValueError("covariance must be symmetric")
        prior = cls.__new__(cls)
        made_of = {"mean": digest(mean), "covariance": digest(covariance)}
        prior._begin(tuple(mean.shape), mean.detach().double()[None], False, made_of)
        prior._end(covariance.detach().double(), least_deviation, mean.dtype)
        return prior

    def _begin(
        self, shape: tuple[int, int, int], mean: Tensor, stationary: bool, made_of: dict[str, Any]
    ) -> None:
        super().__init__(shape, Latent({"z": shape}))
        self.stationary = stationary
        # The last digits of eigenvectors depend on the machine, and say nothing of the prior.
        self.made_of = {**made_of, "stationary": stationary}
        self.register_buffer("mean", mean)

    def _end(self, covariance: Tensor, least_deviation: float, dtype: torch.dtype) -> None:
        check_number("least_deviation", least_deviation, least=1e-10, most=1)
        self.made_of = {**self.made_of, "least_deviation": least_deviation}
        variances, axes = torch.linalg.eigh(covariance)
        least, largest = variances.min().item(), variances.abs().max().item()
        if least < -1e-5 * largest:
            raise ValueError(f"covariance must have no negative eigenvalues, got {least:.3g}")
        self.register_buffer("axes", axes)
        self.register_buffer("deviations", variances.clamp(min=0).sqrt().clamp(min=least_deviation))
        self.to(dtype).eval()

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents z (B, C, H, W) to images x = μ + Σ^½ z and log|det dx/dz|, (B,)."""
        self._check(z, "z")
        return self.mean + self._scaled(z, self.deviations), self._log_det.expand(len(z))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) in [0, 1] to latents z and log|det dz/dx|, (B,)."""
        self._check(x, "x")
        z = self._scaled(x - self.mean, 1 / self.deviations)
        return z, -self._log_det.expand(len(x))

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of latents z (B, C, H, W)."""
        if condition is not None:
            raise ValueError("GaussianPrior takes no condition")
        return self.decode(z)[0]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of images x (B, C, H, W) in nats, (B,)."""
        z, log_det = self.encode(x)
        return standard_normal_log_prob(z) + log_det

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"image_shape={self.image_shape}, stationary={self.stationary}"

    @property
    def _log_det(self) -> Tensor:
        return self.deviations.log().sum()

    def _scaled(self, x: Tensor, factors: Tensor) -> Tensor:
        """Components of x along the axes of Σ, times `factors`, put together again.

        Axes of a stationary Σ are those of the channels, at each frequency.
        """
        if self.stationary:
            spectra = self._spectra(x)[..., None, :] @ self.axes * factors[..., None, :]
            return self._images((spectra @ self.axes.mT)[..., 0, :])
        return (x.flatten(1) @ self.axes * factors @ self.axes.mT).view(x.shape)

    def _spectra(self, x: Tensor) -> Tensor:
        """The cosine transform of images (B, C, H, W), as (B, H, W, C)."""
        return (self.rows @ x @ self.columns.mT).movedim(1, 3)

    def _images(self, spectra: Tensor) -> Tensor:
        return self.rows.mT @ spectra.movedim(3, 1) @ self.columns

    def _check(self, x: Tensor, name: str) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"GaussianPrior: {name} must have shape (B, {expected}), got {tuple(x.shape)}"
            )


def _check_enough(images: Tensor, stationary: bool) -> None:
    count, entries = len(images), images.shape[1:].numel()
    if stationary:
        if count < images.shape[1]:
            raise ValueError(
                f"images must be at least one for each of {images.shape[1]} channels, got {count}"
            )
        return
    if entries > LARGEST_COVARIANCE:
        raise ValueError(
            f"images have {entries} entries, expected at most {LARGEST_COVARIANCE} for a "
            "covariance of all pairs: take stationary=True"
        )
    if count <= entries:
        raise ValueError(
            f"images must be more than the {entries} entries of an image for a covariance of all "
            f"pairs, got {count}: give more, or take stationary=True"
        )
