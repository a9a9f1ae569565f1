"""Priors of tables that are made of a data set, without training."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from datamodules import ImageDataModule
from flowprior.argument_types import check_fields
from flowprior.checks import check_integer
from flowprior.priors import GaussianPrior, Prior


class PriorOfData(ABC):
    """What makes a prior of the training images of a data set, when it is first used.

    Attributes:
        data: the data set; None is that of the table's test images.
    """

    data: ImageDataModule | None = None

    @abstractmethod
    def fit(self, data: ImageDataModule) -> Prior:
        """The prior of this data set; ValueError if it has too few images, or too large ones."""


@dataclass(frozen=True)
class FittedGaussian(PriorOfData):
    """The normal distribution with the moments of the first training images of a data set.

    Args:
        images: their number, or all if there are fewer; more than an image has entries, unless it
            is `stationary`.
        stationary: see `flowprior.priors.GaussianPrior`.
        data: the data set; None is that of the table's test images.

    Raises:
        ValueError: names the option.
    """

    images: int = 2000
    stationary: bool = False
    data: ImageDataModule | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("images", self.images, least=1)

    def fit(self, data: ImageDataModule) -> GaussianPrior:
        """See `PriorOfData`."""
        count = min(self.images, len(data.images("train")))
        return GaussianPrior(data.unit_images("train", range(count)), self.stationary)
