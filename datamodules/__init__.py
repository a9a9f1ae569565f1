"""Image data sets as Lightning data modules, and measured data.

The way of a pixel, and the module of each stop:

1. found and assigned to a split: ``pictures`` (image files), ``tables`` (rows of tables)
2. decoded, cropped and resized to a square of bytes: ``decoding``; or read from a set of squares
   that ``prepare`` has made: ``prepared_pictures``
3. flipped, quantised and filled with noise: ``dequantize``
4. in a global batch, in the order of the epoch: ``batches``; with data of it: ``pairs``, which are
   made then, or were made by ``prepare_pairs``: ``prepared_pairs``

``base`` connects stops 3 and 4 for every data set, ``pictures`` stops 1 and 2 for all that consist
of image files. MNIST and CIFAR-10 (``small_images``), ``layer_models``, ``reflectivities`` and
``prior_draws`` enter at stop 3, and so do pairs from files of one's own (``array_pairs``).
"""

from datamodules.array_pairs import ArrayPairs
from datamodules.base import ImageDataModule
from datamodules.chest_xray import ChestXray
from datamodules.dequantize import ArrayImages, ImageSource
from datamodules.faces import CelebA, CelebAHQ
from datamodules.image_folder import ImageFolder
from datamodules.layer_models import LayerModels
from datamodules.observations import Observations
from datamodules.pairs import PairDataModule, SimulatedPairs
from datamodules.prior_draws import PriorDraws
from datamodules.reflectivities import Reflectivities
from datamodules.rosenbrock import Rosenbrock
from datamodules.small_images import CIFAR10, MNIST

__all__ = [
    "CIFAR10",
    "MNIST",
    "ArrayImages",
    "ArrayPairs",
    "CelebA",
    "CelebAHQ",
    "ChestXray",
    "ImageDataModule",
    "ImageFolder",
    "ImageSource",
    "LayerModels",
    "Observations",
    "PairDataModule",
    "PriorDraws",
    "Reflectivities",
    "Rosenbrock",
    "SimulatedPairs",
]
