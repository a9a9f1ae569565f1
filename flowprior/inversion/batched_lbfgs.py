"""L-BFGS on many independent problems at once."""

import inspect
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flowprior.inversion.cuda_graphs import Graphed
from flowprior.inversion.strong_wolfe import StrongWolfe

Closure = Callable[..., Tensor]


class RowStatus(IntEnum):
    """State of a row."""

    ACTIVE = 0
    CONVERGED = 1
    FAILED = 2
    """No lower point was found, not even along the negative gradient."""
    NONFINITE = 3
    """Loss or gradient is NaN or infinite at the start, or at all points of the last search."""


class BatchedLBFGS(Optimizer):
    r"""L-BFGS with a strong-Wolfe line search; each row of the parameter is an independent problem.

    Each row has its own curvature pairs, step length and stopping, and moves as it would alone:
    to the last bit on a CPU if the closure's results do not depend on the batch (see
    `batch_invariant` and `by_rows`). A row that is no longer active does not move. The objective
    must not change between steps, because its last value and gradient are kept.

    A row has converged when ‖∇f‖∞ ≤ `tolerance_grad` · max(s, |f|), when its last `window`
    iterations lowered f by at most `tolerance_change` · max(s, |f|), s = min(1, |f| at the start),
    or when the quadratic model promises less than the rounding error of f. A tolerance of 0 is
    never met by a change. A loss counts as +∞ if it or its gradient is not finite. A row whose line
    search finds no lower point forgets its curvature pairs; if the next search, along −∇f, fails
    too, the row has failed.

    The closure computes the losses (B,), back-propagates their sum and returns them; the optimizer
    has set the gradient to None. A closure with an argument `rows`, a LongTensor of ascending
    indices, computes, back-propagates and returns only these losses, (len(rows),), so that
    inactive rows cost nothing. Losses are compared in the precision in which they are returned,
    which may be higher than that of the parameter.

    References: Nocedal & Wright, Numerical optimization, algorithms 3.5, 3.6, 7.4 and 7.5; Liu &
    Nocedal, On the limited memory BFGS method for large scale optimization (1989).

    Args:
        params: one parameter, (B, ...), float32 or float64.
        memory: maximum number m of curvature pairs.
        tolerance_grad: tolerance of the gradient, relative to the loss.
        tolerance_change: tolerance of the decrease, relative to the loss.
        max_evaluations: maximum number of evaluations per row and step.
        c1: constant of the sufficient decrease condition.
        c2: constant of the curvature condition; 0 < c1 < c2 < 1.
        window: number of iterations whose decrease `tolerance_change` is about.

    Raises:
        ValueError: an option is out of its range, the parameter does not fit, or the closure
            returns anything but one loss per row.

    >>> x = torch.nn.Parameter(torch.tensor([[3.0, 1.0], [-2.0, 5.0]]))
    >>> optimizer = BatchedLBFGS([x])
    >>> def closure(rows):
    ...     losses = (x[rows] - 1).square().sum(1)
    ...     losses.sum().backward()
    ...     return losses
    >>> while optimizer.active.any():
    ...     losses = optimizer.step(closure)
    >>> x.detach().allclose(torch.ones(2, 2))
    True
    """

    _replayed: tuple[Tensor, Graphed] | None = None

    def __init__(
        self,
        params: Iterable[Tensor],
        memory: int = 30,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        max_evaluations: int = 25,
        c1: float = 1e-4,
        c2: float = 0.9,
        window: int = 1,
    ) -> None:
        if min(memory, max_evaluations, window) < 1:
            raise ValueError(
                "BatchedLBFGS: memory, max_evaluations and window must be at least 1, got "
                f"{memory}, {max_evaluations} and {window}"
            )
        if not (tolerance_grad >= 0 and tolerance_change >= 0):
            raise ValueError(
                "BatchedLBFGS: tolerances must not be negative, got "
                f"{tolerance_grad} and {tolerance_change}"
            )
        if not 0 < c1 < c2 < 1:
            raise ValueError(f"BatchedLBFGS: 0 < c1 < c2 < 1 must hold, got {c1} and {c2}")
        defaults = {
            "memory": memory,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "max_evaluations": max_evaluations,
            "lr": 1.0,  # unused, but some tools read it
            "c1": c1,
            "c2": c2,
            "window": window,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Accept one parameter, and refuse any other."""
        super().add_param_group(param_group)
        parameters = [p for group in self.param_groups for p in group["params"]]
        if len(parameters) != 1:
            raise ValueError(f"BatchedLBFGS: one parameter expected, got {len(parameters)}")
        shape, dtype = parameters[0].shape, parameters[0].dtype
        if dtype not in (torch.float32, torch.float64) or not shape or 0 in shape:
            raise ValueError(
                "BatchedLBFGS: the parameter must be (B, ...), not empty, float32 or float64, got "
                f"{dtype} {tuple(shape)}"
            )

    @property
    def status(self) -> Tensor:
        """`RowStatus` of each row, (B,) int64."""
        return self._rows["status"].clone()

    @property
    def active(self) -> Tensor:
        """Rows that still move, (B,) bool."""
        return self._rows["status"] == RowStatus.ACTIVE

    @property
    def losses(self) -> Tensor:
        """Current loss of each row, (B,) float64; NaN before the first step."""
        return self._rows["losses"].clone()

    @property
    def evaluations(self) -> Tensor:
        """Number of evaluations of each row, (B,) int64."""
        return self._rows["evaluations"].clone()

    @property
    def iterations(self) -> Tensor:
        """Number of iterations of each row, (B,) int64."""
        return self._rows["iterations"].clone()

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:
        """Make one iteration of every active row; returns the losses, (B,) float64."""
        if closure is None:
            raise ValueError("BatchedLBFGS.step: a closure is needed")
        state = self._rows
        if state["steps"] == 0:
            self._start(closure)
        state["steps"] += 1
        rows = self.active.nonzero()[:, 0]
        if len(rows):
            self._iterate(closure, rows)
        return self.losses

    @torch.no_grad()
    def restart(self, closure: Closure, rows: Tensor) -> None:
        """Begin some rows anew where they are, because their objective has changed.

        Args:
            closure: as for `step`.
            rows: ascending indices, a LongTensor.
        """
        state = self._rows
        if state["steps"] == 0 or not len(rows):
            return
        state["losses"][rows], state["gradients"][rows] = self._evaluate(closure, rows)
        self._begin(rows)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()`."""
        super().load_state_dict(state_dict)
        for saved in state_dict["state"].values():
            shape = saved["gradients"].shape
            if shape != self._flat.shape:
                raise ValueError(
                    "BatchedLBFGS: the saved state is for a parameter of rows × entries = "
                    f"{tuple(shape)}, this one has {tuple(self._flat.shape)}"
                )
            # The base class casts everything to the dtype of the parameter and copies nothing.
            self.state[self._parameter] = {
                name: value.to(self._parameter.device, copy=True)
                if torch.is_tensor(value)
                else value
                for name, value in saved.items()
            }

    @property
    def _parameter(self) -> Tensor:
        return self.param_groups[0]["params"][0]

    @property
    def _flat(self) -> Tensor:
        """The parameter as (B, n)."""
        return self._parameter.detach().reshape(len(self._parameter), -1)

    @property
    def _rows(self) -> dict[str, Any]:
        """The state. Curvature pairs s, y (m, B, n) and ρ (m, B) are ring buffers of each row.

        `past` (window, B) is one of the losses before the last iterations, the same for all rows.
        """
        state = self.state[self._parameter]
        if not state:
            x, memory = self._flat, self.param_groups[0]["memory"]
            scalar = x.new_zeros(len(x))
            state |= {"steps": 0, "resolution": 0.0, "losses": (scalar * torch.nan).double()}
            state["scale"] = torch.ones_like(state["losses"])
            for name in ("status", "evaluations", "iterations", "pairs"):
                state[name] = scalar.long()
            state |= {"gradients": torch.zeros_like(x), "gamma": scalar}
            state |= {name: x.new_zeros(memory, *x.shape) for name in ("s", "y")}
            state["rho"] = x.new_zeros(memory, len(x))
            window = self.param_groups[0]["window"]
            state["past"] = torch.full_like(state["losses"].expand(window, -1), torch.inf)
        return state

    def _move(self, rows: Tensor, values: Tensor) -> None:
        self._parameter[rows] = values.view(-1, *self._parameter.shape[1:])

    def _start(self, closure: Closure) -> None:
        state = self._rows
        rows = torch.arange(len(self._flat), device=self._flat.device)
        state["losses"], state["gradients"] = self._evaluate(closure, rows)
        self._begin(rows)

    def _begin(self, rows: Tensor) -> None:
        """Set everything but loss and gradient of some rows as before their first iteration."""
        state = self._rows
        losses, gradients = state["losses"][rows], state["gradients"][rows]
        state["scale"][rows] = losses.abs().clamp_max(1)
        flat = self._is_flat(rows, gradients, losses)
        status = torch.where(flat, RowStatus.CONVERGED, RowStatus.ACTIVE)
        state["status"][rows] = torch.where(losses.isinf(), RowStatus.NONFINITE, status)
        state["pairs"][rows] = 0
        state["past"][:, rows] = torch.inf

    def _evaluate(self, closure: Closure, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, float64 and +∞ where anything is not finite, and gradients, (len(rows), n)."""
        parameter, state = self._parameter, self._rows
        subset = "rows" in inspect.signature(closure).parameters
        parameter.grad = None
        with torch.enable_grad():
            losses = closure(rows=rows) if subset else closure()
        _check_losses(losses, len(rows) if subset else len(parameter))
        if parameter.grad is None:
            raise ValueError("BatchedLBFGS: the closure must back-propagate the sum of its losses")
        state["resolution"] = torch.finfo(losses.dtype).eps
        state["evaluations"][rows] += 1
        gradients = parameter.grad.reshape(len(parameter), -1)[rows]
        losses = losses.detach().double() if subset else losses.detach().double()[rows]
        finite = losses.isfinite() & gradients.isfinite().all(1)
        return torch.where(finite, losses, torch.inf), gradients

    def _iterate(self, closure: Closure, rows: Tensor) -> None:
        state, x = self._rows, self._flat[rows]
        gradient = state["gradients"][rows]
        direction, slope = self._direction(rows, gradient)
        try:
            search, new_gradient = self._search(closure, rows, x, gradient, direction, slope)
        except BaseException:
            self._move(rows, x)
            raise
        new_x = x + search.low.step[:, None].to(x) * direction
        self._move(rows, new_x)
        self._update_status(rows, search, new_gradient)
        self._remember(rows, new_x - x, new_gradient - gradient)
        state["iterations"][rows] += search.low.step > 0
        state["losses"][rows] = search.low.loss
        state["gradients"][rows] = new_gradient

    def _direction(self, rows: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """−H∇f, (k, n), and its slope, (k,) float64; −γ∇f where H is not positive."""
        direction = -self._times_h(rows, gradient)
        slope = _dot(gradient, direction)
        descent = slope < 0
        state = self._rows
        state["pairs"][rows] = torch.where(descent, state["pairs"][rows], 0)
        steepest = -_first_scale(gradient)[:, None] * gradient
        direction = torch.where(descent[:, None], direction, steepest)
        return direction, _dot(gradient, direction).double()

    def _times_h(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """H∇f, (k, n); on a GPU as a CUDA graph."""
        pairs = self._rows["s"]
        if self._replayed is None or self._replayed[0] is not pairs:  # it reads their memory
            self._replayed = pairs, Graphed(len(self._flat))
        return self._replayed[1](self._two_loop, rows, gradient)

    def _two_loop(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """H∇f, (k, n): algorithm 7.4, with γ of eq. 7.20 or, without pairs, min(1, 1/‖∇f‖)."""
        state = self._rows
        pairs = state["pairs"][rows]
        most = len(state["s"])
        if gradient.device.type != "cuda":  # no row has more pairs than there were steps
            most = min(state["steps"] - 1, most)
        ages = range(most)
        slots = [(pairs - 1 - age) % len(state["s"]) for age in ages]
        rhos = [torch.where(age < pairs, state["rho"][slots[age], rows], 0) for age in ages]
        alphas, q = [], gradient
        for slot, rho in zip(slots, rhos, strict=True):
            alphas.append(rho * _dot(state["s"][slot, rows], q))
            q = q - alphas[-1][:, None] * state["y"][slot, rows]
        gamma = torch.where(pairs > 0, state["gamma"][rows], _first_scale(gradient))
        r = gamma[:, None] * q
        for slot, rho, alpha in reversed(list(zip(slots, rhos, alphas, strict=True))):
            beta = rho * _dot(state["y"][slot, rows], r)
            r = r + (alpha - beta)[:, None] * state["s"][slot, rows]
        return r

    def _search(
        self,
        closure: Closure,
        rows: Tensor,
        x: Tensor,
        gradient: Tensor,
        direction: Tensor,
        slope: Tensor,
    ) -> tuple[StrongWolfe, Tensor]:
        """Run the line searches of k rows; returns them and their final gradients, (k, n)."""
        state, group = self._rows, self.param_groups[0]
        losses = state["losses"][rows]
        search = StrongWolfe(losses, slope, _shortest_step(x, direction), group["c1"], group["c2"])
        # The quadratic model promises -slope / 2; only curvature pairs make it credible.
        promises = -slope > state["resolution"] * losses.abs()
        search.pending = promises | (state["pairs"][rows] == 0)
        for _ in range(group["max_evaluations"]):
            pending = search.pending.nonzero()[:, 0]
            if not len(pending):
                break
            self._move(rows, x + search.position[:, None].to(x) * direction)
            loss, trial_gradient = self._evaluate(closure, rows[pending])
            trial_slope = _dot(trial_gradient, direction[pending]).double()
            lower = search.advance(
                losses.index_copy(0, pending, loss), slope.index_copy(0, pending, trial_slope)
            )[pending]
            kept = gradient[pending]
            gradient = gradient.index_copy(
                0, pending, torch.where(lower[:, None], trial_gradient, kept)
            )
        return search, gradient

    def _update_status(self, rows: Tensor, search: StrongWolfe, gradient: Tensor) -> None:
        state, loss = self._rows, search.low.loss
        window = len(state["past"])
        state["past"][state["steps"] % window, rows] = state["losses"][rows]
        decrease = state["past"][(state["steps"] + 1) % window, rows] - loss
        least = self.param_groups[0]["tolerance_change"] * loss.abs().maximum(state["scale"][rows])
        small = decrease <= least
        tried, moved = search.trials > 0, search.low.step > 0
        failed = tried & ~moved
        converged = ~tried | (moved & (small | self._is_flat(rows, gradient, loss)))
        given_up = torch.where(search.seen_finite, RowStatus.FAILED, RowStatus.NONFINITE)
        given_up = torch.where(state["pairs"][rows] == 0, given_up, RowStatus.ACTIVE)
        status = torch.where(failed, given_up, RowStatus.ACTIVE)
        state["status"][rows] = torch.where(converged, RowStatus.CONVERGED, status)
        state["pairs"][rows] = torch.where(failed, 0, state["pairs"][rows])

    def _is_flat(self, rows: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        scale = loss.abs().maximum(self._rows["scale"][rows])
        return gradient.abs().amax(1) <= self.param_groups[0]["tolerance_grad"] * scale

    def _remember(self, rows: Tensor, s: Tensor, y: Tensor) -> None:
        """Store pairs of enough curvature: cos(s, y) > ε, whatever the scales of f and x."""
        state, sy, yy = self._rows, _dot(s, y), _dot(y, y)
        norms = _dot(s, s).sqrt() * yy.sqrt()
        curved = (sy > torch.finfo(s.dtype).eps * norms) & (1 / sy).isfinite()
        slot = state["pairs"][rows] % len(state["s"])
        for name, new in (("s", s), ("y", y), ("rho", 1 / sy)):
            old = state[name][slot, rows]
            keep = curved.view(-1, *[1] * (new.ndim - 1))
            state[name][slot, rows] = torch.where(keep, new, old)
        state["gamma"][rows] = torch.where(curved, sy / yy, state["gamma"][rows])
        state["pairs"][rows] += curved


def _check_losses(losses: Any, count: int) -> None:
    shape = tuple(losses.shape) if torch.is_tensor(losses) else type(losses).__name__
    if shape != (count,) or not losses.is_floating_point():
        raise ValueError(
            f"BatchedLBFGS: the closure must return floating point losses of shape ({count},), "
            f"got {shape} {losses.dtype if torch.is_tensor(losses) else ''}".rstrip()
        )


def _shortest_step(x: Tensor, direction: Tensor) -> Tensor:
    """Step lengths below which x does not change, (k,) float64."""
    shortest = torch.finfo(x.dtype).eps * x.abs().amax(1) / direction.abs().amax(1)
    return shortest.double().nan_to_num(0, 0)


def _first_scale(gradient: Tensor) -> Tensor:
    return 1 / gradient.norm(dim=1).clamp_min(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
