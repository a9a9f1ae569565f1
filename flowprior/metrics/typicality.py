"""Is a latent typical of N(0, I)? Diagnostics to log and plot."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flowprior.argument_types import check_types


def typicality(z: Tensor, patch_size: int = 8) -> dict[str, Tensor]:
    """Per-image diagnostics of latents z (B, ...), each (B,).

    radius: ‖z‖/√n, which is 1 ± 1/√(2n) for a typical latent. skewness and kurtosis (non-excess):
    of the n entries; typically 0 and 3. patch_energy_spread: standard deviation of ‖z_i‖² over the
    patches (see `patches`), divided by its mean for a typical latent; so typically 1 for any number
    of patches, and NaN for a single one. It is left out where z is not (B, C, H, W).

    References: Li & Denli, Gaussianization layers, section 3; population moments (1/n).

    >>> z = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> {name: round(value.mean().item(), 1) for name, value in typicality(z, patch_size=4).items()}
    {'radius': 1.0, 'skewness': 0.0, 'kurtosis': 3.0, 'patch_energy_spread': 1.0}
    """
    check_types(typicality, locals())
    flat = z.flatten(1)
    energy = flat.square().mean(1)
    centred = flat - flat.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    found = {
        "radius": energy.sqrt(),
        "skewness": centred.pow(3).mean(1) / variance.pow(1.5),
        "kurtosis": centred.pow(4).mean(1) / variance.square(),
    }
    if z.ndim == 4:
        patch_energy = patches(z, patch_size).square().sum(1)
        spread = patch_energy.std(1, unbiased=False) / patch_energy.mean(1)
        typical = _typical_spread(patch_energy.shape[1], flat.shape[1])
        found["patch_energy_spread"] = spread / typical
    return found


def _typical_spread(count: int, entries: int) -> float:
    """Mean of std(e)/mean(e) over the energies e of patches that share N(0, I) entries.

    e/sum(e) is Dirichlet distributed, which gives the mean square; the factor from its root to the
    mean of the root is that of normal samples, within 1 % for patches of 4 entries or more.
    """
    if count < 2:
        return math.nan
    log_ratio = math.lgamma(count / 2) - math.lgamma((count - 1) / 2)
    return 2 * math.exp(log_ratio) / math.sqrt(entries + 2)


def largest_patch_correlation(z: Tensor, patch_size: int = 8) -> tuple[Tensor, Tensor]:
    """Largest |correlation| between two entries of a patch, over all patches of a batch.

    Also returns what to expect of independent entries, so that the first can be read against the
    second: the median of the largest of D(D−1)/2 correlations, for patches of D entries and N
    patches, where artanh of each is nearly N(0, 1/(N − 3)) (Fisher). Both are NaN for N = 1.

    Returns:
        Two tensors without dimensions.
    """
    check_types(largest_patch_correlation, locals())
    vectors = patches(z, patch_size).transpose(0, 1).flatten(1).double()
    size, count = vectors.shape
    if size < 2 or count < 2:
        missing = torch.full((), float("nan"), dtype=z.dtype, device=z.device)
        return missing, missing
    correlation = torch.corrcoef(vectors)
    largest = (correlation - torch.diag(correlation.diag())).abs().max()
    quantile = torch.tensor(0.5 + 0.5 ** (1 + 2 / (size * (size - 1))), dtype=torch.float64)
    expected = (torch.special.ndtri(quantile) / max(count - 3, 1e-9) ** 0.5).tanh()
    return largest.to(z.dtype), expected.to(largest.device, z.dtype)


def patches(z: Tensor, patch_size: int) -> Tensor:
    """Non-overlapping patches of z (B, C, H, W) as columns: (B, C·w², N).

    w is the largest divisor of H and of W that is at most `patch_size` and at most half of either.
    """
    check_types(patches, locals())
    height, width = z.shape[-2:]
    largest = max(1, min(patch_size, height // 2, width // 2))
    side = max(w for w in range(1, largest + 1) if height % w == width % w == 0)
    return F.unfold(z, side, stride=side)
