"""Whether posteriors are as wide as they should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import check_integer
from flowprior.inversion.solving import Posterior
from flowprior.inversion.warned import named_rows

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of a posterior that credible intervals hold."""
Statistic = Callable[[Tensor], Tensor]
"""A function of images (..., C, H, W) that gives a value (...) of each."""
_BINS = 20
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
            each level, (N, levels).
        levels: shares of the posterior that these intervals hold.
    """

    draws: int
    ranks: Mapping[str, Tensor]
    coverage: Tensor
    levels: Sequence[float] = LEVELS

    def p_values(self) -> dict[str, float]:
        """The p of the χ² test that ranks are uniform, by name.

        Raises:
            ValueError: there are fewer than 10 images.
        """
        return {name: uniform_p_value(ranks, self.draws) for name, ranks in self.ranks.items()}

    @property
    def p_value(self) -> float:
        """The smallest of `p_values` times their number.

        Below 0.05 the posteriors are probably wrong; right ones fall there too now and then.
        """
        found = self.p_values().values()
        return min(1.0, len(found) * min(found))

    def expected_coverage(self) -> tuple[Tensor, Tensor]:
        """Mean share of the pixels in intervals of each level, and half its 95 % interval."""
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
        draws: number of draws; see `check_draws`.
        seed: of draws and projections.
        indices: numbers of the images, by which ties are broken; 0 to N − 1 by default.
        statistics: further values of images (..., C, H, W) by name, (...) each.

    Raises:
        ValueError: an argument is wrong, or something is not finite; it is named.
    """
    check_types(calibrate, locals())
    check_draws(draws)
    check_integer("seed", seed, least=0)
    x = posterior.sample(draws, seed=seed).double()
    if x.ndim != 5 or len(x) != draws:
        raise ValueError(f"posterior must give {draws} draws of images, got {tuple(x.shape)}")
    if x.shape[1:] != truth.shape:
        expected, shape = tuple(x.shape[1:]), tuple(truth.shape)
        raise ValueError(f"truth must be images of shape {expected}, got {shape}")
    everything = torch.cat([truth.double()[None], x])
    _check_finite("truth", everything[:1])
    _check_finite("posterior: draws", x)
    indices = range(len(truth)) if indices is None else indices
    ties = [np.random.default_rng((seed, int(index))) for index in indices]
    values = {**_projections(truth.shape[1:], seed), **(statistics or {})}
    found = {name: value(everything) for name, value in values.items()}
    for name, value in found.items():
        _check_finite(f"statistics: {name}", value)
    ranks = {name: _ranks(value, ties) for name, value in found.items()}
    ranks[WHOLE] = _ranks(_mean_distances(everything), ties)
    pixels = _ranks(everything, ties).flatten(1)
    place = ((pixels + 0.5) / (draws + 1) * 2 - 1).abs()
    coverage = torch.stack([(place <= level + 1e-9).double().mean(1) for level in LEVELS], 1)
    return Calibration(draws, ranks, coverage)


def check_draws(draws: int) -> None:
    """Raise ValueError unless the ranks that draws allow fall evenly on all levels and bins.

    With 19, 39, 59, ... draws a truth is in an interval of each of `LEVELS` exactly as often as it
    says, if the posterior is right.
    """
    check_integer("draws", draws, least=1)
    if (draws + 1) % _BINS:
        raise ValueError(
            f"draws must be one less than a multiple of {_BINS}, such as 19 or 99, got {draws}: "
            "with others, intervals do not hold the share that they are named after"
        )


def joined(parts: Sequence[Calibration]) -> Calibration:
    """Calibrations of several batches as one.

    Raises:
        ValueError: there are none, or they are of other numbers of draws, values or levels.
    """
    if len({(p.draws, tuple(p.levels), *p.ranks) for p in parts}) != 1:
        raise ValueError("calibrations must be of equal numbers of draws, values and levels")
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
    bins = max(2, min(_BINS, len(ranks) // _LEAST, draws + 1))
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


def _check_finite(what: str, values: Tensor) -> None:
    """Raise ValueError unless values (k, N, ...) are finite, naming the images that are not."""
    wrong = ~values.isfinite().transpose(0, 1).flatten(1).all(1)
    if wrong.any():
        raise ValueError(f"{what} of {named_rows(wrong)}: not finite")


def _ranks(values: Tensor, ties: Sequence[np.random.Generator]) -> Tensor:
    """Ranks (N, ...) of the first of values (draws + 1, N, ...), at random among equal ones."""
    below = (values[1:] < values[0]).sum(0).cpu()
    equal = (values[1:] == values[0]).sum(0).cpu().numpy()
    random = [rng.integers(0, row + 1) for rng, row in zip(ties, equal, strict=True)]
    return below + torch.from_numpy(np.stack(random)).to(below.dtype)


def _mean_distances(x: Tensor) -> Tensor:
    """Mean distance of each of x (k, N, ...) from all k of the same image, (k, N)."""
    rows = x.flatten(2).transpose(0, 1)
    return torch.stack([torch.cdist(row, row).mean(1) for row in rows], 1)
