"""Packages that only a part of flowprior needs, and the extra that installs each."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

PIPELINE = (
    *("yaml", "jsonargparse", "pytorch_lightning", "torchvision", "torchmetrics", "lpips"),
    *("datasets", "tensorboard", "filelock", "pandas", "jinja2", "matplotlib", "numba"),
)
"""What train.py, evaluate.py and the modules beside them import."""


class MissingExtra(ImportError):
    """A package is not installed; the message names it and the extra to install."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra to install where an import in this block finds no package.

    Raises:
        MissingExtra: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "flowprior":
            raise
        raise MissingExtra(missing([error.name], name), name=error.name) from None


def missing(packages: list[str], name: str) -> str:
    """One line that says how to install packages.

    >>> missing(["numba"], "tomography")
    "numba is not installed: pip install 'flowprior[tomography]'"
    """
    verb = "is" if len(packages) == 1 else "are"
    return f"{', '.join(packages)} {verb} not installed: pip install 'flowprior[{name}]'"


def need_pipeline() -> None:
    """End a command with one line, and status 2, unless all packages of the pipeline are there."""
    absent = [package for package in PIPELINE if find_spec(package) is None]
    if absent:
        line = missing(absent, "pipeline").replace("'flowprior[", "--editable '.[")
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        sys.exit(2)
