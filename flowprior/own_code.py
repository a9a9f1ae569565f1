"""Digests of files and values, and of the code that a user has written."""

import ast
import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_OURS = {"flowprior", "evaluation", "datamodules", "callbacks", "lightning_modules"}
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_SITES = {"site-packages", "dist-packages"}
_ROUND_ONLY = _OURS | {"torch", "numpy"}
_READS_A_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME"}


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
    if not is_own(kind):
        return None
    try:
        path = inspect.getsourcefile(kind)
    except TypeError:  # its module has no file
        path = None
    if path is None or not Path(path).is_file():
        return digest(*(code_text(function.__code__) for function in own_functions(kind)))
    files = _with_imports(Path(path).absolute(), kind.__module__)
    return digest(*(file_digest(file) for file in files))


def made_by(kind: Any) -> dict[str, Any]:
    """What a function or class does depends on: code, ours too, and versions of packages.

    Code is that of its file and of those of its folder that it imports, for a user's own as in
    `code_digest`; packages are its own, where it is a library's, and those that the files import.
    PyTorch and NumPy do not count: versions of them differ by rounding.
    """
    module = getattr(kind, "__module__", None) or "__main__"
    files: list[Path] = []
    with suppress(TypeError):  # its module has no file
        path = Path(inspect.getsourcefile(kind) or "").absolute()
        if path.is_file() and is_own(kind):
            files = _with_imports(path, module)
        elif path.is_file() and module.partition(".")[0] in _OURS:
            files = _ours_with_imports(path)
    imported = {name for file in files for level, name in _imports(file.read_bytes()) if not level}
    versions = {}
    for name in sorted({name.partition(".")[0] for name in {module, *imported}} - _ROUND_ONLY):
        with suppress(PackageNotFoundError):  # such as modules of Python, or a user's
            versions[name] = version(name)
    return {"code": digest(*map(file_digest, files)), "versions": versions}


def our_digest() -> str:
    """SHA-256 of all Python files of flowprior, and of the modules of its pipeline."""
    found = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for file in sorted(file for package in _OURS for file in (root / package).rglob("*.py")):
        found.update(f"{file.relative_to(root)} {file_digest(file)} ".encode())
    return found.hexdigest()


def own_modules() -> dict[str, str]:
    """SHA-256 by name of every Python file of a user's own that is imported."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    return {
        name: file_digest(file)
        for name, file in files.items()
        if (file or "").endswith(".py")
        and _is_own_name(name)
        and not _is_of_a_library(file)
        and Path(file).is_file()
    }


def _is_own_name(name: str) -> bool:
    top = name.partition(".")[0]
    known = top in _OURS or top in sys.stdlib_module_names
    return not known and top not in ("__main__", "__mp_main__")


def is_own(kind: Any) -> bool:
    """Whether a class or function is a user's own: neither ours nor a library's."""
    space = getattr(kind, "__globals__", {"__name__": getattr(kind, "__module__", None)})
    module = space.get("__name__", "__main__") or "builtins"
    top = module.partition(".")[0]
    if top in _OURS or top == "__main__":
        return top == "__main__"
    files = [getattr(sys.modules.get(name), "__file__", None) for name in (module, top)]
    if any(files):
        return not any(_is_of_a_library(file) for file in files if file)
    return top not in sys.stdlib_module_names


def _is_of_a_library(file: str) -> bool:
    # A virtual environment may see the packages of another Python too.
    return file.startswith(_LIBRARIES) or not _SITES.isdisjoint(Path(file).parts)


def own_functions(kind: Any) -> list[types.FunctionType]:
    """A user's own function itself, or the methods that a user has given a class."""
    items = [kind]
    if isinstance(kind, type):
        items = [item for base in kind.__mro__ if is_own(base) for item in vars(base).values()]
    found: list[types.FunctionType] = []
    while items:
        item = items.pop(0)
        names = ("__wrapped__", "__func__", "fget", "fset", "func")
        items += [getattr(item, name, None) for name in names if not isinstance(item, type)]
        if isinstance(item, types.FunctionType) and is_own(item):
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


def _ours_with_imports(path: Path) -> list[Path]:
    """A file of ours and those of its folder that it imports, directly or not."""
    top = Path(__file__).resolve().parent.parent
    found, waiting = set(), {path}
    while waiting:
        file = waiting.pop()
        found.add(file)
        for _, name in _imports(file.read_bytes()):
            inside = top.joinpath(*name.split("."))
            modules = {one.with_suffix(".py") for one in (inside, inside.parent)} - found
            waiting |= {one for one in modules if one.parent == path.parent and one.is_file()}
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


def global_names(code: types.CodeType) -> set[str]:
    """Global names that a code reads, with those of the functions in it."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in _READS_A_GLOBAL}
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return names.union(*map(global_names, inner))


def code_text(code: types.CodeType) -> str:
    """A text of all that a code does, which is the same in every process."""
    return f"{code.co_code.hex()} {code.co_names} {[_of_constant(c) for c in code.co_consts]}"


def _of_constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return code_text(value)
    if isinstance(value, frozenset):  # its own order is another one in each process
        return repr(sorted(map(_of_constant, value)))
    return repr(value)
