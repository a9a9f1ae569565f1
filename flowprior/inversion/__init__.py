"""Recover images from incomplete, noisy data with a prior.

`invert` puts data and operator into a `Problem`. A `Solver` begins a `Run` of it, which `solve`
iterates, shows to observers, and turns into an `Estimate`.
"""

from flowprior.inversion.batch_invariant import batch_invariant, by_rows
from flowprior.inversion.batched_lbfgs import BatchedLBFGS
from flowprior.inversion.bm3d import BM3D
from flowprior.inversion.checkpoint import Checkpoint
from flowprior.inversion.coverage import surprise
from flowprior.inversion.cuda_graphs import no_cuda_graphs
from flowprior.inversion.deep_image_prior import DeepImagePrior
from flowprior.inversion.discrepancy import Discrepancy
from flowprior.inversion.dps import DPS
from flowprior.inversion.forward import Forward
from flowprior.inversion.iflow import IFlow
from flowprior.inversion.images import ImageRun, row_seed
from flowprior.inversion.invert import invert
from flowprior.inversion.map import MAP, csgm, glow_ip, l1_map, project_to_latents
from flowprior.inversion.multi_scale import MultiScale
from flowprior.inversion.plug_and_play import PlugAndPlay
from flowprior.inversion.problem import Problem, make_problem
from flowprior.inversion.progress import Progress
from flowprior.inversion.reconstructor import Reconstructor
from flowprior.inversion.recording import Recording
from flowprior.inversion.restarts import Restarts
from flowprior.inversion.solving import Estimate, Posterior, Run, Solver, solve
from flowprior.inversion.starts import smoothed
from flowprior.inversion.total_variation import TotalVariation
from flowprior.inversion.warned import Warned
from flowprior.inversion.wavelet import Wavelet

__all__ = [
    "BM3D",
    "DPS",
    "MAP",
    "BatchedLBFGS",
    "Checkpoint",
    "DeepImagePrior",
    "Discrepancy",
    "Estimate",
    "Forward",
    "IFlow",
    "ImageRun",
    "MultiScale",
    "PlugAndPlay",
    "Posterior",
    "Problem",
    "Progress",
    "Reconstructor",
    "Recording",
    "Restarts",
    "Run",
    "Solver",
    "TotalVariation",
    "Warned",
    "Wavelet",
    "batch_invariant",
    "by_rows",
    "csgm",
    "glow_ip",
    "invert",
    "l1_map",
    "make_problem",
    "no_cuda_graphs",
    "project_to_latents",
    "row_seed",
    "smoothed",
    "solve",
    "surprise",
]
