"""Functions of parameters, computed once while these are frozen."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class FrozenCache(Generic[Value]):
    """What is computed from parameters, kept until one of them changes.

    Changes through `.data`, which PyTorch does not count, are not seen; those of in-place
    operations, `load_state_dict` and `to` are.
    """

    def __init__(self) -> None:
        self._held: tuple[object, Value] | None = None

    def get(self, parameters: Iterable[Tensor], compute: Callable[[], Value]) -> Value:
        """The value of `compute`: of these parameters alone, none of which needs a gradient."""
        # load_state_dict and in-place edits raise `_version`; moving to a device moves `data_ptr`.
        try:
            key = tuple((p._version, p.data_ptr(), p.dtype) for p in parameters)
        except RuntimeError:  # under vmap they have no memory of their own
            return compute()
        held = self._held
        if held is None or held[0] != key:
            # Tensors made in inference mode could not be used in a later gradient.
            with torch.inference_mode(False), torch.no_grad():
                held = self._held = (key, compute())
        return held[1]

    def __getstate__(self) -> dict[str, None]:
        """Without what is held: copies and files compute it again."""
        return {"_held": None}


def are_frozen(parameters: Iterable[Tensor]) -> bool:
    """Whether a value of the parameters can be kept: none has a gradient, none is untracked."""
    return not torch.compiler.is_compiling() and not any(
        p.requires_grad or p.is_inference() for p in parameters
    )
