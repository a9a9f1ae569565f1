"""The scheme of `travel_times`, compiled for the CPU: one source of one model after the other.

Sweeps skip cells whose neighbours have not changed (locking sweeps: Bak, McLaughlin, Renzi, Some
improvements for the fast sweeping method, SIAM J. Sci. Comput. 2010).

A lane is one (model, source); grids have one ghost cell on every side, (H + 2, W + 2).
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

FAR = 1e300
TOLERANCE = 4 * np.finfo(np.float64).eps
# Part of a gradient, relative to its largest entry, that the adjoint may leave undistributed.
NEGLIGIBLE = 1e-3 * np.finfo(np.float64).eps


def solve(slowness: Tensor, sources: Tensor) -> Tensor:
    """U (B, S, H, W) from slowness times spacing (B, H, W), float64, and sources (S, 2)."""
    batch, height, width = slowness.shape
    times = np.full((batch * len(sources), height + 2, width + 2), FAR)
    unsettled = _over_lanes(_solve, *_arrays(slowness, sources), times)
    if unsettled:
        warnings.warn(
            f"fast sweeping of {unsettled} travel-time maps has not settled", stacklevel=2
        )
    inner = torch.from_numpy(times)[:, 1:-1, 1:-1]
    return inner.reshape(batch, len(sources), height, width)


def solve_adjoint(slowness: Tensor, sources: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
    """Gradient of sum(gradient * U) with respect to the slowness (B, H, W)."""
    times = torch.nn.functional.pad(u.flatten(0, 1), (1, 1, 1, 1), value=FAR).numpy()
    result = np.zeros(u.shape)
    arrays = (*_arrays(slowness, sources), times, gradient.flatten(0, 1).contiguous().numpy())
    _over_lanes(_solve_adjoint, *arrays, result.reshape(-1, *u.shape[2:]))
    return torch.from_numpy(result).sum(1)


def _arrays(slowness: Tensor, sources: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    errors = _upwind_errors(max(slowness.shape[1:]))
    return slowness.detach().contiguous().numpy(), sources.contiguous().numpy(), errors


@lru_cache(maxsize=8)
def _upwind_errors(size: int) -> np.ndarray:
    """Error k of the upwind difference of the distance, by cells along and across from the source.

    The neighbour is the one nearer to the source; row 0 is never used.
    """
    along, across = np.arange(size)[:, None], np.arange(size)
    distance = np.hypot(along, across)
    return distance - np.hypot(along - 1, across) - along / np.maximum(distance, 1)


def _over_lanes(function: Callable[..., int], *arrays: np.ndarray) -> int:
    """Sum of function(*arrays, first, last) over parts of the lanes, one per torch thread."""
    lanes = len(arrays[-1])
    parts = min(torch.get_num_threads(), lanes)
    if parts <= 1:
        return function(*arrays, 0, lanes)
    ends = [lanes * part // parts for part in range(parts + 1)]
    with ThreadPoolExecutor(parts) as pool:
        return sum(pool.map(lambda *ends: function(*arrays, *ends), ends[:-1], ends[1:]))


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # no writable folder for the cache of compiled code
        return numba.njit(function, nogil=True)


@_compiled
def _solve(
    slowness: np.ndarray,
    sources: np.ndarray,
    errors: np.ndarray,
    times: np.ndarray,
    first: int,
    last: int,
) -> int:
    """Fill times (lanes, H + 2, W + 2) of lanes first to last - 1; number of unsettled lanes."""
    unsettled = 0
    for lane in range(first, last):
        row, column = sources[lane % len(sources)]
        if not _sweep(slowness[lane // len(sources)], row, column, errors, times[lane]):
            unsettled += 1
    return unsettled


@_compiled
def _sweep(s: np.ndarray, row: int, column: int, errors: np.ndarray, u: np.ndarray) -> bool:
    """Fill u (H + 2, W + 2), which holds FAR everywhere; whether it has settled."""
    height, width = s.shape
    stale = np.zeros(u.shape, np.bool_)
    u[row + 1, column + 1] = s[row, column] / 2
    _mark_neighbours(stale, row, column)
    for count in range(4 * (height + width)):
        changed = False
        for i in _indices(height, count % 4 in (0, 2)):
            for j in _indices(width, count % 4 in (0, 3)):
                if not stale[i + 1, j + 1]:
                    continue
                stale[i + 1, j + 1] = False
                h = s[i, j]
                a, b, _, _, _, _ = _upwind(u, i, j, i - row, j - column, h, errors)
                d = min(abs(a - b), h)
                new = min(a, b) + (d + np.sqrt(2 * h * h - d * d)) / 2
                if u[i + 1, j + 1] - new > TOLERANCE * new:
                    u[i + 1, j + 1] = new
                    _mark_neighbours(stale, i, j)
                    changed = True
        if not changed:
            return True
    return False


@_compiled
def _solve_adjoint(
    slowness: np.ndarray,
    sources: np.ndarray,
    errors: np.ndarray,
    times: np.ndarray,
    gradient: np.ndarray,
    result: np.ndarray,
    first: int,
    last: int,
) -> int:
    """Fill result (lanes, H, W), which holds 0, of lanes first to last - 1; returns 0."""
    for lane in range(first, last):
        s, (row, column) = slowness[lane // len(sources)], sources[lane % len(sources)]
        _sweep_back(s, row, column, errors, times[lane], gradient[lane], result[lane])
    return 0


@_compiled
def _sweep_back(
    s: np.ndarray,
    row: int,
    column: int,
    errors: np.ndarray,
    u: np.ndarray,
    gradient: np.ndarray,
    result: np.ndarray,
) -> None:
    """Pass the gradient of each cell on to its upwind neighbours, until all of it is at the source.

    Adds to result (H, W), which holds 0.
    """
    height, width = s.shape
    row_weight, column_weight, direct = np.empty((3, height, width))
    up, left = np.empty((2, height, width), np.int64)
    waiting = np.zeros(u.shape)
    largest = 0.0
    for i in range(height):
        for j in range(width):
            h = s[i, j]
            a, b, up[i, j], left[i, j], k_a, k_b = _upwind(u, i, j, i - row, j - column, h, errors)
            d = min(abs(a - b), h)
            root = np.sqrt(2 * h * h - d * d)
            less, more = max(root - d, 0.0) / (2 * root), (root + d) / (2 * root)
            first, second = (more, less) if a <= b else (less, more)
            row_weight[i, j], column_weight[i, j] = first, second
            direct[i, j] = h / root + first * k_a + second * k_b
            waiting[i + 1, j + 1] = gradient[i, j]
            largest = max(largest, abs(gradient[i, j]))
    row_weight[row, column] = column_weight[row, column] = 0
    direct[row, column] = 0.5
    for count in range(4 * (height + width)):
        remaining = 0.0
        for i in _indices(height, count % 4 in (1, 3)):
            for j in _indices(width, count % 4 in (1, 2)):
                x = waiting[i + 1, j + 1]
                if x == 0:
                    continue
                waiting[i + 1, j + 1] = 0
                result[i, j] += direct[i, j] * x
                waiting[i + 1 + up[i, j], j + 1] += row_weight[i, j] * x
                waiting[i + 1, j + 1 + left[i, j]] += column_weight[i, j] * x
                remaining = max(remaining, abs(x))
        if remaining <= NEGLIGIBLE * largest:
            break


@_compiled
def _indices(length: int, ascending: bool) -> range:
    return range(length) if ascending else range(length - 1, -1, -1)


@_compiled
def _mark_neighbours(mask: np.ndarray, i: int, j: int) -> None:
    """Mark the four neighbours of the inner cell (i, j)."""
    mask[i, j + 1] = mask[i + 2, j + 1] = mask[i + 1, j] = mask[i + 1, j + 2] = True


@_compiled
def _upwind(
    u: np.ndarray, i: int, j: int, y: int, x: int, s: float, errors: np.ndarray
) -> tuple[float, float, int, int, float, float]:
    """Upwind neighbours of the inner cell (i, j), which lies (y, x) away from the source.

    Returns:
        Corrected U of the row and of the column neighbour, the sides they are on (-1 or 1) and
        their errors k.
    """
    a, up, k_a = _smaller(u[i, j + 1], u[i + 2, j + 1], y, errors[abs(y), abs(x)], s)
    b, left, k_b = _smaller(u[i + 1, j], u[i + 1, j + 2], x, errors[abs(x), abs(y)], s)
    return a, b, up, left, k_a, k_b


@_compiled
def _smaller(
    before: float, after: float, offset: int, k: float, s: float
) -> tuple[float, int, float]:
    """Smaller of two opposite neighbours, after k s is added to the one nearer to the source."""
    k_before, k_after = k if offset > 0 else 0.0, k if offset < 0 else 0.0
    before, after = before + k_before * s, after + k_after * s
    return (before, -1, k_before) if before <= after else (after, 1, k_after)
