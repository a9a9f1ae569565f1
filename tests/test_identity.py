"""What tells a value from any other."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flowprior.gaussianization import Gaussianization, Reparameterization
from flowprior.identity import identity
from flowprior.inversion import MAP


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
