"""LightningModules, one for each kind of training."""

from lightning_modules.flow_module import FlowModule

__all__ = ["FlowModule"]
