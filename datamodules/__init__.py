"""Image data sets as Lightning data modules, and measured data."""

from datamodules.base import ImageDataModule
from datamodules.chest_xray import ChestXray
from datamodules.faces import CelebA, CelebAHQ
from datamodules.image_folder import ImageFolder
from datamodules.layer_models import LayerModels
from datamodules.observations import Observations
from datamodules.small_images import CIFAR10, MNIST

__all__ = [
    "CIFAR10",
    "MNIST",
    "CelebA",
    "CelebAHQ",
    "ChestXray",
    "ImageDataModule",
    "ImageFolder",
    "LayerModels",
    "Observations",
]
