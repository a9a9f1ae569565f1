"""What the data leave open: solvers whose estimate is a distribution of images to draw from."""

from flowprior.posterior.families import Coupling, Family, FullGaussian, LowRank
from flowprior.posterior.langevin import Langevin
from flowprior.posterior.variational import Variational

__all__ = ["Coupling", "Family", "FullGaussian", "Langevin", "LowRank", "Variational"]
