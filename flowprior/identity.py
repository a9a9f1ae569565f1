"""What results depend on, as JSON-like values that a later run compares."""

import ast
import contextlib
import dis
import functools
import hashlib
import inspect
import json
import math
import os
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OURS = {"flowprior", "evaluation", "datamodules", "callbacks", "lightning_modules"}
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_READS_A_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME"}
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file (of weights, say)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: str | Tensor) -> str:
    """SHA-256 of texts and tensors."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(f"{part.dtype} {tuple(part.shape)} ".encode())
            flat = part.detach().resolve_conj().resolve_neg().cpu().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return found.hexdigest()


def code_digest(kind: Any) -> str | None:
    """SHA-256 of the file that defines a class of a user's own, and of those that it imports.

    Only files in the same folder or package count as imported ones. Where there is no file, as in
    a notebook, the code of the methods counts. None for our classes and libraries'.
    """
    if not _is_own(kind):
        return None
    try:
        path = inspect.getsourcefile(kind)
    except TypeError:  # its module has no file
        path = None
    if path is None or not Path(path).is_file():
        return digest(*(_of_code(function.__code__) for function in _functions(kind)))
    files = _with_imports(Path(path).absolute(), kind.__module__)
    return digest(*(file_digest(file) for file in files))


def _is_own(kind: Any) -> bool:
    """Whether a class or function is a user's own: neither ours nor a library's."""
    space = getattr(kind, "__globals__", {"__name__": getattr(kind, "__module__", None)})
    module = space.get("__name__", "__main__") or "builtins"
    top = module.partition(".")[0]
    if top in _OURS or top == "__main__":
        return top == "__main__"
    files = [getattr(sys.modules.get(name), "__file__", None) for name in (module, top)]
    if any(files):
        return not any(file.startswith(_LIBRARIES) for file in files if file)
    return top not in sys.stdlib_module_names


def _functions(kind: Any) -> list[types.FunctionType]:
    """A user's own function itself, or the methods that a user has given a class."""
    items = [kind]
    if isinstance(kind, type):
        items = [item for base in kind.__mro__ if _is_own(base) for item in vars(base).values()]
    found: list[types.FunctionType] = []
    while items:
        item = items.pop(0)
        names = ("__wrapped__", "__func__", "fget", "fset", "func")
        items += [getattr(item, name, None) for name in names if not isinstance(item, type)]
        if isinstance(item, types.FunctionType) and _is_own(item):
            found.append(item)
        items = [item for item in items if item is not None]
    return found


def _with_imports(path: Path, module: str) -> list[Path]:
    """The file of a module and those of its folder or package that it imports, directly or not."""
    root = _root(path, module)
    found, waiting, followed = set(), {path}, set()
    while waiting:
        file = waiting.pop()
        found.add(file)
        new = {(file.parent, *one) for one in _imports(file.read_bytes())} - followed
        followed |= new
        waiting |= {other for one in new for other in _files(root, *one)} - found
    return sorted(found)


def _root(path: Path, module: str) -> Path:
    """The folder that holds the top package of a module, or the module itself."""
    outside = next((p for p in path.parents if not (p / "__init__.py").is_file()), path.parent)
    inside, names = path.with_suffix(""), tuple(module.split("."))
    inside = inside.parent if inside.name == "__init__" else inside
    if inside.parts[-len(names) :] != names:  # such as __main__
        return outside
    named = inside.parents[len(names) - 1]  # packages may lack an __init__.py
    return named if outside.is_relative_to(named) else outside


@functools.lru_cache(maxsize=256)
def _imports(source: bytes) -> frozenset[tuple[int, str]]:
    """Level and dotted name of all imports of a source; none if it cannot be parsed.

    `from a import b` is a.b, whether b is a module or something in a.
    """
    found = set()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return frozenset()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = f"{node.module}." if node.module else ""
            found |= {(node.level, f"{start}{alias.name}") for alias in node.names}
    return frozenset(found)


def _files(root: Path, folder: Path, level: int, name: str) -> Iterator[Path]:
    """Files under `root` that an import in `folder` runs: of every part of a dotted name."""
    names = name.split(".")
    if not level and names[0] in _OURS:
        return
    folders = [folder, *(p for p in folder.parents if p.is_relative_to(root))]
    for place in folders[level - 1 : level] if level else folders:
        if level and (place / "__init__.py").is_file():
            yield place / "__init__.py"
        for part in names:
            candidates = (place / f"{part}.py", place / part / "__init__.py")
            yield from (candidate for candidate in candidates if candidate.is_file())
            place = place / part
            if not place.is_dir():
                break


def identity(value: Any) -> Any:
    """What tells a value from any other, as JSON gives it back.

    The name of a file stands for what is in it. An object becomes its class and its public
    attributes, or what pickle would keep of it; one of a user's own also has its private
    attributes, a digest of its code and the values around it that its code refers to. A torch
    module has a digest of its weights, and a function one of its code and what it has taken from
    around it.

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
        found["function"] = hashlib.sha256(_of_code(value.__code__).encode()).hexdigest()
        found["taken"] = of(_taken(value))
    elif "code" in found and (taken := [_taken(f) for f in _functions(value) if f.__closure__]):
        found["taken"] = of(taken)
    if around := _around(_functions(value)):
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
        for name in _global_names(function.__code__):
            item = function.__globals__.get(name)
            if item is not None and not isinstance(item, types.ModuleType):
                found[name] = item
    return dict(sorted(found.items()))


def _global_names(code: types.CodeType) -> set[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname in _READS_A_GLOBAL}
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return names.union(*map(_global_names, inner))


def _of_code(code: types.CodeType) -> str:
    return f"{code.co_code.hex()} {code.co_names} {[_of_constant(c) for c in code.co_consts]}"


def _of_constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _of_code(value)
    if isinstance(value, frozenset):  # its own order is another one in each process
        return repr(sorted(map(_of_constant, value)))
    return repr(value)


def _of_object(value: Any, of: Callable[[Any], Any]) -> dict[str, Any]:
    found = of(type(value)) if _is_own(type(value)) else _named(type(value))
    if hasattr(value, "__wrapped__"):
        return {**found, "wrapped": of(value.__wrapped__)}
    if isinstance(value, nn.Module):
        weights = value.state_dict()
        weights = {**weights, **{n: b for n, b in value.named_buffers() if n not in weights}}
        if weights:
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
    plain = all(
        getattr(kind, name) is getattr(object, name)
        for name in ("__reduce__", "__reduce_ex__", "__getstate__")
    )
    if plain and hasattr(value, "__dict__"):
        return None
    try:
        state = value.__reduce_ex__(2)
    except Exception as error:  # whatever a class raises
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} cannot be told apart from others of its "
            "class: give the object that holds it a class with a __getstate__ that leaves it out"
        ) from error
    if plain:
        return None
    return (
        state
        if isinstance(state, str)
        else [list(p) if isinstance(p, Iterator) else p for p in state[1:]]
    )


def _named(kind: Any) -> dict[str, Any]:
    module = getattr(kind, "__module__", None) or "builtins"
    code = code_digest(kind) if module != "builtins" else None
    return {"class": f"{module}.{kind.__qualname__}", **({"code": code} if code else {})}
