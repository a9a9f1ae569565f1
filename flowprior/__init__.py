"""Normalizing flows as priors for inverse problems."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowprior import weights
    from flowprior.inversion import invert
    from flowprior.plotting import plot
    from flowprior.weights import WeightsError, load, save

__all__ = ["WeightsError", "invert", "load", "plot", "save", "weights"]

_MODULES = {
    "WeightsError": "weights",
    "invert": "inversion",
    "load": "weights",
    "plot": "plotting",
    "save": "weights",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; a table or a wrong option needs none of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"flowprior.{_MODULES.get(name, name)}")
    return getattr(module, name) if name in _MODULES else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
