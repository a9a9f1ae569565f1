"""How close an image is to the truth, per image.

Images x and truth are (B, C, H, W), floating point. The truth is in [0, 1]; x may overshoot. Both
are clamped. ValueError if the shapes differ or the truth is in another range, such as 0 to 255.
"""

from functools import lru_cache, partial

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.downloads import fetched
from flowprior.extras import extra

SMALLEST_ERROR = 1e-15
OVERSHOOT = 0.1
"""By how much a truth, for example a sample of a flow, may be outside [0, 1]."""


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,): −10 log10 of the mean squared error; peak 1.

    At most 150 dB, the accuracy of float32: equal images would have ∞, and so would every mean.

    >>> import torch
    >>> psnr(torch.full((1, 1, 4, 4), 0.75), torch.full((1, 1, 4, 4), 0.25)).round(decimals=2)
    tensor([6.0200])
    """
    check_types(psnr, locals())
    _check(x, truth)
    error = (x.clamp(0, 1) - truth.clamp(0, 1)).square().flatten(1).mean(1)
    return -10 * error.clamp_min(SMALLEST_ERROR).log10()


def snr(x: Tensor, truth: Tensor) -> Tensor:
    """Signal-to-noise ratio in dB, (B,): 10 log10(‖truth‖²/‖x − truth‖²) of images in [−1, 1].

    Images in [0, 1] are doubled and shifted by −1 first. Grey has no signal, black as much as
    white: for dark images it is larger than `snr_shifted`. At most 150 dB, and at least −150 dB.

    Reference: Kothari et al., "Trumpets" (2021), table 3, which does not say in which range.

    >>> import torch
    >>> snr(torch.full((1, 1, 4, 4), 0.8), torch.full((1, 1, 4, 4), 1.0)).round(decimals=2)
    tensor([7.9600])
    """
    check_types(snr, locals())
    return _signal_to_noise(x, truth, 0.5)


def snr_shifted(x: Tensor, truth: Tensor) -> Tensor:
    """As `snr`, of images shifted from [−1, 1] to [0, 2], or, which is the same, in [0, 1].

    Black has no signal. The paper's numbers are compared with this one.

    >>> import torch
    >>> snr_shifted(torch.full((1, 1, 4, 4), 0.8), torch.full((1, 1, 4, 4), 1.0)).round(decimals=2)
    tensor([13.9800])
    """
    check_types(snr_shifted, locals())
    return _signal_to_noise(x, truth, 0.0)


def _signal_to_noise(x: Tensor, truth: Tensor, zero: float) -> Tensor:
    """Ratio in dB, (B,), where images of the value `zero` in [0, 1] have no signal."""
    _check(x, truth)
    x, truth = x.clamp(0, 1), truth.clamp(0, 1)
    signal, error = (truth - zero), (x - truth)
    signal, error = (part.square().flatten(1).mean(1) for part in (signal, error))
    ratio = (signal / error.clamp_min(SMALLEST_ERROR)).clamp(SMALLEST_ERROR, 1 / SMALLEST_ERROR)
    # A perfect image of a truth without a signal is no failure.
    return 10 * torch.where(error < SMALLEST_ERROR, 1 / SMALLEST_ERROR, ratio).log10()


def relative_error(x: Tensor, truth: Tensor) -> Tensor:
    """‖x − truth‖/‖truth‖ of each row, (B,), in whatever range; nothing is clamped.

    It depends on the range: in [−1, 1] black counts as much as white, in [0, 1] for nothing.

    >>> import torch
    >>> relative_error(torch.full((1, 1, 2, 2), 0.75), torch.full((1, 1, 2, 2), 0.5))
    tensor([0.5000])
    """
    check_types(relative_error, locals())
    return (x - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004), (B,): 11×11 Gaussian window of σ = 1.5, peak 1.

    The mean over all windows within the image: equals scikit-image with ``gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False``.
    Raises ValueError for images smaller than the window. Needs the extra `metrics`.
    """
    check_types(ssim, locals())
    with extra("metrics"):
        from torchmetrics.functional.image import structural_similarity_index_measure

    _check(x, truth)
    if min(x.shape[2:]) < 11:
        raise ValueError(f"ssim needs images of at least 11x11 pixels, got {tuple(x.shape)}")
    x, truth = (image.clamp(0, 1).double() for image in (x, truth))
    _, similarity = structural_similarity_index_measure(
        x, truth, data_range=1.0, reduction="none", return_full_image=True
    )
    # Where the window does not lie within the image, it would see mirrored pixels.
    return similarity[..., 5:-5, 5:-5].flatten(1).mean(1).float()


def lpips(x: Tensor, truth: Tensor) -> Tensor | None:
    """Learned perceptual distance of AlexNet (Zhang et al., 2018), (B,).

    None where the network's weights are neither on this machine nor downloadable
    (`flowprior.downloads.fetched`). Grey images are repeated to three channels; images smaller than
    64 pixels are enlarged to 64, as the network needs. Needs the extra `metrics`.
    """
    check_types(lpips, locals())
    _check(x, truth)
    network = _lpips_network(x.device)
    if network is None:
        return None
    with torch.no_grad():
        first, second = (_for_lpips(image) for image in (x, truth))
        return network(first, second).view(len(x))


@lru_cache(maxsize=4)
def _lpips_network(device: torch.device) -> torch.nn.Module | None:
    with extra("metrics"):
        import lpips as package
        from torchvision.models import AlexNet_Weights

    # It announces downloads, and uses torchvision in a way that is deprecated.
    make = partial(package.LPIPS, net="alex", verbose=False)
    network = fetched(AlexNet_Weights.IMAGENET1K_V1.url, make)
    return None if network is None else network.to(device).eval().requires_grad_(False)


def _for_lpips(image: Tensor) -> Tensor:
    image = image.clamp(0, 1).float() * 2 - 1
    image = image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image
    if min(image.shape[2:]) < 64:
        scale = 64 / min(image.shape[2:])
        image = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bilinear")
    return image


def _check(x: Tensor, truth: Tensor) -> None:
    if x.shape != truth.shape or x.ndim != 4:
        raise ValueError(
            "images to compare must have equal shapes (B, C, H, W), got "
            f"{tuple(x.shape)} and {tuple(truth.shape)}"
        )
    if not (x.is_floating_point() and truth.is_floating_point()):
        raise ValueError(f"images must be floating point, got {x.dtype} and {truth.dtype}")
    low, high = (value.item() for value in truth.aminmax()) if truth.numel() else (0, 1)
    if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
        raise ValueError(f"truth must be in [0, 1], got values from {low:.6g} to {high:.6g}")
