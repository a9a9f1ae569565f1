"""Image data sets as Lightning data modules, and measured data."""

from datamodules.base import ImageDataModule
from datamodules.layer_models import LayerModels
from datamodules.observations import Observations

__all__ = ["ImageDataModule", "LayerModels", "Observations"]
