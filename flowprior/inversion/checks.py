"""Checks of a solver's options, whose errors name the option and what was expected."""

from collections.abc import Callable

from flowprior.physics.noise import Noise


def check_choice(option: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ValueError, which names the option, unless the value is one of those known."""
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_number(option: str, value: object, holds: Callable[[float], bool], expected: str) -> None:
    """Raise ValueError, which names the option, unless the value is a number for which it holds."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < float("inf") or not holds(value):
        raise ValueError(f"{option} must be {expected}, got {value!r}")


def check_whole(option: str, value: object, least: int) -> None:
    """Raise ValueError, which names the option, unless it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{option} must be an integer of at least {least}, got {value!r}")


def check_noise(option: str, value: object) -> None:
    """Raise ValueError, which names the option, unless the value is a noise model or None."""
    if value is not None and not isinstance(value, Noise):
        raise ValueError(f"{option} must be a flowprior.physics.Noise, got {value!r}")
