"""Types of arguments, checked against annotations: their errors name the argument."""

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor

from flowprior.checks import shown

_WORDS = {
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    Tensor: ("a tensor", "tensors"),
    torch.dtype: ("a torch.dtype", "torch.dtypes"),
    torch.device: ("a torch.device", "torch.devices"),
    types.NoneType: ("None", "None"),
}
_COUNTS = {2: "two", 3: "three", 4: "four"}
_SEQUENCES = (list, tuple, Sequence)
_PLAIN = (*(kind for kind in _WORDS if kind is not Path), complex, bytes, list, tuple, dict, set)


def check_types(function: Callable, given: Mapping[str, Any], where: str = "") -> None:
    """Raise a ValueError unless arguments are what the annotations of a function say.

    It is called in the first line of a function, ``check_types(psnr, locals())``. Functions that
    may be compiled give their arguments by name, since PyTorch 2.11 cannot trace `locals`;
    compiled, they are not checked. Annotations that cannot be told apart at run time, such as those
    of type checkers alone, are passed over. A whole number is a number, a path a string and a
    string a path, and anything that is indexed a list.

    Args:
        function: the function, or the `__init__` of a class.
        given: arguments by name; other names are passed over.
        where: before their names in messages.

    >>> def half(x: float) -> float:
    ...     check_types(half, locals())
    ...     return x / 2
    >>> half("3")
    Traceback (most recent call last):
    ValueError: x must be a number, got '3'
    """
    if torch.compiler.is_compiling():
        return
    _check(_annotations(function), given, where)


def check_fields(record: Any) -> None:
    """Raise a ValueError unless the fields of a dataclass are what their annotations say."""
    if torch.compiler.is_compiling():
        return
    kinds = _field_types(type(record))
    _check(kinds, {name: getattr(record, name) for name in kinds if hasattr(record, name)})


def _check(kinds: Mapping[str, Any], given: Mapping[str, Any], where: str = "") -> None:
    for name, kind in kinds.items():
        if name in given and not _fits(value := given[name], kind):
            hint = f": torch.from_numpy({name})" if kind is Tensor and _is_array(value) else ""
            raise ValueError(f"{where}{name} must be {_words(kind)}, got {shown(value)}{hint}")


@functools.cache
def _annotations(function: Callable) -> dict[str, Any]:
    function = inspect.unwrap(function)
    kinds = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
    return _known(kinds, function.__globals__)


@functools.cache
def _field_types(record: type) -> dict[str, Any]:
    # Not of __init__, which a dataclass need not have.
    kinds = {field.name: field.type for field in fields(record) if field.init}
    return _known(kinds, vars(sys.modules[record.__module__]))


def _known(kinds: Mapping[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, kind in kinds.items():
        if isinstance(kind, str):
            try:
                kind = eval(kind, names)
            except Exception:  # such as a name that is imported for type checkers alone
                continue
        found[name] = kind
    return found


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin in _SEQUENCES:
        items = value.tolist() if hasattr(value, "tolist") else value
        return _is_sequence(items) and _all_fit(items, parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        values = value.values() if isinstance(value, Mapping) and len(parts) == 2 else ()
        return isinstance(value, Mapping) and all(_fits(item, parts[1]) for item in values)
    if kind in (int, float):
        # A bool counts as a number in Python, but not in a config.
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind in (str, Path):
        return isinstance(value, str | os.PathLike)
    if origin is Callable or kind is Callable:
        return callable(value)
    if kind in _WORDS:
        return isinstance(value, kind)
    # Of others a capability is meant, which their users ask for.
    return not isinstance(value, _PLAIN) or not isinstance(kind, type) or _is_of(value, kind)


def _is_of(value: Any, kind: type) -> bool:
    try:
        return kind is Any or isinstance(value, kind)
    except TypeError:  # a protocol
        return True


def _is_array(value: Any) -> bool:
    return type(value).__name__ == "ndarray"


def _is_sequence(value: Any) -> bool:
    indexed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return indexed and not isinstance(value, str | bytes | Mapping)


def _all_fit(value: Any, parts: tuple[Any, ...]) -> bool:
    if len(parts) < 2 or parts[1] is Ellipsis:
        return not parts or all(_fits(item, parts[0]) for item in value)
    return len(value) == len(parts) and all(map(_fits, value, parts))


def _words(kind: Any, many: bool = False) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind][many]
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part, many) for part in parts))
    if origin is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin in _SEQUENCES:
        fixed = origin is tuple and len(set(parts)) == 1 and len(parts) > 1
        inner = _words(parts[0], True) if parts and not isinstance(parts[0], TypeVar) else ""
        count = _COUNTS.get(len(parts), len(parts))
        return f"{count} {inner}" if fixed else f"a list of {inner}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        # A Counter has one parameter.
        return f"{_words(parts[1], True)} by name" if len(parts) == 2 else _named(origin, many)
    if origin is Callable:
        return "a function"
    return _named(kind, many)


def _named(kind: Any, many: bool) -> str:
    name = kind.__name__
    article = "an" if name == "ndarray" or name[0] in "AEIOaeio" else "a"
    return f"{name}s" if many else f"{article} {name}"
