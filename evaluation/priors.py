"""Priors of tables that are made of a data set, without training."""

from dataclasses import dataclass

from datamodules import ImageDataModule
from flowprior.argument_types import check_fields
from flowprior.checks import check_integer
from flowprior.priors import GaussianPrior


@dataclass(frozen=True)
class FittedGaussian:
    """The normal distribution with the moments of the first training images of a data set.

    They are read when the prior is first used.

    Args:
        data: the data set.
        images: their number, or all if there are fewer; more than an image has entries, unless it
            is `stationary`.
        stationary: see `flowprior.priors.GaussianPrior`.

    Raises:
        ValueError: names the option.
    """

    data: ImageDataModule
    images: int = 2000
    stationary: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("images", self.images, least=1)

    def prior(self) -> GaussianPrior:
        """The prior; ValueError if there are too few images, or they are too large."""
        count = min(self.images, len(self.data.images("train")))
        return GaussianPrior(self.data.unit_images("train", range(count)), self.stationary)
