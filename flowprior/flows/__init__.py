"""Normalizing flows: the `Flow` interface and its implementations."""

from flowprior.flows.base import Flow, standard_normal_log_prob
from flowprior.flows.coupling1x1 import Coupling1x1Flow
from flowprior.flows.glow import Glow
from flowprior.flows.trumpet import Trumpet

__all__ = ["Coupling1x1Flow", "Flow", "Glow", "Trumpet", "standard_normal_log_prob"]
