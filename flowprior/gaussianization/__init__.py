"""Gaussianization layers z = h(v), which keep a latent in the typical set of N(0, I)."""

from flowprior.gaussianization.gaussianization import Gaussianization
from flowprior.gaussianization.heavy_tails import lambert_w_gaussianize
from flowprior.gaussianization.ica import ica
from flowprior.gaussianization.lambert_w import lambert_w
from flowprior.gaussianization.reparameterization import Identity, Reparameterization
from flowprior.gaussianization.standardization import standardize
from flowprior.gaussianization.whitening import whiten
from flowprior.gaussianization.yeo_johnson import yeo_johnson

__all__ = [
    "Gaussianization",
    "Identity",
    "Reparameterization",
    "ica",
    "lambert_w",
    "lambert_w_gaussianize",
    "standardize",
    "whiten",
    "yeo_johnson",
]
