"""A flow of larger images as a prior of their middles."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from flowprior.latent import standard_normal_log_prob
from flowprior.priors.base import Prior, require


class Cropped(Prior):
    """The middle of the images of a flow, such as digits without their border.

    x = crop(G(z)). `encode` puts a constant border around x, so that generate(encode(x)) = x, but
    latents whose border is another do not come back. In `decode` the border is free, so that
    log-determinants and densities are those of the image with its border: "log_density" looks for
    the most probable pair.

    Args:
        prior: a flow, or any prior with `decode` and `encode` that is not conditional.
        image_size: height and width of the middle, one number or (H, W); an even number of pixels
            less than those of the prior.
        border: value around the images that are encoded, in [0, 1]. The default is the middle of
            the lowest of 256 levels, where the noise of dequantised black pixels lies.

    Raises:
        ValueError: names the option.
    """

    def __init__(
        self, prior: Prior, image_size: int | tuple[int, int], border: float = 0.5 / 256
    ) -> None:
        require(prior, ("decode", "encode"), "Cropped")
        if prior.conditional:
            raise ValueError("prior of Cropped must not be conditional")
        channels, *whole = prior.image_shape
        size = height_and_width(image_size)
        margins = margins_between(size, whole)
        if margins is None:
            raise ValueError(
                f"image_size must be an even number of pixels less than {tuple(whole)}, got {size}"
            )
        super().__init__((channels, *size), prior.latent, prior.data_range)
        self.prior = prior
        self.border = checked_border(border)
        self._margins = margins
        self.train(prior.training)

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        r"""Images (B, C, H, W) of latents z (B, \*latent.shape)."""
        return self._middle(self.prior.generate(z))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map latents z (B, \*latent.shape) to (x, log_det of the image with its border)."""
        whole, log_det = self.prior.decode(z)
        return self._middle(whole), log_det

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of images x (B, C, H, W) with a constant border, and their log_det."""
        rows, columns = self._margins
        value = float(self.from_unit_range(x.new_tensor(self.border)))
        return self.prior.encode(F.pad(x, (columns, columns, rows, rows), value=value))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of images x (B, C, H, W) with a constant border, in nats, (B,)."""
        z, log_det = self.encode(x)
        return standard_normal_log_prob(z) + log_det

    def _middle(self, whole: Tensor) -> Tensor:
        rows, columns = self._margins
        height, width = self.image_shape[1:]
        return whole[..., rows : rows + height, columns : columns + width]


def height_and_width(image_size: object) -> tuple[int, int]:
    """(H, W) of one or two whole numbers."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    whole = isinstance(size, Sequence) and all(isinstance(side, int) for side in size)
    if not whole or len(size) != 2:
        raise ValueError(f"image_size must be one or two whole numbers, got {image_size!r}")
    return tuple(size)


def margins_between(small: Sequence[int], large: Sequence[int]) -> list[int] | None:
    """Pixels above and below, left and right; None if small images do not fit, or not evenly."""
    margins = [(outer - inner) // 2 for inner, outer in zip(small, large, strict=True)]
    fits = [inner + 2 * m for inner, m in zip(small, margins, strict=True)] == list(large)
    return margins if fits and min(margins) >= 0 and min(small) >= 1 else None


def checked_border(border: float) -> float:
    """The value of a border, if it is in [0, 1]."""
    if not 0 <= border <= 1:
        raise ValueError(f"border must be in [0, 1], got {border}")
    return border
