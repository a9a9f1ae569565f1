"""Recover images from incomplete, noisy data with a flow as the prior."""

from flowprior.inversion.batch_invariant import batch_invariant, by_rows
from flowprior.inversion.batched_lbfgs import BatchedLBFGS
from flowprior.inversion.invert import Inversion, invert, minimise
from flowprior.inversion.objective import Objective, Terms
from flowprior.inversion.problem import InverseProblem, Problem
from flowprior.inversion.recording import Recording
from flowprior.inversion.starts import project_to_latents, smoothed
from flowprior.inversion.total_variation import TotalVariationProblem, invert_with_total_variation

__all__ = [
    "BatchedLBFGS",
    "InverseProblem",
    "Inversion",
    "Objective",
    "Problem",
    "Recording",
    "Terms",
    "TotalVariationProblem",
    "batch_invariant",
    "by_rows",
    "invert",
    "invert_with_total_variation",
    "minimise",
    "project_to_latents",
    "smoothed",
]
