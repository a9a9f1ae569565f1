"""Checks of options, whose errors name the option and what was expected."""

from dataclasses import fields
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

OVERSHOOT = 0.1
"""How far images may lie outside of [0, 1]."""


def check_number(name: str, value: object, *, least: float = -inf, most: float = inf) -> None:
    """Raise a ValueError unless the value is a finite number in [least, most]."""
    if not (_is(Real, value) and isfinite(value) and least <= value <= most):
        raise ValueError(
            f"{name} must be a finite number{_limits(least, most)}, got {shown(value)}"
        )


def check_positive(name: str, value: object) -> None:
    """Raise a ValueError unless the value is a finite number above 0."""
    if not (_is(Real, value) and 0 < value < inf):
        raise ValueError(f"{name} must be a positive finite number, got {shown(value)}")


def check_integer(name: str, value: object, *, least: float = -inf, most: float = inf) -> None:
    """Raise a ValueError unless the value is an integer in [least, most]."""
    if not (_is(Integral, value) and least <= value <= most):
        raise ValueError(f"{name} must be an integer{_limits(least, most)}, got {shown(value)}")


def is_precise(x: Tensor) -> bool:
    """Whether all entries are finite and in single or double precision."""
    return x.dtype in (torch.float32, torch.float64) and bool(x.isfinite().all())


def check_unit_images(name: str, images: object) -> None:
    """Raise a ValueError unless these are images (N, C, H, W) in [0, 1], up to `OVERSHOOT`."""
    is_tensor = isinstance(images, Tensor)
    if not is_tensor or images.ndim != 4 or not is_precise(images):
        got = f"{images.dtype} of shape {tuple(images.shape)}" if is_tensor else shown(images)
        raise ValueError(
            f"{name} must be finite numbers (N, C, H, W), float32 or float64, got {got}"
        )
    if not images.numel():
        raise ValueError(f"{name} must not be empty, got the shape {tuple(images.shape)}")
    low, high = images.min().item(), images.max().item()
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"{name} must be in [0, 1], got values from {low:.3g} to {high:.3g}")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise a ValueError unless the value is one of those known."""
    if not isinstance(value, type(known[0])) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {shown(value)}")


def shown(value: object) -> str:
    """A value in one line of at most 80 letters; of an array its type and shape.

    >>> import numpy
    >>> shown(numpy.zeros((2, 3))), shown([1, 2])
    ('ndarray of shape (2, 3)', '[1, 2]')
    """
    if hasattr(value, "shape") and getattr(value, "ndim", 0):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_no_effect(record: Any, reason: str, *names: str) -> None:
    """Raise a ValueError if fields of a dataclass that have no effect are not left as they were."""
    defaults = {field.name: field.default for field in fields(record)}
    for name in names:
        if (value := getattr(record, name)) != defaults[name]:
            raise ValueError(f"{name}={value!r} has no effect with {reason}: leave it out")


def _is(kind: type, value: object) -> bool:
    # A bool counts as a number in Python, but not in a config.
    return isinstance(value, kind) and not isinstance(value, bool)


def _limits(least: float, most: float) -> str:
    if most < inf:
        return f" from {least:g} to {most:g}"
    return f" of at least {least:g}" if least > -inf else ""
