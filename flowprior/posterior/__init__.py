"""What the data leave open: solvers whose estimate is a distribution of images to draw from.

`LatentPosterior`, `Likelihood`, `Sampler`, `ChainRun` and `normal_draws` are for your own.

`summarise` says what it tells of each pixel and frequency, `calibrate` whether it can be trusted.
"""

from flowprior.posterior.amortised import Amortised
from flowprior.posterior.base import LatentPosterior
from flowprior.posterior.calibration import Calibration, calibrate, joined
from flowprior.posterior.calibration_figures import coverage_figure, rank_figure
from flowprior.posterior.chains import ChainRun, Sampler
from flowprior.posterior.families import Coupling, Family, FullGaussian, LowRank
from flowprior.posterior.langevin import Langevin
from flowprior.posterior.likelihood import Likelihood, normal_draws
from flowprior.posterior.preconditioned import Preconditioned
from flowprior.posterior.psgld import PSGLD
from flowprior.posterior.summaries import Summary, summarise
from flowprior.posterior.tempered_smc import TemperedSMC
from flowprior.posterior.variational import Variational

__all__ = [
    "PSGLD",
    "Amortised",
    "Calibration",
    "ChainRun",
    "Coupling",
    "Family",
    "FullGaussian",
    "Langevin",
    "LatentPosterior",
    "Likelihood",
    "LowRank",
    "Preconditioned",
    "Sampler",
    "Summary",
    "TemperedSMC",
    "Variational",
    "calibrate",
    "coverage_figure",
    "joined",
    "normal_draws",
    "rank_figure",
    "summarise",
]
