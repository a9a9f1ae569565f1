"""Whether posteriors are as wide as they should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flowprior.checks import check_integer
from flowprior.inversion.solving import Posterior, named_rows

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of credible intervals."""
Statistic = Callable[[Tensor], Tensor]
"""Of images (..., C, H, W), (...)."""
_LEAST = 5
"""Expected number of ranks in a bin of the χ² test."""
WHOLE = "whole image"


@dataclass(frozen=True)
class Calibration:
    """How truths that were drawn from the prior lie among draws of their posteriors.

    If the posteriors are right, every rank is uniform on 0 … draws, and credible intervals contain
    their share. Ranks that heap up at both ends are those of posteriors that are too narrow, in the
    middle of such that are too wide, at one end of such that are off to one side.

    Args:
        draws: number of draws of each posterior.
        ranks: how many draws have a smaller value than the truth, by name of the value, (N,) each.
            That of "whole image" is the mean distance from truth and draws: high ranks are truths
            that lie outside of the draws.
        coverage: share of the pixels of each image that are in the central credible interval of
            each of `LEVELS`, (N, levels).
    """

    draws: int
    ranks: Mapping[str, Tensor]
    coverage: Tensor

    def p_values(self) -> dict[str, float]:
        """The p of the χ² test that ranks are uniform, by name.

        Raises:
            ValueError: there are fewer than 10 images.
        """
        return {name: uniform_p_value(ranks, self.draws) for name, ranks in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The smallest of `p_values` times their number: below 0.05 the posteriors are wrong."""
        found = self.p_values().values()
        return min(1.0, len(found) * min(found))

    def expected_coverage(self) -> tuple[Tensor, Tensor]:
        """Mean share of the pixels in intervals of each of `LEVELS`, and half its 95 % interval."""
        error = self.coverage.std(0) / len(self.coverage) ** 0.5
        return self.coverage.mean(0), 1.96 * error


def calibrate(
    posterior: Posterior,
    truth: Tensor,
    draws: int = 99,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
) -> Calibration:
    """Rank truths among draws of their posteriors (simulation-based calibration).

    The truths must be draws of the prior that the posteriors are made with, and their data must
    have the noise that they are made with. Values are the mean of the pixels, the projections onto
    two random images and the distance of the whole image.

    References: Talts et al., Validating Bayesian inference algorithms with simulation-based
    calibration (2018); Gneiting et al., Assessing probabilistic forecasts of multivariate
    quantities (2008), section 3, for ranks of the whole.

    Args:
        posterior: of N images.
        truth: images (N, C, H, W) in [0, 1].
        draws: number of draws, at least 9. With 99, levels are exact.
        seed: of draws and projections.
        indices: numbers of the images, by which ties are broken; 0 to N − 1 by default.
        statistics: further values of images (..., C, H, W) by name, (...) each.

    Raises:
        ValueError: an argument is wrong; it is named.
    """
    check_integer("draws", draws, least=9)
    check_integer("seed", seed, least=0)
    x = posterior.sample(draws, seed=seed).double()
    if x.ndim != 5 or len(x) != draws:
        raise ValueError(f"posterior must give {draws} draws of images, got {tuple(x.shape)}")
    if x.shape[1:] != truth.shape:
        expected, shape = tuple(x.shape[1:]), tuple(truth.shape)
        raise ValueError(f"truth must be images of shape {expected}, got {shape}")
    if not x.isfinite().all():
        wrong = (~x.isfinite()).transpose(0, 1).flatten(1).any(1)
        raise ValueError(f"posterior: draws of {named_rows(wrong)} are not finite")
    everything = torch.cat([truth.double()[None], x])
    indices = range(len(truth)) if indices is None else indices
    ties = [np.random.default_rng((seed, int(index))) for index in indices]
    values = {**_projections(truth.shape[1:], seed), **(statistics or {})}
    ranks = {name: _ranks(value(everything), ties) for name, value in values.items()}
    ranks[WHOLE] = _ranks(_mean_distances(everything), ties)
    pixels = (x < truth.double()).sum(0).flatten(1)
    place = ((pixels + 0.5) / (draws + 1) * 2 - 1).abs()
    coverage = torch.stack([(place <= level + 1e-9).double().mean(1) for level in LEVELS], 1)
    return Calibration(draws, ranks, coverage)


def joined(parts: Sequence[Calibration]) -> Calibration:
    """Calibrations of several batches as one.

    Raises:
        ValueError: there are none, or they are of other numbers of draws or other values.
    """
    if not parts or any((p.draws, *p.ranks) != (parts[0].draws, *parts[0].ranks) for p in parts):
        raise ValueError("calibrations must be of equal numbers of draws and equal values")
    ranks = {name: torch.cat([part.ranks[name] for part in parts]) for name in parts[0].ranks}
    return replace(parts[0], ranks=ranks, coverage=torch.cat([p.coverage for p in parts]))


def uniform_p_value(ranks: Tensor, draws: int) -> float:
    """The p of Pearson's χ² test that ranks (N,) are uniform on 0 … draws.

    Ranks are put into at most 20 bins of equal width, with 5 or more expected in each.

    Raises:
        ValueError: N is below 10.
    """
    from scipy.stats import chi2

    if len(ranks) < 2 * _LEAST:
        raise ValueError(f"calibration takes at least {2 * _LEAST} images, got {len(ranks)}")
    counts, expected = binned(ranks, draws)
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


def binned(ranks: Tensor, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of ranks in bins of equal width, and those to expect."""
    bins = max(2, min(20, len(ranks) // _LEAST, draws + 1))
    edges = np.round(np.linspace(0, draws + 1, bins + 1))
    counts = np.histogram(ranks.cpu().numpy(), edges - 0.5)[0]
    return counts, len(ranks) * np.diff(edges) / (draws + 1)


def _projections(shape: torch.Size, seed: int) -> dict[str, Statistic]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    onto = {
        f"projection {k + 1}": lambda x, image=image: (x * image.to(x)).sum((-3, -2, -1))
        for k, image in enumerate(images)
    }
    return {"mean": lambda x: x.mean((-3, -2, -1)), **onto}


def _ranks(values: Tensor, ties: Sequence[np.random.Generator]) -> Tensor:
    """Ranks (N,) of the first of values (draws + 1, N), at random among equal ones."""
    below = (values[1:] < values[0]).sum(0).cpu()
    equal = (values[1:] == values[0]).sum(0).cpu()
    random = [int(rng.integers(0, n + 1)) for rng, n in zip(ties, equal.tolist(), strict=True)]
    return below + torch.tensor(random, dtype=below.dtype)


def _mean_distances(x: Tensor) -> Tensor:
    """Mean distance of each of x (k, N, ...) from all k of the same image, (k, N)."""
    rows = x.flatten(2).transpose(0, 1)
    return torch.stack([torch.cdist(row, row).mean(1) for row in rows], 1)
