"""Image data sets as Lightning data modules."""

from datamodules.base import ImageDataModule
from datamodules.layer_models import LayerModels

__all__ = ["ImageDataModule", "LayerModels"]
