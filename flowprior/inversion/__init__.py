"""Recover images from incomplete, noisy data with a flow as the prior."""

from flowprior.inversion.batched_lbfgs import BatchedLBFGS
from flowprior.inversion.invert import Inversion, invert
from flowprior.inversion.objective import Objective, Terms
from flowprior.inversion.problem import InverseProblem

__all__ = ["BatchedLBFGS", "InverseProblem", "Inversion", "Objective", "Terms", "invert"]
