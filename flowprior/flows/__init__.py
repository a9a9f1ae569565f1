"""Normalizing flows: the `Flow` interface and its implementations."""

from flowprior.flows.base import Flow, standard_normal_log_prob
from flowprior.flows.glow import Glow

__all__ = ["Flow", "Glow", "standard_normal_log_prob"]
