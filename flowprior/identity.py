"""What results depend on, as JSON-like values that a later run compares."""

import contextlib
import copyreg
import functools
import hashlib
import json
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowprior.own_code import (
    code_digest,
    code_text,
    digest,
    file_digest,
    global_names,
    is_own,
    own_functions,
)

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def identity(value: Any) -> Any:
    """What tells a value from any other, as JSON gives it back.

    The name of a file stands for what is in it. An object becomes its class and its public
    attributes, or what pickle would keep of it; one of a user's own also has its private
    attributes, a digest of its code and the values around it that its code refers to. A torch
    module has a digest of its weights, or what it says it is `made_of`, and a function one of its
    code and what it has taken from around it.

    Raises:
        ValueError: an object has a state that cannot be told, as that of an open file.
    """
    return _identity(value, {})


def _identity(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """`seen` has all objects so far, which keeps their ids their own, and what they became."""
    if isinstance(value, str | Path) and os.path.isfile(value):
        return {str(value): file_digest(value)}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Path | torch.dtype | torch.device | complex):
        return str(value)
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if id(value) not in seen:
        seen[id(value)] = (value, f"{type(value).__qualname__} again")  # if it refers to itself
        seen[id(value)] = (value, _of_parts(value, functools.partial(_identity, seen=seen)))
    return seen[id(value)][1]


def _of_parts(value: Any, of: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): of(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [of(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(of(item)) for item in value)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, functools.partial):
        return {"partial": [of(part) for part in (value.func, value.args, value.keywords)]}
    if isinstance(value, types.FunctionType | types.MethodType | type | types.BuiltinFunctionType):
        return _of_function(value, of)
    return _of_object(value, of)


def _of_function(value: Any, of: Callable[[Any], Any]) -> dict[str, Any]:
    """Of a function, a method or a class."""
    found = _named(value)
    if isinstance(value, types.FunctionType):
        found["function"] = hashlib.sha256(code_text(value.__code__).encode()).hexdigest()
        found["taken"] = of(_taken(value))
    elif "code" in found and (taken := [_taken(f) for f in own_functions(value) if f.__closure__]):
        found["taken"] = of(taken)
    if around := _around(own_functions(value)):
        found["around"] = of(around)
    owner = getattr(value, "__self__", None)
    if isinstance(value, types.MethodType) or not isinstance(
        owner, type | types.ModuleType | types.NoneType
    ):
        found["of"] = of(owner)
    return found


def _taken(function: types.FunctionType) -> list[Any]:
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is not filled yet
            cells.append(cell.cell_contents)
    return [cells, function.__defaults__, function.__kwdefaults__]


def _around(functions: list[types.FunctionType]) -> dict[str, Any]:
    """Values of the global names, but modules, that a user's functions refer to."""
    found = {}
    for function in functions:
        for name in global_names(function.__code__):
            item = function.__globals__.get(name)
            if item is not None and not isinstance(item, types.ModuleType):
                found[name] = item
    return dict(sorted(found.items()))


def _of_object(value: Any, of: Callable[[Any], Any]) -> dict[str, Any]:
    found = of(type(value)) if is_own(type(value)) else _named(type(value))
    if hasattr(value, "__wrapped__"):
        return {**found, "wrapped": of(value.__wrapped__)}
    if isinstance(value, nn.Module):
        weights = value.state_dict()
        weights = {**weights, **{n: b for n, b in value.named_buffers() if n not in weights}}
        if weights and getattr(value, "made_of", None) is None:
            found = {**found, "weights": digest(*(p for item in weights.items() for p in item))}
    elif not is_dataclass(value) and (state := _pickled(value)):
        return {**found, "state": of(state)}
    attributes = _attributes(value)
    own = {
        name: item
        for name, item in attributes.items()
        if name not in _OF_EVERY_MODULE and ("code" in found or not name.startswith("_"))
    }
    inner = dict(value.named_children()) if isinstance(value, nn.Module) else {}
    return {**found, **{name: of(item) for name, item in {**own, **inner}.items()}}


def _attributes(value: Any) -> dict[str, Any]:
    state = object.__getstate__(value)  # with those in slots
    parts = state if isinstance(state, tuple) else (state,)
    found = {name: item for part in parts if part for name, item in part.items()}
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        found |= {name: getattr(value, name) for name in names if hasattr(value, name)}
    return found


def _pickled(value: Any) -> Any:
    """What pickle would keep of an object that is no more than its attributes; else None."""
    kind = type(value)
    registered = copyreg.dispatch_table.get(kind)
    plain = registered is None and all(
        getattr(kind, name) is getattr(object, name)
        for name in ("__reduce__", "__reduce_ex__", "__getstate__")
    )
    if plain and hasattr(value, "__dict__"):
        return None
    try:
        state = registered(value) if registered else value.__reduce_ex__(2)
    except Exception as error:  # whatever a class raises
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} cannot be told apart from others of its "
            "class: give the object that holds it a class with a __getstate__ that leaves it out"
        ) from error
    if plain or isinstance(state, str):
        return None if plain else state
    return [list(part) if isinstance(part, Iterator) else part for part in state[1:]]


def _named(kind: Any) -> dict[str, Any]:
    module = getattr(kind, "__module__", None) or "builtins"
    code = code_digest(kind) if module != "builtins" else None
    return {"class": f"{module}.{kind.__qualname__}", **({"code": code} if code else {})}
