"""What a sampler learns of each image in its warm-up: its step size, and the shape of its draws."""

from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows

_FIRST = 0.1
_SHRINKAGE, _OFFSET, _POWER = 0.05, 10, 0.75
"""γ, t₀ and κ of Hoffman & Gelman."""


class StepSizes:
    """A step size for each image, by dual averaging towards a rate of acceptance.

    Reference: Hoffman & Gelman, The no-U-turn sampler (2014), section 3.2.

    Args:
        like: tensor with one entry for each image, (B,) float64.
        target: mean probability of acceptance to reach.
    """

    def __init__(self, like: Tensor, target: float) -> None:
        self.target = target
        self.now = torch.full_like(like, _FIRST)
        self.restart()

    def restart(self) -> None:
        """Forget the rates so far, as the chains' coordinates have changed."""
        self.count, self.error = 0, torch.zeros_like(self.now)
        self.centre, self.mean = (10 * self.now).log(), torch.zeros_like(self.now)

    def update(self, acceptance: Tensor) -> None:
        """Take the mean probabilities of acceptance (B,) of an iteration into account."""
        self.count += 1
        share = 1 / (self.count + _OFFSET)
        self.error = (1 - share) * self.error + share * (self.target - acceptance)
        log_step = self.centre - self.count**0.5 / _SHRINKAGE * self.error
        share = self.count**-_POWER
        self.mean = share * log_step + (1 - share) * self.mean
        self.now = log_step.exp()

    def settle(self) -> None:
        """Take the mean of the logarithms, for good."""
        self.now = self.mean.exp()

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        vars(self).update(state)


def window_ends(warm_up: int) -> tuple[int, ...]:
    """Iterations at which the shape of the draws since the last one is taken."""
    return tuple(dict.fromkeys(warm_up * percent // 100 for percent in (15, 40, 90)))


def square_root(draws: Tensor, dense: bool) -> Tensor:
    """Square root S of the covariance of draws (N, B, m, n): (B, n), or (B, n, n) lower.

    It is drawn towards a smaller one, as Stan does, and off the diagonal towards 0, so that few
    draws do no harm.
    """
    return by_rows(lambda rows: _root(rows.flatten(1, 2), dense), draws.transpose(0, 1))


def _root(draws: Tensor, dense: bool) -> Tensor:
    count, size = draws.shape[1:]
    centred = draws.double() - draws.double().mean(1, keepdim=True)
    variance = centred.square().sum(1) / (count - 1)
    share = count / (count + 5)
    variance = share * variance + (1 - share) * 1e-3
    if not dense:
        return variance.sqrt().to(draws)
    # No less than the diagonal, or the matrix would not be positive definite.
    covariance = centred.mT @ centred / (count - 1) * (count / (count + max(size, 5)))
    covariance.diagonal(dim1=1, dim2=2).copy_(variance)
    return torch.linalg.cholesky(covariance).to(draws)
