"""Checks of a solver's options, whose errors name the option and what was expected."""

from numbers import Integral

from flowprior.physics.checks import check_number
from flowprior.physics.noise import Noise


def check_choice(option: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of those known."""
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_positive(option: str, value: object) -> None:
    """Raise ValueError unless the value is a finite number above 0."""
    check_number(option, value, least=0)
    if value == 0:
        raise ValueError(f"{option} must be positive, got {value!r}")


def check_whole(option: str, value: object, least: int) -> None:
    """Raise ValueError unless the value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{option} must be an integer of at least {least}, got {value!r}")


def check_noise(option: str, value: object) -> None:
    """Raise ValueError unless the value is a noise model or None."""
    if value is not None and not isinstance(value, Noise):
        raise ValueError(f"{option} must be a flowprior.physics.Noise, got {value!r}")
