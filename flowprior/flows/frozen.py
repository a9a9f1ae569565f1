"""Functions of parameters, computed once while these are frozen."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class FrozenCache(Generic[Value]):
    """What is computed from parameters, kept until one of them changes."""

    def __init__(self) -> None:
        self._held: tuple[object, Value] | None = None

    def get(self, parameters: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        """The value of `compute`: of these parameters alone, none of which needs a gradient."""
        # load_state_dict and in-place edits raise `_version`; moving to a device moves `data_ptr`.
        key = tuple((p._version, p.data_ptr(), p.dtype) for p in parameters)
        held = self._held
        if held is None or held[0] != key:
            # Tensors made in inference mode could not be used in a later gradient.
            with torch.inference_mode(False), torch.no_grad():
                held = self._held = (key, compute())
        return held[1]


def are_frozen(parameters: Iterable[Tensor]) -> bool:
    """Whether a value of the parameters can be kept: none has a gradient, none is untracked."""
    return not torch.compiler.is_compiling() and not any(
        p.requires_grad or p.is_inference() for p in parameters
    )
