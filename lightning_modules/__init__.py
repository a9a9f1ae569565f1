"""LightningModules, one for each kind of training."""

from lightning_modules.flow_module import FlowModule
from lightning_modules.inversion_module import InversionModule
from lightning_modules.phases import Phase
from lightning_modules.posterior_module import PosteriorModule

__all__ = ["FlowModule", "InversionModule", "Phase", "PosteriorModule"]
