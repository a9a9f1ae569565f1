"""Functions of parameters, computed once while these are frozen."""

from collections.abc import Callable, Iterable
from operator import is_
from typing import Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")


class FrozenCache(Generic[Value]):
    """What is computed from parameters, kept until one of them changes.

    Changes through `.data`, which PyTorch does not count, are not seen; those of in-place
    operations, `load_state_dict` and `to` are. Within a transformation of `torch.func`, values are
    of this transformation alone, and are not kept. It holds the parameters of its value, so that
    former ones stay in memory until the next call.
    """

    def __init__(self) -> None:
        self._held: tuple[list[Tensor], object, Value] | None = None

    def get(
        self, parameters: Iterable[Tensor], compute: Callable[[], Value], settings: object = None
    ) -> Value:
        """The value of `compute`.

        Args:
            parameters: the tensors that it is computed from, none of which needs a gradient.
            compute: returns a tensor or a tuple of tensors.
            settings: what else it depends on, compared by ==.
        """
        parameters = list(parameters)
        # load_state_dict and in-place edits raise `_version`; moving to a device moves `data_ptr`.
        try:
            state = settings, [(p._version, p.data_ptr(), p.dtype) for p in parameters]
        except RuntimeError:  # under vmap they have no memory of their own
            return compute()
        if (held := self._held) is not None:
            # A new tensor can be where an old one has been: it must be the same object.
            same = len(held[0]) == len(parameters) and all(map(is_, held[0], parameters))
            if same and held[1] == state:
                return held[2]
        # Tensors made in inference mode could not be used in a later gradient.
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        if _in_memory(value):
            self._held = parameters, state, value
        return value

    def __getstate__(self) -> dict[str, None]:
        """Without what is held: copies and files compute it again."""
        return {"_held": None}


def are_frozen(parameters: Iterable[Tensor]) -> bool:
    """Whether a value of the parameters can be kept: none has a gradient, none is untracked."""
    return not torch.compiler.is_compiling() and not any(
        p.requires_grad or p.is_inference() for p in parameters
    )


def _in_memory(value: object) -> bool:
    try:
        for tensor in value if isinstance(value, tuple) else (value,):
            tensor.data_ptr()
    except RuntimeError:  # of a transformation of torch.func
        return False
    return True
