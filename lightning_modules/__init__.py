"""LightningModules, one for each kind of training."""

from lightning_modules.flow_module import FlowModule
from lightning_modules.inversion_module import InversionModule

__all__ = ["FlowModule", "InversionModule"]
