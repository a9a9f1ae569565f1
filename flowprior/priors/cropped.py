"""A flow of larger images as a prior of their middles."""

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
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2 or any(not isinstance(side, int) for side in size):
            raise ValueError(f"image_size must be one or two whole numbers, got {image_size!r}")
        margins = [(large - small) // 2 for large, small in zip(whole, size, strict=True)]
        fits = [n + 2 * m for n, m in zip(size, margins, strict=True)] == whole
        if min(size) < 1 or min(margins) < 0 or not fits:
            raise ValueError(
                f"image_size must be an even number of pixels less than {tuple(whole)}, got {size}"
            )
        if not 0 <= border <= 1:
            raise ValueError(f"border must be in [0, 1], got {border}")
        super().__init__((channels, *size), prior.latent, prior.data_range)
        self.prior = prior
        self.border = border
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
