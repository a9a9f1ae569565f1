"""A flow of smaller images as a prior of images with a constant border."""

import torch.nn.functional as F
from torch import Tensor

from flowprior.latent import standard_normal_log_prob
from flowprior.priors.base import Prior, require
from flowprior.priors.cropped import checked_border, height_and_width, margins_between


class Padded(Prior):
    """The images of a flow with a constant border, such as digits of 28×28 pixels in 32×32.

    x = pad(G(z)). A border adds no volume, so that log-determinants and densities are those of the
    flow, on the images with this border. `encode` looks at the middle alone.

    Args:
        prior: a flow, or any prior with `decode` and `encode` that is not conditional.
        image_size: height and width of the images, one number or (H, W); an even number of pixels
            more than those of the prior.
        border: value around the images, in [0, 1].

    Raises:
        ValueError: names the option.
    """

    def __init__(
        self, prior: Prior, image_size: int | tuple[int, int], border: float = 0.0
    ) -> None:
        require(prior, ("decode", "encode"), "Padded")
        if prior.conditional:
            raise ValueError("prior of Padded must not be conditional")
        channels, *middle = prior.image_shape
        size = height_and_width(image_size)
        margins = margins_between(middle, size)
        if margins is None:
            raise ValueError(
                f"image_size must be an even number of pixels more than {tuple(middle)}, got {size}"
            )
        super().__init__((channels, *size), prior.latent, prior.data_range)
        self.prior = prior
        self.border = checked_border(border)
        self._margins = margins
        self.train(prior.training)

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        r"""Images (B, C, H, W) of latents z (B, \*latent.shape)."""
        return self._padded(self.prior.generate(z))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map latents z (B, \*latent.shape) to (x, log_det of the flow)."""
        middle, log_det = self.prior.decode(z)
        return self._padded(middle), log_det

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of the middle of images x (B, C, H, W), and their log_det."""
        rows, columns = self._margins
        height, width = self.prior.image_shape[1:]
        return self.prior.encode(x[..., rows : rows + height, columns : columns + width])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of the middle of images x (B, C, H, W), in nats, (B,)."""
        z, log_det = self.encode(x)
        return standard_normal_log_prob(z) + log_det

    def _padded(self, middle: Tensor) -> Tensor:
        rows, columns = self._margins
        low, high = self.data_range
        value = low + (high - low) * self.border
        return F.pad(middle, (columns, columns, rows, rows), value=value)
