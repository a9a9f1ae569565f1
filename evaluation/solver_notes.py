"""What solvers say of the images of a row, kept with these and told below the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluation.base import Result, labels_text

if TYPE_CHECKING:
    from evaluation.table import Table

_ROWS = re.compile(r"rows? (\d+(?:, \d+)*)(?: and (\d+) more)?: ")
_NUMBER = re.compile(r"\b(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf|nan)\b")
_EXTREMES = {"up to ": max, "as few as ": min}
_MOST = 8
"""Rows of the table that are named."""


def kept_warnings(warnings: Iterable[str], count: int) -> dict[str, np.ndarray]:
    """Arrays to keep with the first image of a batch of `count`; none without warnings.

    >>> kept_warnings(["rows 0, 2: too short"], 4)
    {'warnings': array(['too short'], dtype='<U9'), 'warned': array([2])}
    """
    found = [_of_rows(warning, count) for warning in warnings]
    if not found:
        return {}
    texts, counts = zip(*found, strict=True)
    return {"warnings": np.array(texts), "warned": np.array(counts)}


def told(results: Sequence[Result]) -> list[str]:
    """Warnings of all images of a row, with the number of those that each is about.

    Warnings that differ in numbers alone are one, with the largest of numbers "up to" which and the
    smallest of those "as few as" which, so that it does not depend on the batches.
    """
    texts: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for text, count in (one for result in results for one in _kept(result.arrays)):
        kind = _NUMBER.sub("#", text)
        texts.setdefault(kind, []).append(text)
        counts[kind] = counts.get(kind, 0) + count
    return [f"({counts[kind]} of {len(results)}): {_worst(texts[kind])}" for kind in texts]


def solver_notes(table: Table) -> list[str]:
    """A note for each of the first rows whose solver had something to say."""
    warned = [row for row in table.rows if row.warnings]
    notes = [
        f"{labels_text(row.labels) or 'the only row'} {'; '.join(row.warnings).rstrip('.')}."
        for row in warned[:_MOST]
    ]
    more = len(warned) - _MOST
    return [*notes, f"Warnings of {more} more rows are in table.json."] if more > 0 else notes


def _of_rows(warning: str, count: int) -> tuple[str, int]:
    """A warning without the rows of the batch that it names, and their number."""
    rows = _ROWS.match(warning)
    if rows is None:
        return warning, count
    return warning[rows.end() :], len(rows[1].split(",")) + int(rows[2] or 0)


def _kept(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int]]:
    if "warnings" in arrays:
        yield from zip(arrays["warnings"].tolist(), arrays["warned"].tolist(), strict=True)


def _worst(texts: Sequence[str]) -> str:
    """One of texts that differ in numbers alone: the first, with the worst of all numbers."""
    first = texts[0]
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    parts, end = [], 0
    for place, column in zip(_NUMBER.finditer(first), columns, strict=True):
        before = first[end : place.start()]
        choose = next((c for words, c in _EXTREMES.items() if before.endswith(words)), None)
        parts += [before, choose(column, key=float) if choose else column[0]]
        end = place.end()
    return "".join([*parts, first[end:]])
