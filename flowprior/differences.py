"""What changed between two settings, in words for the person who changed it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ABSENT = "(absent)"
_LONGEST = 60


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Name each leaf of two JSON-like trees that differs.

    Args:
        old: mappings, lists and plain values.
        new: as `old`.
        name: of the whole; prefixes the names of its parts.

    >>> list(differences({"noise": 0.1, "size": [3, 32]}, {"noise": 0.2, "size": [3, 32]}))
    ['noise was 0.1, is now 0.2']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
    elif _is_list(old) and _is_list(new) and len(old) == len(new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{name}[{place}]")
    elif old != new:
        yield f"{name or 'value'} was {_short(old)}, is now {_short(new)}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
