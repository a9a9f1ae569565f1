"""What tells a value from any other."""

import copy
import importlib
import json
import os
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from importlib.metadata import version
from operator import itemgetter

import deepinv
import numpy as np
import pytest
import torch
from torch import nn

from flowprior import own_code
from flowprior.gaussianization import Gaussianization, Reparameterization
from flowprior.identity import code_digest, digest, file_digest, identity
from flowprior.inversion import MAP
from flowprior.physics import linearized_born


@dataclass(frozen=True, slots=True)
class Slotted:
    weight: float


class Scale(Reparameterization):
    def __init__(self, factor):
        super().__init__()
        self._factor = factor

    def forward(self, v):
        return self._factor * v


def scaled(x, factor=1.0):
    return factor * x


def closure(factor):
    return lambda x: factor * x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (MAP(beta=1.0), MAP(beta=2.0)),
        (MAP(reparameterization=Scale(1.0)), MAP(reparameterization=Scale(3.0))),
        (Gaussianization.robust(0.7), Gaussianization.robust(0.8)),
        (partial(scaled, factor=0.5), partial(scaled, factor=0.25)),
        (closure(1.0), closure(2.0)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.sin(), lambda x: x.cos()),
        (torch.zeros(3), torch.zeros(3, 1)),
        (np.zeros(3), np.ones(3)),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (float("nan"), "not a number"),
        (Slotted(1.0), Slotted(2.0)),
        ({1, 2}, {1, 3}),
    ],
)
def test_different_values_differ(one, other):
    assert identity(one) != identity(other)
    assert identity(one) == identity(one)


def test_same_values_are_equal_in_every_process():
    assert identity(closure(1.0)) == identity(closure(1.0))
    assert identity(MAP(reparameterization=Scale(2.0))) == identity(
        MAP(reparameterization=Scale(2.0))
    )
    assert " at 0x" not in str(identity(lambda x: [y for y in x]))


def test_what_is_in_a_file_counts(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"one")
    before = identity({"weights": str(path)})
    path.write_bytes(b"two")
    assert identity({"weights": str(path)}) != before


def test_code_beside_counts(tmp_path, monkeypatch):
    (tmp_path / "my_base.py").write_text("GAIN = 1\n")
    (tmp_path / "my_solver.py").write_text("from my_base import GAIN\n\nclass Own: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    from my_solver import Own

    before = identity(Own())
    (tmp_path / "unrelated.py").write_text("")
    assert identity(Own()) == before
    (tmp_path / "my_base.py").write_text("GAIN = 5\n")
    assert identity(Own()) != before


def test_objects_that_refer_back_to_themselves():
    first, second = Scale(1.0), Scale(2.0)
    for module in (first, second):
        module.parent = [module]
    assert identity(first) != identity(second)


SPELLINGS = {
    "from tools import x": "pk/tools.py",
    "from .tools import x": "pk/tools.py",
    "from . import tools": "pk/tools.py",
    "from pk import tools": "pk/tools.py",
    "from pk.tools import x": "pk/tools.py",
    "import pk.tools": "pk/tools.py",
    "import pk.tools as t": "pk/tools.py",
    "from pk.sub.deep import x": "pk/sub/deep.py",
    "from .sub import deep": "pk/sub/deep.py",
    "from ..tools import x": "tools.py",
}


def package(folder, statement, init=True):
    """Files of a package whose inner module `pk.mine` has this import; each one is changeable."""
    inner = folder / "top" if ".." in statement else folder
    files = [inner / "pk" / name for name in ("tools.py", "other.py", "sub/deep.py", "mine.py")]
    files.append(inner / "tools.py")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
        if init and file.parent != folder:
            (file.parent / "__init__.py").touch()
    (inner / "pk" / "mine.py").write_text(f"{statement}\nclass Own: ...\n")
    return inner, "top.pk.mine" if ".." in statement else "pk.mine"


@pytest.fixture
def own_class(tmp_path, monkeypatch):
    """Imports the class of a module; forgets all of these modules afterwards."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] in ("top", "pk", "tools")]:
            del sys.modules[name]

    def own(module):
        return importlib.import_module(module).Own

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "pk")  # for `from tools import x`
    forget()
    yield own
    forget()


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("statement", SPELLINGS)
def test_changed_code_that_a_class_imports_is_noticed(tmp_path, own_class, statement, init):
    inner, module = package(tmp_path, statement, init)
    kind = own_class(module)
    before = code_digest(kind)
    (inner / "pk" / "other.py").write_text("x = 3\n")
    assert code_digest(kind) == before
    (inner / SPELLINGS[statement]).write_text("x = 2\n")
    assert code_digest(kind) != before


def test_imports_of_imports_are_relative_to_their_own_folder(tmp_path, own_class):
    package(tmp_path, "from .sub import deep")
    (tmp_path / "pk" / "sub" / "deep.py").write_text("from ..other import x\n")
    kind = own_class("pk.mine")
    before = code_digest(kind)
    (tmp_path / "pk" / "other.py").write_text("x = 3\n")
    assert code_digest(kind) != before


@pytest.mark.parametrize("content", [b"x =", b"\0", b"\xff"])
def test_a_file_that_cannot_be_parsed_counts_too(tmp_path, own_class, content):
    package(tmp_path, "try:\n    from . import other\nexcept Exception:\n    pass")
    (tmp_path / "pk" / "other.py").write_bytes(content)
    kind = own_class("pk.mine")
    before = code_digest(kind)
    (tmp_path / "pk" / "other.py").write_bytes(content + b"#")
    assert code_digest(kind) != before


def test_our_code_does_not_count_as_a_users(tmp_path, own_class):
    package(tmp_path, "import flowprior.io")
    (tmp_path / "flowprior").mkdir()
    (tmp_path / "flowprior" / "io.py").write_text("x = 1\n")
    kind = own_class("pk.mine")
    assert code_digest(kind) == digest(file_digest(tmp_path / "pk" / "mine.py"))


def in_a_process(program, *arguments, seed="0"):
    """What a program that has no file prints; it may use `identity` and `sys`."""
    program = f"import sys, json\nfrom flowprior.identity import identity\n{program}"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-", *arguments]
    done = subprocess.run(
        command, input=program, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


SEEN_BY_CODE = {
    "global": "gain = sys.argv[1]\ndef A(x): return gain * x",
    "lambda": "gain = sys.argv[1]\nA = lambda x: gain * x",
    "inner": "gain = sys.argv[1]\ndef A(x): return [gain * y for y in x]",
    "through another": "gain = sys.argv[1]\ndef B(x): return gain * x\ndef A(x): return B(x)",
    "method": "gain = sys.argv[1]\nclass Op:\n    def f(self, x): return gain * x\nA = Op()",
    "private": "class Op:\n    def __init__(self, w): self.__w = w\nA = Op(sys.argv[1])",
    "code": "exec(f'class Op:\\n    def f(self, x): return {sys.argv[1]} * x')\nA = Op()",
}


IDENTITIES = """
for name, code in json.loads(sys.argv[2]).items():
    space = {"__name__": "__main__", "sys": sys}
    exec(code, space)
    print(name, json.dumps(identity(space["A"])), sep="\t")
"""
IN_SETS = "A = lambda x: x in {'aa', 'bb', 'cc', 'dd'}"


def test_what_code_without_a_file_sees_counts():
    codes = json.dumps({**SEEN_BY_CODE, "sets": IN_SETS})
    runs = [in_a_process(IDENTITIES, value, codes, seed=seed) for value, seed in ("11", "12", "23")]
    one, again, other = (dict(line.split("\t") for line in run.splitlines()) for run in runs)
    assert one == again
    same = [name for name in one if one[name] == other[name]]
    assert same == ["sets"]


class Buffered(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("gain", torch.tensor(value), persistent=False)


class Unlike:
    __slots__ = ("_weight",)

    def __init__(self, weight):
        self._weight = weight


class Strength(Enum):
    WEAK = 1
    STRONG = 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lru_cache(scaled), lru_cache(closure)),
        (itemgetter(1), itemgetter(2)),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        (np.random.default_rng(1), np.random.default_rng(2)),
        (Buffered(1.0), Buffered(2.0)),
        (Unlike(1), Unlike(2)),
        (Strength.WEAK, Strength.STRONG),
        (b"one", b"two"),
        (torch.ones(3).mul, torch.zeros(3).mul),
        (torch.Tensor.abs, torch.Tensor.exp),
        (np.sin, np.cos),
        (deque([1]), deque([2])),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
        (np.array([None, "a"]), np.array([None, "b"])),
    ],
)
def test_values_without_public_attributes_differ(one, other):
    assert identity(one) != identity(other)
    assert identity(one) == identity(copy.copy(one))
    json.dumps(identity(one))


def test_an_object_that_cannot_be_told_apart_is_one_clear_line():
    with pytest.raises(ValueError, match=r"lock cannot be told apart") as caught:
        identity({"physics": threading.Lock()})
    assert "\n" not in str(caught.value)


def test_values_that_hold_themselves_and_long_names():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    def unfilled():
        return later

    endless = [1]
    endless.append(endless)
    for value in (factorial, unfilled, endless, "é" * 200):
        assert json.dumps(identity(value))
    later = None
    assert identity(unfilled)["taken"][0] == [later]


@pytest.mark.parametrize(("place", "own"), [("site-packages", False), ("my-packages", True)])
def test_libraries_of_another_python_are_not_ones_own(tmp_path, monkeypatch, place, own):
    folder = tmp_path / place
    folder.mkdir()
    (folder / "elsewhere_installed.py").write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module("elsewhere_installed")
    monkeypatch.setitem(sys.modules, "elsewhere_installed", sys.modules.pop("elsewhere_installed"))
    assert (code_digest(module.Net) is not None) == own


def test_operators_depend_on_the_files_that_they_import_and_on_packages(monkeypatch):
    found = own_code.made_by(linearized_born)
    assert found["versions"] == {name: version(name) for name in ("deepinv", "deepwave")}
    real = own_code.file_digest
    for name, matters in (("survey.py", True), ("grids.py", True), ("waveforms.py", False)):
        with monkeypatch.context() as patch:
            named = {name: "changed"}
            patch.setattr(own_code, "file_digest", lambda p, n=named: n.get(p.name) or real(p))
            assert (own_code.made_by(linearized_born) != found) == matters
    assert own_code.made_by(deepinv.physics.Inpainting)["versions"] == {
        "deepinv": version("deepinv")
    }
