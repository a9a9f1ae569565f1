"""Strong-Wolfe line searches that advance together."""

from typing import NamedTuple

import torch
from torch import Tensor


class Points(NamedTuple):
    """Step length t, f(x + t d) and its derivative in t, each (k,)."""

    step: Tensor
    loss: Tensor
    slope: Tensor

    def where(self, mask: Tensor, other: "Points") -> "Points":
        """These points where the mask (k,) is set, the others elsewhere."""
        return Points(*map(torch.where, (mask,) * 3, self, other))


class StrongWolfe:
    """k line searches that advance together: algorithms 3.5 and 3.6 in one.

    `low` is the best point so far; it satisfies the condition of sufficient decrease. `high` is +∞
    while the search still goes outwards, and then the other end of an interval that contains
    points satisfying the strong Wolfe conditions. The first trial step is 1.

    Reference: Nocedal & Wright, Numerical optimization, section 3.5.

    Args:
        loss: at 0, (k,).
        slope: at 0, (k,), negative.
        shortest: length of the interval at which the search ends, (k,).
        c1: constant of sufficient decrease, f(t) ≤ f(0) + c1 t f'(0), eq. 3.7a.
        c2: constant of the curvature condition, |f'(t)| ≤ c2 |f'(0)|, eq. 3.7b.
    """

    def __init__(self, loss: Tensor, slope: Tensor, shortest: Tensor, c1: float, c2: float) -> None:
        self.start = self.low = Points(torch.zeros_like(loss), loss, slope)
        self.high = Points(*[torch.full_like(loss, torch.inf)] * 3)
        self.trial_step = torch.ones_like(loss)
        self.shortest, self.c1, self.c2 = shortest, c1, c2
        self.pending = torch.ones_like(loss, dtype=torch.bool)
        self.seen_finite = torch.zeros_like(self.pending)
        self.trials = torch.zeros_like(loss, dtype=torch.long)

    @property
    def position(self) -> Tensor:
        """Step at which each row is to be evaluated, (k,); `low` where the search has ended."""
        return torch.where(self.pending, self.trial_step, self.low.step)

    def advance(self, loss: Tensor, slope: Tensor) -> Tensor:
        """Take loss and slope at the trial steps; returns the rows with a new `low`, (k,) bool."""
        trial, old = Points(self.trial_step, loss, slope), self.low
        ceiling = self.start.loss + self.c1 * trial.step * self.start.slope
        is_lower = (loss <= ceiling) & (loss < old.loss)
        lower, higher = self.pending & is_lower, self.pending & ~is_lower
        wolfe = lower & (slope.abs() <= -self.c2 * self.start.slope)
        turned = lower & (slope * (self.high.step - old.step) >= 0)
        width = (self.high.step - old.step).abs()
        self.high = trial.where(higher, old.where(turned, self.high))
        self.low = trial.where(lower, old)
        self.seen_finite = self.seen_finite | (self.pending & loss.isfinite())
        self.trials = self.trials + self.pending
        new_width = (self.high.step - self.low.step).abs()
        self.pending = self.pending & ~wolfe & (new_width > self.shortest)
        inside = _interpolate(self.low, self.high, new_width > 0.66 * width)
        self.trial_step = torch.where(new_width.isinf(), _extrapolate(old, self.low), inside)
        return lower


def _interpolate(low: Points, high: Points, bisect: Tensor) -> Tensor:
    """A step inside the interval, (k,); much closer to `low` where f(high) is not finite."""
    width = high.step - low.step
    share = ((_cubic_minimizer(low, high) - low.step) / width).clamp(0.1, 0.9)
    share = torch.where(bisect | share.isnan(), 0.5, share)
    return low.step + torch.where(high.loss.isinf(), 0.1, share) * width


def _extrapolate(previous: Points, low: Points) -> Tensor:
    """A step beyond `low`, (k,), in the range of Moré & Thuente (1994)."""
    reach, cubic = low.step - previous.step, _cubic_minimizer(previous, low)
    cubic = torch.where(cubic > low.step, cubic, torch.inf)
    return cubic.clamp(low.step + 1.1 * reach, low.step + 4 * reach)


def _cubic_minimizer(a: Points, b: Points) -> Tensor:
    """Minimiser of the cubic through a and b, eq. 3.59; NaN where it has none."""
    width = b.step - a.step
    d1 = a.slope + b.slope - 3 * (b.loss - a.loss) / width
    d2 = width.sign() * (d1.square() - a.slope * b.slope).sqrt()
    return b.step - width * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)
