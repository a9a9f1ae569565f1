"""A flow of smaller images as a prior of images with a constant border."""

from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.priors.base import Prior
from flowprior.priors.bordered import Bordered


class Padded(Bordered):
    """The images of a flow with a constant border, such as digits of 28×28 pixels in 32×32.

    x = pad(G(z)). A border adds no volume, so that log-determinants and densities are those of the
    flow, on the images with this border. `encode` looks at the middle alone, and so do projections
    of an injective flow.

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
        check_types(Padded.__init__, locals())
        super().__init__(prior, image_size, border, less=False)

    def _given(self, x: Tensor) -> Tensor:
        return self._around(x)

    def _taken(self, x: Tensor) -> Tensor:
        return self._middle(x)
