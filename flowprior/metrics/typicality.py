"""Is a latent typical of N(0, I)? Diagnostics to log and plot."""

import torch
import torch.nn.functional as F
from torch import Tensor


def typicality(z: Tensor, patch_size: int = 8) -> dict[str, Tensor]:
    """Per-image diagnostics of latents z (B, C, H, W), each (B,).

    radius: ‖z‖/√n, which is 1 ± 1/√(2n) for a typical latent. skewness and kurtosis (non-excess):
    of the n entries; 0 and 3. patch_energy_spread: standard deviation over the patches C×w×w of
    ‖z_i‖², divided by its χ² value √(2D)·radius²; 1. Patches do not overlap, and w is the largest
    divisor of H and W up to `patch_size`.

    References: Li & Denli, Gaussianization layers, section 3; population moments (1/n).

    >>> z = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> {name: round(value.mean().item(), 1) for name, value in typicality(z, patch_size=4).items()}
    {'radius': 1.0, 'skewness': 0.0, 'kurtosis': 3.0, 'patch_energy_spread': 1.0}
    """
    flat = z.flatten(1)
    energy = flat.square().mean(1)
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    patch_energy = patches(z, patch_size).square().sum(1)
    dimensions = flat.shape[1] / patch_energy.shape[1]
    expected = (2 * dimensions) ** 0.5 * energy
    return {
        "radius": energy.sqrt(),
        "skewness": centred.pow(3).mean(1) / variance.pow(1.5),
        "kurtosis": centred.pow(4).mean(1) / variance.square(),
        "patch_energy_spread": patch_energy.std(1, unbiased=False) / expected,
    }


def largest_patch_correlation(z: Tensor, patch_size: int = 8) -> tuple[Tensor, Tensor]:
    """Largest |correlation| between two entries of a patch, over all patches of a batch.

    Also returns what to expect of independent entries, √(2 ln(D(D−1))/N) for patches of D entries
    and N patches, so that the first can be read against the second. Both are NaN for N = 1.
    """
    vectors = patches(z, patch_size).transpose(0, 1).flatten(1).double()
    size, count = vectors.shape
    if size < 2 or count < 2:
        missing = torch.full((), float("nan"), dtype=z.dtype, device=z.device)
        return missing, missing
    correlation = torch.corrcoef(vectors)
    largest = (correlation - torch.diag(correlation.diag())).abs().max()
    expected = (2 * torch.tensor(size * (size - 1)).log() / count).sqrt()
    return largest.to(z.dtype), expected.to(largest.device, z.dtype)


def patches(z: Tensor, patch_size: int) -> Tensor:
    """Non-overlapping patches of z (B, C, H, W) as columns: (B, C·w², N).

    w is the largest divisor of H and of W that is at most `patch_size`.
    """
    height, width = z.shape[-2:]
    side = max(
        w
        for w in range(1, min(patch_size, height, width) + 1)
        if height % w == 0 and width % w == 0
    )
    return F.unfold(z, side, stride=side)
