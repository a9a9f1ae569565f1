"""Comparing the settings of two runs."""

from collections.abc import Iterator, Mapping
from typing import Any


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old value, new value) of every setting that differs.

    Mappings and lists are compared entry by entry; an absent entry counts as None.

    >>> list(differences({"flow": {"steps": 2}, "seed": 0}, {"flow": {"steps": 3}, "seed": 0}))
    [('flow.steps', 2, 3)]
    """
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else f"{key}"
            )
    elif old != new:
        yield name, old, new
