"""Arguments of another type are named, in one line, by everything that is public."""

import importlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowprior.argument_types import check_types, shown
from flowprior.inversion import MAP, make_problem
from flowprior.physics import Gaussian
from tests.inversion_problems import LinearGaussian, blur

PACKAGES = (
    "flowprior",
    "flowprior.inversion",
    "flowprior.posterior",
    "flowprior.physics",
    "flowprior.metrics",
    "flowprior.priors",
    "flowprior.flows",
    "flowprior.gaussianization",
    "datamodules",
)
# Interfaces, and records that only the package makes.
NOT_CALLED = {
    *("Run", "Posterior", "Solver", "Noise", "Family", "ImageSource", "Prior", "Flow"),
    *("ImageDataModule", "PairDataModule", "LatentPosterior", "Reparameterization", "Identity"),
    *("Problem", "Estimate", "Calibration", "Summary", "Likelihood", "Forward", "ImageRun"),
    *("WeightsError", "batch_invariant", "by_rows", "row_seed", "normal_draws", "Warned"),
    *("require", "joined", "coverage_figure", "rank_figure", "weights", "BatchedLBFGS"),
}
PRIOR = LinearGaussian(size=8)
IMAGES = torch.rand(2, 1, 8, 8, dtype=torch.float64)


class Draws:
    def sample(self, count, *, seed):
        return torch.rand(count, *IMAGES.shape, dtype=torch.float64)


GIVEN: dict[str, Any] = {
    "prior": PRIOR,
    "physics": blur,
    "y": IMAGES,
    "x": IMAGES,
    "found": IMAGES,
    "solver": MAP(),
    "noise": Gaussian(0.1),
    "image_shape": (1, 8, 8),
    "posterior": Draws(),
    "operator": "denoising",
    "name_or_path": "denoising",
    "in_channels": 1,
    "image_size": 8,
    "condition_shape": (2,),
    "denoiser": nn.Identity(),
    "model": nn.Identity(),
    "module": nn.Identity(),
    "flow": PRIOR,
    "latent": (4,),
    "sources": [[0, 0]],
    "receivers": [[7, 7]],
    "truth": IMAGES,
    "images": IMAGES,
    "log_prob": torch.zeros(2),
    "path": "state.ckpt",
    "folder": "weights",
    "source": "images",
    "data_range": (0.0, 1.0),
    "patch_size": 4,
}
"""Arguments that are right, by name; others that are needed come from `OF_TYPE`."""
OF_TYPE = {float: 0.5, int: 2, bool: True, str: "name", Tensor: IMAGES, int | None: 3}
WRONG: dict[str, Any] = {
    "text": "3",
    "None": None,
    "list": [1.5, "a"],
    "fraction": 1.5,
    "array": np.ones((2, 3)),
    "object": object(),
    "bool": True,
}


@dataclass(frozen=True)
class Case:
    """An argument of something public, and a value of another type."""

    target: Callable
    argument: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.target.__name__}-{self.argument}-{self.wrong}"


def kinds_of(annotation: Any) -> set[Any]:
    """Types that an argument takes, of those that are checked here."""
    if get_origin(annotation) in (Union, types.UnionType):
        return set().union(*map(kinds_of, get_args(annotation)))
    return {get_origin(annotation) or annotation}


def wrong_values(kinds: set[Any]) -> Iterator[str]:
    sequence = kinds & {list, tuple, Sequence}
    if not kinds & {int, float, bool, str, Literal, Tensor, *sequence}:
        return
    yield "object"
    if not kinds & {str, Path} :
        yield "text"
    if types.NoneType not in kinds:
        yield "None"
    if not kinds & {dict, Mapping}:
        yield "list"
    if int in kinds and float not in kinds:
        yield "fraction"
    if not sequence:
        yield "array"
    if bool not in kinds:
        yield "bool"


def public() -> dict[str, Any]:
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        found |= {name: getattr(package, name) for name in package.__all__}
    return {name: one for name, one in found.items() if name not in NOT_CALLED and callable(one)}


def cases() -> list[Case]:
    return [
        Case(target, name, wrong)
        for target in public().values()
        for name, kind in annotations(target).items()
        for wrong in wrong_values(kinds_of(kind))
    ]


def annotations(target: Callable) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    space = {**function.__globals__, "Estimate": Any, "Tensor": Tensor}
    known = function.__annotations__
    known = {n: eval(k, space) if isinstance(k, str) else k for n, k in known.items() if n != "return"}
    return {n: k for n, k in known.items() if inspect.signature(target).parameters[n].kind != 4}


def arguments(target: Callable) -> dict[str, Any]:
    """The arguments that are needed."""
    needed = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.default is parameter.empty and parameter.kind not in (2, 4)
    }
    kinds = annotations(target)
    return {n: GIVEN[n] if n in GIVEN else OF_TYPE[kinds[n]] for n in needed}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_an_argument_of_another_type_is_named(case: Case) -> None:
    given = {**arguments(case.target), case.argument: WRONG[case.wrong]}
    with pytest.raises((ValueError, TypeError)) as caught:
        case.target(**given)
    message = str(caught.value)
    assert case.argument in message
    assert "\n" not in message
    assert len(message) < 300
