"""L-BFGS and Adam on the unknowns of a batch, separately for each row."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from flowprior.inversion.batch_invariant import by_rows, rows_per_call
from flowprior.inversion.batched_lbfgs import BatchedLBFGS, RowStatus
from flowprior.inversion.cuda_graphs import Graphed

Optimizer = Literal["lbfgs", "adam"]
Values = dict[str, Tensor]
WINDOW = 20
"""Iterations over which the decrease of a loss is judged: single ones of L-BFGS are uneven."""


class Terms(Protocol):
    """An objective of unknowns v (k, n), separate for each row.

    A class that says `replayable = True`, itself and not a base of it, computes the same of the
    same unknowns in every call: on a GPU it is replayed as a CUDA graph (`Graphed`), and made anew
    when one of its attributes is set. What is behind the attributes may be changed in place only.
    """

    def __call__(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Values]:
        """Images (k, C, H, W) and values, "loss" among them, (k,) float64, of the images `rows`."""

    def latents(self, v: Tensor) -> Tensor | None:
        """Latents z that the prior takes, or None."""


class Descent:
    """Base of the L-BFGS and Adam runs: a `Run` over unknowns `v` (B, n).

    Args:
        terms: what to minimise.
        v: the unknowns, moved in place.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, terms: Terms, v: nn.Parameter) -> None:
        self.terms = terms
        self.v = v
        self.rows = torch.arange(len(v), device=v.device)
        self.size = rows_per_call(self._with_gradient, v.detach()[:1], self.rows[:1])
        self._graphed: Graphed | None = None
        self._replayed: dict[str, Any] = {}

    @property
    def z(self) -> Tensor | None:
        """Latents as the prior sees them."""
        with torch.no_grad():
            return by_rows(self.terms.latents, self.v.detach())

    @property
    def tests_prior(self) -> bool:
        """Whether latents and residuals of the minimum tell if the prior covers the data."""
        return getattr(self.terms, "tests_prior", False)

    @property
    def ended(self) -> Tensor:
        """Iteration at which each row found no descent any more, (B,); -1 where it may move."""
        return torch.full_like(self.rows, -1)

    def evaluate(self, rows: Tensor) -> tuple[Tensor, Values]:
        """Images and values of some rows; sets their gradient, and 0 for the others."""
        v = self.v.detach()
        x, values, gradient = by_rows(self._call(), v[rows], rows, size=self.size)
        self.v.grad = torch.zeros_like(v).index_copy_(0, rows, gradient)
        return x, values

    def _call(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Values, Tensor]]:
        """The objective with its gradient, replayed where that is allowed."""
        if not vars(type(self.terms)).get("replayable", False):  # not by inheritance
            return self._with_gradient
        now = vars(self.terms)
        same = now.keys() == self._replayed.keys() and all(
            value is self._replayed[name] for name, value in now.items()
        )
        if self._graphed is None or not same:  # a graph has what was there when it was made
            self._graphed, self._replayed = Graphed(len(self.v)), dict(now)
        return partial(self._graphed, self._with_gradient)

    def _with_gradient(self, v: Tensor, rows: Tensor) -> tuple[Tensor, Values, Tensor]:
        v = v.detach().requires_grad_()
        with torch.enable_grad():
            x, values = self.terms(v, rows)
            (gradient,) = torch.autograd.grad(values["loss"].sum(), v)
        return x.detach(), {name: value.detach() for name, value in values.items()}, gradient

    def _start(self) -> tuple[Tensor, Values]:
        with torch.no_grad():
            return by_rows(self.terms, self.v.detach(), self.rows, size=self.size)

    def state_dict(self) -> dict[str, Any]:
        """Unknowns, images, values and the optimiser's state."""
        return {
            "v": self.v.detach(),
            "x": self.x,
            "values": self.values,
            "finite": self.finite,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state."""
        with torch.no_grad():
            self.v.copy_(state["v"])
        self.x, self.values, self.finite = state["x"], state["values"], state["finite"]
        self.optimizer.load_state_dict(state["optimizer"])


class LBFGSRun(Descent):
    """L-BFGS, with its own history and strong-Wolfe line search for each image.

    A row also ends when `WINDOW` iterations lower its loss by at most `tolerance` of it.
    """

    def __init__(self, terms: Terms, v: nn.Parameter, tolerance: float = 0.0) -> None:
        super().__init__(terms, v)
        self.tolerance = tolerance
        ends = {"tolerance_change": tolerance, "window": WINDOW} if tolerance else {}
        self.optimizer = BatchedLBFGS([v], **ends)
        self.x, self.values = self._start()
        self.finite = _all_finite(self.values)

    @property
    def active(self) -> Tensor:
        """Rows that have neither converged nor failed."""
        return self.optimizer.active

    @property
    def ended(self) -> Tensor:
        """See `Descent.ended`."""
        status = self.optimizer.status
        ended = status == RowStatus.FAILED
        if not self.tolerance:  # with one, a row ends where its loss falls too slowly
            ended |= status == RowStatus.CONVERGED
        return torch.where(ended, self.optimizer.iterations, -1)

    def step(self) -> None:
        """Make one outer iteration of every active row."""
        self._advance(self.optimizer.step)

    def restart(self, rows: Tensor) -> None:
        """Begin some rows anew where they are, because their objective has changed."""
        self._advance(partial(self.optimizer.restart, rows=rows))

    def _advance(self, advance: Callable[[Callable[[Tensor], Tensor]], object]) -> None:
        seen: list[tuple[Tensor, Tensor, Values]] = []

        def closure(rows: Tensor) -> Tensor:
            x, values = self.evaluate(rows)
            seen.append((rows, x, values))
            return values["loss"]

        advance(closure)
        # Of the points tried, a row is at the one whose loss is its own.
        for rows, x, values in seen:
            accepted = values["loss"] == self.optimizer.losses[rows]
            self.x[rows] = chosen(accepted, x, self.x[rows])
            for name, value in values.items():
                self.values[name][rows] = torch.where(accepted, value, self.values[name][rows])
        self.finite = self.finite & (self.optimizer.status != RowStatus.NONFINITE)


class AdamRun(Descent):
    """Adam: it works on single entries, so the steps of an image depend on no other image.

    A row ends when `WINDOW` iterations lower its loss by at most `tolerance` of it, by the rule of
    `BatchedLBFGS`.
    """

    _WATCHED = ("falling", "past", "scale")

    def __init__(
        self, terms: Terms, v: nn.Parameter, learning_rate: float, tolerance: float = 0.0
    ) -> None:
        super().__init__(terms, v)
        self.tolerance = tolerance
        self.optimizer = torch.optim.Adam([v], learning_rate)
        self.finite = torch.ones(len(v), dtype=torch.bool, device=v.device)
        self.x, self.values = self._start()
        self._kept = v.detach().clone()
        self._begin()

    @property
    def active(self) -> Tensor:
        """Rows that are finite and whose loss still falls."""
        return self.finite & self.falling

    def step(self) -> None:
        """Make one step of every active row."""
        self.v.grad = self._gradient  # others may have cleared it in the meantime
        self.optimizer.step()
        self._evaluate()
        if self.tolerance:
            self._watch()

    def restart(self, rows: Tensor) -> None:
        """Take the new objective of some rows into account; Adam keeps its moments."""
        self.falling = self.falling.index_fill(0, rows, True)
        self._evaluate()
        self._watch_anew(rows)

    def _begin(self) -> None:
        self.falling = torch.ones_like(self.finite)
        self._evaluate()
        loss = self.values["loss"]
        self.scale, self.past = torch.ones_like(loss), loss.new_zeros(WINDOW, len(loss))
        self._watch_anew(self.rows)

    def _watch_anew(self, rows: Tensor) -> None:
        """Forget the past losses of some rows."""
        loss = self.values["loss"][rows]
        self.scale[rows] = loss.abs().clamp_max(1)
        self.past[:, rows] = math.inf
        self.past[-1, rows] = loss

    def _watch(self) -> None:
        """End the rows whose loss has fallen too little since the oldest of the past ones."""
        loss = self.values["loss"]
        least = self.tolerance * loss.abs().maximum(self.scale)
        self.falling = self.falling & (self.past[0] - loss > least)
        self.past = torch.cat([self.past[1:], loss[None]])

    def _evaluate(self) -> None:
        """Update loss and gradient; rows that are not active stay at their last v for good."""
        rows = self.active.nonzero()[:, 0]
        self._gradient = torch.zeros_like(self.v)
        if len(rows):
            x, values = self.evaluate(rows)
            sound = _all_finite(values) & self.v.grad[rows].isfinite().all(1)
            self.finite = self.finite.index_copy(0, rows, sound)
            rows, x = rows[sound], x[sound]
            self._gradient[rows] = self.v.grad[rows]
            self._kept[rows] = self.v.detach()[rows]
            self.x = self.x.index_copy(0, rows, x)
            self.values = {
                name: self.values[name].index_copy(0, rows, value[sound])
                for name, value in values.items()
            }
        with torch.no_grad():
            self.v.copy_(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """See `Descent.state_dict`; with a tolerance also the past losses."""
        watched = self._WATCHED if self.tolerance else ()
        return {**super().state_dict(), **{name: getattr(self, name) for name in watched}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state; the gradient is computed again."""
        super().load_state_dict(state)
        for name in self._WATCHED if self.tolerance else ():
            setattr(self, name, state[name])
        self._kept = self.v.detach().clone()
        self._evaluate()


def _all_finite(values: Values) -> Tensor:
    return torch.stack([value.isfinite() for value in values.values()]).all(0)


def chosen(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new values (B, ...) in these rows, bool (B,), the old ones in the others."""
    return torch.where(rows.view(-1, *[1] * (new.ndim - 1)), new, old)
