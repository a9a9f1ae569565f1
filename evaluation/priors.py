"""Priors of tables that are made of a data set, without training."""

from datamodules import ImageDataModule
from flowprior.argument_types import check_types
from flowprior.checks import check_integer
from flowprior.priors import GaussianPrior


def gaussian_prior(
    data: ImageDataModule, images: int = 2000, stationary: bool = False
) -> GaussianPrior:
    """The normal distribution with the moments of the first training images of a data set.

    Args:
        data: the data set.
        images: their number, or all if there are fewer; more than an image has entries, unless it
            is `stationary`.
        stationary: see `flowprior.priors.GaussianPrior`.

    Raises:
        ValueError: there are too few of them, or they are too large.
    """
    check_types(gaussian_prior, locals())
    check_integer("images", images, least=1)
    count = min(images, len(data.images("train")))
    return GaussianPrior(data.unit_images("train", range(count)), stationary)
