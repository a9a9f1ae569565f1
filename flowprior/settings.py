"""Comparing the settings of two runs."""

from collections.abc import Iterator, Mapping
from typing import Any

_LONGEST = 60


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


def changes(old: Any, new: Any) -> list[str]:
    """The differences in words, one for each setting.

    >>> changes({"noise": 0.1, "size": [3, 32]}, {"noise": 0.2, "size": [3, 32]})
    ['noise was 0.1, is now 0.2']
    """
    return [
        f"{name or 'value'} was {_short(before)}, is now {_short(after)}"
        for name, before, after in differences(old, new)
    ]


def _short(value: Any) -> str:
    text = "(absent)" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
