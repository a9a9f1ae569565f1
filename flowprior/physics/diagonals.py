"""Anti-diagonals of a grid as contiguous rows, so that a Gauss-Seidel sweep is vectorised.

All cells of an anti-diagonal are independent of each other in a sweep (Zhao, A fast sweeping
method for eikonal equations, Math. Comp. 2005; Detrixhe et al., JCP 2013).
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Direction(NamedTuple):
    """A sweep; the upwind neighbours of cell (i, j) are (i - row, j) and (i, j - column)."""

    row: int
    column: int


# Each pair shares one storage order and runs through it forwards, then backwards.
PAIRS = (
    (Direction(1, 1), Direction(-1, -1)),
    (Direction(1, -1), Direction(-1, 1)),
)


class Order(NamedTuple):
    """Where the cells of an (H + 2) x (W + 2) grid (one ghost cell around) are stored.

    Args:
        cells: Row-major index of every stored cell, ((H + 2) * (W + 2),).
        rank: Position in storage of every row-major cell, the inverse of `cells`.
    """

    cells: Tensor
    rank: Tensor


@lru_cache(maxsize=16)
def orders(height: int, width: int, device: torch.device) -> tuple[Order, Order]:
    """Storage by i + j, and by i - j, each with increasing i."""
    i = torch.arange(height + 2, device=device).unsqueeze(1)
    j = torch.arange(width + 2, device=device)
    found = []
    for diagonal in (i + j, i + (width + 1 - j)):
        cells = (diagonal * (height + 2) + i).flatten().argsort()
        found.append(Order(cells, cells.argsort()))
    return found[0], found[1]


class Steps(NamedTuple):
    """First positions in storage and lengths of the inner diagonals, and of their neighbours.

    Cell (i, j) of a diagonal has its column neighbour at the same offset from `before` or `after`,
    and its row neighbour one position earlier (`before`) or later (`after`).
    """

    start: list[int]
    before: list[int]
    after: list[int]
    count: list[int]


@lru_cache(maxsize=16)
def steps(height: int, width: int) -> Steps:
    """Diagonals of the inner cells in the order of a sweep in direction (1, 1)."""
    rows, columns = height + 2, width + 2
    lowest = [max(0, k - columns + 1) for k in range(rows + columns - 1)]
    offsets = [0]
    for k, low in enumerate(lowest):
        offsets.append(offsets[-1] + min(rows - 1, k) - low + 1)
    found = Steps([], [], [], [])
    for k in range(2, height + width + 1):
        first, last = max(1, k - width), min(height, k - 1)
        for positions, diagonal in zip(found[:3], (k, k - 1, k + 1), strict=True):
            positions.append(offsets[diagonal] + first - lowest[diagonal])
        found.count.append(last - first + 1)
    return found


def views(stored: Tensor, starts: list[int], counts: list[int]) -> list[Tensor]:
    """Views (count, ...) of every diagonal of a stored (cells, ...)."""
    return [stored.narrow(0, *where) for where in zip(starts, counts, strict=True)]


def neighbours(stored: Tensor, where: Steps, sign: int) -> tuple[list[Tensor], list[Tensor]]:
    """Views of the row and the column neighbours upwind of a sweep, per diagonal.

    Args:
        sign: 1 if the sweep runs through the storage forwards, -1 if backwards.
    """
    column = where.before if sign > 0 else where.after
    row = [start - sign for start in column]
    return views(stored, row, where.count), views(stored, column, where.count)
