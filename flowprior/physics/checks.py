"""Checks of options, whose errors name the option and what was expected."""

from math import inf, isfinite
from numbers import Real


def check_number(name: str, value: object, *, least: float = -inf, most: float = inf) -> None:
    """Raise a ValueError unless the value is a finite number in [least, most]."""
    # A bool counts as a number in Python, but not in a config.
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and isfinite(value) and least <= value <= most:
        return
    limits = [
        *([f"of at least {least:g}"] if least > -inf else []),
        *([f"of at most {most:g}"] if most < inf else []),
    ]
    expected = " ".join(["a finite number", " and ".join(limits)]).strip()
    raise ValueError(f"{name} must be {expected}, got {value!r}")
