"""A flow of larger images as a prior of their middles."""

from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.priors.base import Prior
from flowprior.priors.bordered import Bordered


class Cropped(Bordered):
    """The middle of the images of a flow, such as digits without their border.

    x = crop(G(z)). `encode` puts a constant border around x, so that generate(encode(x)) = x, but
    latents whose border is another do not come back. In `decode` the border is free, so that
    log-determinants and densities are those of the image with its border: "log_density" looks for
    the most probable pair. Projections of an injective flow are its own, of the image with a
    constant border: what they give they need not leave as it is.

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
        check_types(Cropped.__init__, locals())
        super().__init__(prior, image_size, border, less=True)

    def _given(self, x: Tensor) -> Tensor:
        return self._middle(x)

    def _taken(self, x: Tensor) -> Tensor:
        return self._around(x)
