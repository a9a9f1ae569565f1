"""What results depend on, as JSON-like values that a later run compares."""

import ast
import functools
import hashlib
import inspect
import json
import math
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OURS = {"flowprior", "evaluation", "datamodules", "callbacks", "lightning_modules"}
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_UNDERWAY: set[int] = set()


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
            found.update(part.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def code_digest(kind: type) -> str | None:
    """SHA-256 of the file that defines a class of a user's own, and of those that it imports.

    Only files in the same folder or package count as imported ones. None for our classes and
    libraries'.
    """
    if kind.__module__.partition(".")[0] in _OURS:
        return None
    try:
        path = inspect.getsourcefile(kind)
    except TypeError:  # built in
        return None
    if path is None or path.startswith(_LIBRARIES) or not Path(path).is_file():
        return None
    files = _with_imports(Path(path).absolute(), kind.__module__)
    return digest(*(file_digest(file) for file in files))


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
    attributes; one of a user's own also has its private attributes and a digest of its code, a
    torch module a digest of its weights, and a function a digest of its code and what it has taken
    from around it.
    """
    if isinstance(value, str | Path) and (content := _content(value)):
        return {str(value): content}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [identity(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(identity(item)) for item in value)
    if isinstance(value, Path | torch.dtype | torch.device | complex):
        return str(value)
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, functools.partial):
        return {"partial": [identity(part) for part in (value.func, value.args, value.keywords)]}
    if isinstance(value, types.FunctionType | types.MethodType | type | types.BuiltinFunctionType):
        return _of_function(value)
    if id(value) in _UNDERWAY:  # it refers back to itself
        return f"{type(value).__qualname__} again"
    _UNDERWAY.add(id(value))
    try:
        return _of_object(value)
    finally:
        _UNDERWAY.remove(id(value))


def _content(name: str | Path) -> str | None:
    """Digest of a file by this name, if there is one."""
    if len(str(name)) > 300 or "\0" in str(name) or not Path(name).is_file():
        return None
    return file_digest(name)


def _of_function(value: Any) -> dict[str, Any]:
    found = _named(value)
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        found["function"] = hashlib.sha256(_of_code(value.__code__).encode()).hexdigest()
        found["taken"] = identity([cells, value.__defaults__, value.__kwdefaults__])
    if isinstance(value, types.MethodType):
        found["of"] = identity(value.__self__)
    return found


def _of_code(code: types.CodeType) -> str:
    inner = [_of_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def _of_object(value: Any) -> dict[str, Any]:
    found = _named(type(value))
    if isinstance(value, nn.Module) and value.state_dict():
        found["weights"] = digest(*(p for item in value.state_dict().items() for p in item))
    attributes = dict(getattr(value, "__dict__", {}))
    if is_dataclass(value):  # perhaps with slots
        attributes |= {field.name: getattr(value, field.name) for field in fields(value)}
    own = {
        name: item
        for name, item in attributes.items()
        if name not in _OF_EVERY_MODULE and ("code" in found or not name.startswith("_"))
    }
    inner = dict(value.named_children()) if isinstance(value, nn.Module) else {}
    return {**found, **{name: identity(item) for name, item in {**own, **inner}.items()}}


def _named(kind: Any) -> dict[str, Any]:
    module = getattr(kind, "__module__", None) or "builtins"
    code = code_digest(kind) if module != "builtins" else None
    return {"class": f"{module}.{kind.__qualname__}", **({"code": code} if code else {})}
