"""The scheme of `travel_times` on a GPU: all models, all sources and an anti-diagonal at a time."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.physics.diagonals import (
    PAIRS,
    Direction,
    Order,
    Steps,
    neighbours,
    orders,
    steps,
    views,
)


def solve(slowness: Tensor, sources: Tensor) -> Tensor:
    """U (B, S, H, W) from slowness times spacing (B, H, W) and sources (S, 2).

    Every (model, source) stops by itself, so that it does not depend on the rest of the batch.
    """
    slowness = _batch_last(slowness)
    height, width, batch = slowness.shape
    sweeper = _Sweeper(slowness, sources)
    running = torch.arange(batch * len(sources), device=slowness.device)
    unchanged = torch.zeros_like(running)
    result = slowness.new_empty((height + 2) * (width + 2), len(running))
    for count in range(2 * (height + width)):
        changed = sweeper.sweep_pair(count % 2)
        unchanged = torch.where(changed, 0, unchanged + 1)
        # Written down at once: whether a lane is swept on depends on the others.
        done = (unchanged == 2).nonzero().squeeze(1)
        if len(done):
            result[:, running[done]] = sweeper.row_major(done)
        going = unchanged < 2
        remaining = int(going.sum())
        if remaining == 0:
            break
        if remaining <= len(running) // 2:
            running, unchanged = running[going], unchanged[going]
            sweeper.keep(going.nonzero().squeeze(1))
    else:
        left = (unchanged < 2).nonzero().squeeze(1)
        result[:, running[left]] = sweeper.row_major(left)
        warnings.warn(
            f"fast sweeping of {len(left)} travel-time maps has not settled", stacklevel=2
        )
    result = result.view(height + 2, width + 2, batch, len(sources))
    return result[1:-1, 1:-1].permute(2, 3, 0, 1).contiguous()


class _Coefficients(NamedTuple):
    """In storage order, each (cells, lanes): s, 2 s^2, and the corrections of both sweeps."""

    slowness: Tensor
    twice_square: Tensor
    forward_row: Tensor
    forward_column: Tensor
    backward_row: Tensor
    backward_column: Tensor


class _Sweeper:
    """Travel times (cells, lanes) in both storage orders; a lane is one (model, source)."""

    def __init__(self, slowness: Tensor, sources: Tensor) -> None:
        self.height, self.width = slowness.shape[:2]
        self.orders = orders(self.height, self.width, slowness.device)
        half = slowness.unsqueeze(3) / 2
        start = torch.where(_at_source(slowness, sources), half, _far(slowness))
        start = _ghosted(start).flatten(2).flatten(0, 1)
        self.stored = [start[order.cells] for order in self.orders]
        self.latest = 0
        self._views: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}
        self.scratch = _scratch(self.stored[0], min(self.height, self.width))
        self.coefficients = [
            _coefficients(slowness, sources, order, pair)
            for order, pair in zip(self.orders, PAIRS, strict=True)
        ]

    def row_major(self, lanes: Tensor) -> Tensor:
        """Latest travel times of some lanes, ((H + 2) (W + 2), len(lanes))."""
        times = self.stored[self.latest]
        chosen = times if len(lanes) == times.shape[1] else times.index_select(1, lanes)
        return chosen.index_select(0, self.orders[self.latest].rank)

    def _diagonals(self, pair: int, sign: int) -> list[tuple[Tensor, ...]]:
        """Views of every diagonal in the order of a sweep; making them costs as much as a sweep."""
        if (pair, sign) not in self._views:
            times, known = self.stored[pair], self.coefficients[pair]
            known = known[:4] if sign == 1 else known[:2] + known[4:]
            where = steps(self.height, self.width)
            own = [views(t, where.start, where.count) for t in (times, *known)]
            found = list(zip(*own, *neighbours(times, where, sign), strict=True))
            self._views[pair, sign] = found[::sign]
        return self._views[pair, sign]

    def keep(self, lanes: Tensor) -> None:
        """Go on with some of the lanes only."""
        self._views.clear()
        self.stored = [t.index_select(1, lanes) for t in self.stored]
        self.coefficients = [
            _Coefficients(*(t.index_select(1, lanes) for t in c)) for c in self.coefficients
        ]
        self.scratch = _scratch(self.stored[0], min(self.height, self.width))

    def sweep_pair(self, pair: int) -> Tensor:
        """Sweep forwards and backwards through one storage order; which lanes changed (lanes,)."""
        times = self.stored[pair]
        if pair != self.latest:
            order, latest = self.orders[pair], self.orders[self.latest]
            torch.index_select(self.stored[self.latest], 0, latest.rank[order.cells], out=times)
            self.latest = pair
        before = times.clone()
        for sign in (1, -1):
            _sweep(self._diagonals(pair, sign), self.scratch)
        tolerance = 4 * torch.finfo(times.dtype).eps
        return (before.sub_(times) > tolerance * times).any(0)


def _at_source(slowness: Tensor, sources: Tensor) -> Tensor:
    """Mask of every source's cell, (H, W, 1, S)."""
    mask = torch.zeros(*slowness.shape[:2], 1, len(sources), dtype=torch.bool)
    mask = mask.to(slowness.device)
    mask[sources[:, 0], sources[:, 1], 0, torch.arange(len(sources), device=mask.device)] = True
    return mask


def _ghosted(u: Tensor) -> Tensor:
    """Practically infinite around (H, W, B, S)."""
    return torch.nn.functional.pad(u, (0, 0, 0, 0, 1, 1, 1, 1), value=_far(u))


def _far(u: Tensor) -> float:
    return torch.finfo(u.dtype).max / 4


def _curvature(shape: torch.Size, sources: Tensor, dim: int, sign: int) -> Tensor:
    """Error k (H, W, 1, S) of the upwind difference along `dim` to the neighbour at -sign."""
    position = [torch.arange(n, device=sources.device) for n in shape[:2]]
    y = (position[0].view(-1, 1, 1, 1) - sources[:, 0]).double()
    x = (position[1].view(1, -1, 1, 1) - sources[:, 1]).double()
    along, across = (y, x) if dim == 0 else (x, y)
    distance = torch.hypot(y, x)
    upwind = torch.hypot(along - sign, across)
    error = distance - upwind - sign * along / distance.clamp(min=1)
    return error * (upwind < distance)


def _correction(slowness: Tensor, sources: Tensor, dim: int, sign: int) -> Tensor:
    """Correction k s (H, W, B, S) of the neighbour at -sign along `dim`."""
    k = _curvature(slowness.shape, sources, dim, sign).to(slowness.dtype)
    return k * slowness.unsqueeze(3)


def _with_ghosts(x: Tensor) -> Tensor:
    """Zeros around (H, W, ...), as rows of cells ((H + 2) (W + 2), ...)."""
    height, width = x.shape[:2]
    full = x.new_zeros(height + 2, width + 2, *x.shape[2:])
    full[1:-1, 1:-1] = x
    return full.flatten(0, 1)


def _coefficients(
    slowness: Tensor, sources: Tensor, order: Order, pair: tuple[Direction, Direction]
) -> _Coefficients:
    def store(x: Tensor) -> Tensor:
        return _with_ghosts(x.flatten(2)).index_select(0, order.cells)

    s = store(slowness.unsqueeze(3).expand(-1, -1, -1, len(sources)))
    corrections = (
        store(_correction(slowness, sources, dim, direction[dim]))
        for direction in pair
        for dim in (0, 1)
    )
    return _Coefficients(s, 2 * s * s, *corrections)


def _scratch(times: Tensor, longest: int) -> dict[int, tuple[Tensor, ...]]:
    """Room for four numbers per cell of a diagonal of every length."""
    room = times.new_empty(4, longest, times.shape[1])
    return {n: room[:, :n].unbind(0) for n in range(1, longest + 1)}


def _sweep(diagonals: list[tuple[Tensor, ...]], scratch: dict[int, tuple[Tensor, ...]]) -> None:
    """One Gauss-Seidel sweep of the Godunov update, in place."""
    for t, s, twice_square, row_correction, column_correction, row, column in diagonals:
        a, b, d, inverse = scratch[len(t)]
        torch.add(row, row_correction, out=a)
        torch.add(column, column_correction, out=b)
        torch.sub(a, b, out=d).abs_()
        torch.minimum(d, s, out=d)
        torch.minimum(a, b, out=a)
        torch.addcmul(twice_square, d, d, value=-1, out=b)
        # b.sqrt_() makes the whole solve half as slow again on a CPU.
        b.mul_(torch.rsqrt(b, out=inverse))
        a.add_(b.add_(d), alpha=0.5)
        torch.minimum(t, a, out=t)


class _Stencil(NamedTuple):
    """Linearised scheme, each (H, W, B, S).

    Args:
        row, column: Derivatives of U by the row and the column neighbour's.
        slowness: Derivative of U by s with the neighbours fixed.
        row_before, column_before: Whether the neighbour in use is the one at index - 1.
    """

    row: Tensor
    column: Tensor
    slowness: Tensor
    row_before: Tensor
    column_before: Tensor


def _linearize(slowness: Tensor, sources: Tensor, u: Tensor) -> _Stencil:
    """Derivatives of the Godunov update at its solution; U is s / 2 at the sources."""
    s = slowness.unsqueeze(3)
    rows, columns = (_upwind(_ghosted(u), slowness, sources, dim) for dim in (0, 1))
    a, b = rows[0], columns[0]
    d = (a - b).abs_().minimum(s)
    root = (2 * s * s - d * d).sqrt_()
    less, more = (root - d).clamp_(min=0), root + d
    source = _at_source(slowness, sources)
    total = (less + more).masked_fill_(source, torch.inf)
    row, column = torch.where(a <= b, more, less) / total, torch.where(a <= b, less, more) / total
    direct = 2 * s / total + row * rows[1] + column * columns[1]
    return _Stencil(row, column, direct.masked_fill_(source, 0.5), rows[2], columns[2])


def _upwind(
    ghosted: Tensor, slowness: Tensor, sources: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Smaller corrected U of the two neighbours along `dim`, its k, and if it is at index - 1."""
    s = slowness.unsqueeze(3)
    inner = ghosted.narrow(1 - dim, 1, slowness.shape[1 - dim])
    errors = [_curvature(slowness.shape, sources, dim, sign).to(s.dtype) for sign in (1, -1)]
    before, after = (
        inner.narrow(dim, 1 - sign, slowness.shape[dim]) + k * s
        for sign, k in zip((1, -1), errors, strict=True)
    )
    first = before <= after
    return before.minimum(after), torch.where(first, *errors), first


def solve_adjoint(slowness: Tensor, sources: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of sum(gradient * U) with respect to the slowness (B, H, W)."""
    stencil = _linearize(_batch_last(slowness), sources, u.permute(2, 3, 0, 1))
    received = _propagate_back(stencil, gradient.permute(2, 3, 0, 1))
    return (received * stencil.slowness).sum(3).permute(2, 0, 1)


def _batch_last(slowness: Tensor) -> Tensor:
    return slowness.permute(1, 2, 0).contiguous()


def _propagate_back(stencil: _Stencil, gradient: Tensor) -> Tensor:
    """Solve (I - W)^T x = gradient for x (H, W, B, S), W the weights of the upwind neighbours.

    What a cell has received is handed on to its upwind neighbours by the sweep that computed it,
    backwards, until everything has arrived at the sources, which keep it.
    """
    height, width = gradient.shape[:2]
    both = orders(height, width, gradient.device)
    where = steps(height, width)
    weights = [
        [_sweep_weights(stencil, direction, order) for direction in pair]
        for order, pair in zip(both, PAIRS, strict=True)
    ]
    waiting = _with_ghosts(gradient.flatten(2))
    passed = torch.zeros_like(waiting)
    tolerance = 1e-3 * torch.finfo(gradient.dtype).eps * waiting.abs().amax(0)
    for count in range(2 * (height + width)):
        order, pair = both[count % 2], weights[count % 2]
        waiting = waiting.index_select(0, order.cells)
        handled = torch.zeros_like(waiting)
        for sign, (row, column, mask) in zip((1, -1), pair, strict=True):
            _sweep_back(waiting, row, column, where, sign)
            handled.addcmul_(waiting, mask)
            waiting.addcmul_(waiting, mask, value=-1)
        waiting = waiting.index_select(0, order.rank)
        passed += handled.index_select(0, order.rank)
        going = (waiting.abs() > tolerance).any(0)
        if not going.any():
            break
        waiting *= going  # a lane that is done is so whatever the others do
    return passed.view(height + 2, width + 2, *gradient.shape[2:])[1:-1, 1:-1]


def _sweep_weights(stencil: _Stencil, direction: Direction, order: Order) -> list[Tensor]:
    """dT/da, dT/db and 1 in the cells that a direction computes, 0 elsewhere, (cells, lanes)."""
    used = stencil.row_before == (direction.row > 0)
    used &= stencil.column_before == (direction.column > 0)
    parts = (stencil.row * used, stencil.column * used, used.to(stencil.row.dtype))
    return [_with_ghosts(part.flatten(2)).index_select(0, order.cells) for part in parts]


def _sweep_back(waiting: Tensor, row: Tensor, column: Tensor, where: Steps, sign: int) -> None:
    """Hand on what is waiting against the direction of a sweep, in place."""
    own = [views(t, where.start, where.count) for t in (waiting, row, column)]
    diagonals = list(zip(*own, *neighbours(waiting, where, sign), strict=True))
    for x, row_weight, column_weight, x_row, x_column in diagonals[::-sign]:
        x_row.addcmul_(x, row_weight)
        x_column.addcmul_(x, column_weight)
