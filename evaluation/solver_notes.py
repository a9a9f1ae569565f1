"""What solvers say of the images of a row, kept with these and told below the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.base import Result, labels_text
from flowprior.inversion import Warned

if TYPE_CHECKING:
    from evaluation.table import Table

_NUMBER = re.compile(r"\b(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf|nan)\b")
_MOST = 8
"""Rows of the table that are named."""


def kept_warnings(warnings: Iterable[str], count: int) -> dict[str, np.ndarray]:
    """Arrays to keep with the first image of a batch of `count`; none without warnings.

    Those that are no more than a string are about all images.

    >>> kept_warnings(["much too short"], 4)["warned"].item()
    4
    """
    found = [_described(warning, count) for warning in warnings]
    if not found:
        return {}
    columns = zip(*found, strict=True)
    return {name: np.array(column) for name, column in zip(_KEYS, columns, strict=True)}


def told(results: Sequence[Result]) -> list[str]:
    """Warnings of all images of a row, with the number of those that each is about.

    The worst of each kind is told, so that it does not depend on the batches.
    """
    kinds: dict[str, list[_Kept]] = {}
    for one in (one for result in results for one in _kept(result.arrays)):
        kinds.setdefault(one.kind, []).append(one)
    return [
        f"({sum(one.count for one in group)} of {len(results)}): "
        f"{max(group, key=lambda one: one.size).reason}"
        for group in kinds.values()
    ]


def solver_notes(table: Table) -> list[str]:
    """A note for each of the first rows whose solver had something to say."""
    warned = [row for row in table.rows if row.warnings]
    notes = [
        f"{labels_text(row.labels) or 'the only row'} {'; '.join(row.warnings).rstrip('.')}."
        for row in warned[:_MOST]
    ]
    more = len(warned) - _MOST
    return [*notes, f"Warnings of {more} more rows are in table.json."] if more > 0 else notes


class _Kept(NamedTuple):
    """What is kept of a warning of a batch."""

    reason: str
    count: int
    kind: str
    size: float


_KEYS = ("warnings", "warned", "warning_kinds", "warning_sizes")


def _described(warning: str, count: int) -> _Kept:
    if not isinstance(warning, Warned):
        return _plain(warning, count)
    about = count if warning.rows is None else len(warning.rows)
    return _Kept(
        warning.reason, about, warning.kind or _plain(warning.reason, 0).kind, warning.size
    )


def _plain(reason: str, count: int) -> _Kept:
    """A sentence without a kind: those that differ in numbers alone are of one."""
    return _Kept(reason, count, _NUMBER.sub("#", reason), 0.0)


def _kept(arrays: Mapping[str, np.ndarray]) -> list[_Kept]:
    if "warnings" not in arrays:
        return []
    columns = [arrays[name].tolist() for name in _KEYS if name in arrays]
    rows = list(zip(*columns, strict=True))
    # Records of earlier versions have no kinds.
    return [_Kept(*row) if len(row) == len(_KEYS) else _plain(*row) for row in rows]
