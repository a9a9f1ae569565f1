"""Any torch decoder as a prior."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.latent import Latent
from flowprior.priors.base import Prior


class Module(Prior):
    """A torch module from latents to images, such as the decoder of a VAE or a GAN's generator.

    It has no density, so solvers that need a log-determinant refuse it.

    Args:
        module: from (B, *latent) to images (B, C, H, W) in `data_range`; with several parts it is
            called with one keyword argument for each of them.
        image_shape: (C, H, W).
        latent: shape of the latent, or shapes of its parts by name.
        data_range: (low, high) of its images.

    >>> decoder = nn.Sequential(nn.Linear(3, 16), nn.Unflatten(1, (1, 4, 4)))
    >>> Module(decoder, (1, 4, 4), [3]).sample(2).shape
    torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        module: nn.Module,
        image_shape: tuple[int, int, int],
        latent: Sequence[int] | Mapping[str, Sequence[int]],
        data_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_types(Module.__init__, locals())
        parts = latent if isinstance(latent, Mapping) else {"z": latent}
        super().__init__(image_shape, Latent({n: tuple(s) for n, s in parts.items()}), data_range)
        self.module = module

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of latents z (B, *latent.shape)."""
        if condition is not None:
            raise ValueError(f"{type(self).__name__} takes no condition: write a Prior that does")
        if len(self.latent.parts) == 1:
            return self.module(z)
        return self.module(**self.latent.split(z))
