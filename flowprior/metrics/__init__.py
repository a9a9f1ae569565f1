"""Metric conventions in one place."""

from flowprior.metrics.density import bits_per_dim
from flowprior.metrics.images import lpips, psnr, ssim
from flowprior.metrics.typicality import largest_patch_correlation, patches, typicality

__all__ = [
    "bits_per_dim",
    "largest_patch_correlation",
    "lpips",
    "patches",
    "psnr",
    "ssim",
    "typicality",
]
