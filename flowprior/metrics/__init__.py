"""Metric conventions in one place."""

from flowprior.metrics.density import (
    FLAT_NOISE_STD,
    bits_per_dim,
    coded_bits_per_dim,
    flat_noise_log_density,
)
from flowprior.metrics.digits import DigitClassifier, load_classifier
from flowprior.metrics.frechet import frechet_distance
from flowprior.metrics.images import lpips, psnr, relative_error, snr, snr_shifted, ssim
from flowprior.metrics.round_trip import (
    unusual_images,
    unusual_round_trips,
    worst_round_trip,
)
from flowprior.metrics.typicality import largest_patch_correlation, patches, typicality

__all__ = [
    "FLAT_NOISE_STD",
    "DigitClassifier",
    "bits_per_dim",
    "coded_bits_per_dim",
    "flat_noise_log_density",
    "frechet_distance",
    "largest_patch_correlation",
    "load_classifier",
    "lpips",
    "patches",
    "psnr",
    "relative_error",
    "snr",
    "snr_shifted",
    "ssim",
    "typicality",
    "unusual_images",
    "unusual_round_trips",
    "worst_round_trip",
]
