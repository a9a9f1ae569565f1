"""Normalizing flows as priors for inverse problems."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowprior.inversion import invert
    from flowprior.weights import WeightsError, load, save

__all__ = ["WeightsError", "invert", "load", "save"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; a table or a wrong option needs none of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module("flowprior.inversion" if name == "invert" else "flowprior.weights")
    return getattr(module, name)
