"""Arguments of another type are named, in one line, by everything that is public."""

import importlib
import inspect
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules import LayerModels, SimulatedPairs
from evaluation.weights import found_weights
from flowprior.argument_types import check_fields, check_types
from flowprior.checks import shown
from flowprior.flows import ConditionalHint
from flowprior.inversion import MAP, make_problem
from flowprior.inversion.warned import Warned
from flowprior.physics import Gaussian, gaussian_blur
from flowprior.physics.survey import Survey
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
    *("Run", "Posterior", "Solver", "Noise", "Family", "ImageSource", "Prior", "Flow", "Condition"),
    *("ImageDataModule", "PairDataModule", "LatentPosterior", "Reparameterization", "Identity"),
    *("Problem", "Estimate", "Calibration", "Summary", "Likelihood", "Forward", "ImageRun"),
    *(
        "WeightsError",
        "batch_invariant",
        "by_rows",
        "row_seed",
        "normal_draws",
        "Warned",
        "Sampler",
    ),
    *("require", "joined", "coverage_figure", "rank_figure", "weights", "BatchedLBFGS", "ChainRun"),
}
# The code of operators' functions is in fingerprints of tables: this one has no check of its own.
NOT_NAMED = {("crosshole", "image_shape")}
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
    "power": [[1.0, 1.0], [1.0, 1.0]],
    "sources": [[0, 0]],
    "receivers": [[7, 7]],
    "truth": IMAGES,
    "images": IMAGES,
    "log_prob": torch.zeros(2),
    "path": "state.ckpt",
    "folder": "weights",
    "source": "images",
    "data_range": (0.0, 1.0),
    "weights": "weights",
    "problem": make_problem(PRIOR, blur, IMAGES, sigma=0.1),
    "patch_size": 4,
    "linear": gaussian_blur((1, 8, 8), tau=1.0),
    "survey": Survey((8, 8), [(0, 1)], [(7, 6)], (10.0, 10.0), 20.0, 0.1, 2000.0, 3250.0),
    "background": torch.full((8, 8), 2500.0),
}
"""Arguments that are right, by name; others that are needed come from `OF_TYPE`."""
OF_ONE = {
    "ArrayPairs": {"x": "x.npy", "y": "y.npy"},
    "SimulatedPairs": {"images": LayerModels(image_size=8)},
    "Survey": {"shape": (8, 8), "spacing": (10.0, 10.0), "slowest": 2000.0, "fastest": 3000.0},
}
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
    if not kinds & {str, Path}:
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
    found["Survey"] = Survey
    return {name: one for name, one in found.items() if name not in NOT_CALLED and callable(one)}


def annotations(target: Callable) -> dict[str, Any]:
    """Types of the arguments; those that only type checkers know are anything."""
    function = target.__init__ if inspect.isclass(target) else inspect.unwrap(target)
    space = {**function.__globals__, "Estimate": Any, "Posterior": Any}
    found = {}
    for name, parameter in inspect.signature(target).parameters.items():
        kind = parameter.annotation
        if parameter.kind is not parameter.VAR_KEYWORD:
            found[name] = eval(kind, space) if isinstance(kind, str) else kind
    return found


def arguments(target: Callable) -> dict[str, Any]:
    """The arguments that are needed."""
    kinds, known = annotations(target), {**GIVEN, **OF_ONE.get(target.__name__, {})}
    defaults = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    needed = [name for name in kinds if defaults[name] is inspect.Parameter.empty]
    return {name: known[name] if name in known else OF_TYPE[kinds[name]] for name in needed}


def said(target: Callable, argument: str, wrong: str) -> str:
    """The error of an argument of another type."""
    try:
        target(**{**arguments(target), argument: WRONG[wrong]})
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", public())
def test_arguments_of_another_type_are_named(name: str) -> None:
    target = public()[name]
    messages = {
        (argument, wrong): said(target, argument, wrong)
        for argument, kind in annotations(target).items()
        if (name, argument) not in NOT_NAMED
        for wrong in wrong_values(kinds_of(kind))
    }
    for (argument, wrong), message in messages.items():
        assert argument in message, (argument, wrong, message)
        assert "\n" not in message
        assert len(message) < 300


def test_nearly_everything_that_is_public_is_tried() -> None:
    count = sum(
        len(list(wrong_values(kinds_of(kind))))
        for target in public().values()
        for kind in annotations(target).values()
    )
    assert count > 1500


class Level(IntEnum):
    LOW = 1


def half(
    x: float,
    sizes: tuple[int, int] = (1, 2),
    names: Mapping[str, int] | None = None,
    kind: Literal["a", "b"] = "a",
    own: nn.Module | None = None,
    y: Tensor = IMAGES,
    level: Level = Level.LOW,
    sized: Sized = (),
    final: Final[int] = 1,
    path: Path = Path(),
    counts: Counter[str] | None = None,
    array: np.ndarray | None = None,
    later: "NotImported" = None,  # noqa: F821
) -> float:
    check_types(half, locals())
    return x / 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": "3"}, "x must be a number, got '3'"),
        ({"x": True}, "x must be a number, got True"),
        ({"x": torch.ones(2)}, "x must be a number, got Tensor of shape (2,)"),
        ({"sizes": (1, 2, 3)}, "sizes must be two integers, got (1, 2, 3)"),
        ({"sizes": (1, 2.5)}, "sizes must be two integers, got (1, 2.5)"),
        ({"names": {"a": 1.5}}, "names must be integers by name or None, got {'a': 1.5}"),
        ({"kind": "c"}, "kind must be one of 'a', 'b', got 'c'"),
        ({"own": 3}, "own must be a Module or None, got 3"),
        ({"path": 3}, "path must be a path, got 3"),
        ({"counts": ["a"]}, "counts must be a Counter or None, got ['a']"),
        ({"array": 3}, "array must be an ndarray or None, got 3"),
        (
            {"y": np.ones((2, 3))},
            "y must be a tensor, got ndarray of shape (2, 3): torch.from_numpy(y)",
        ),
    ],
)
def test_what_was_expected_and_given_is_told(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        half(**{"x": 1.0, **wrong})


@pytest.mark.parametrize(
    "right",
    [
        {"x": 1},
        {"x": np.float32(1)},
        {"sizes": [np.int64(1), 2]},
        {"sizes": torch.Size([1, 2])},
        {"sizes": torch.tensor([1, 2])},
        {"names": {"a": 1}},
        {"own": Draws()},  # a capability, perhaps
        {"level": Level.LOW},
        {"sized": [1]},
        {"final": "what is not known passes"},
        {"later": 3},
        {"path": "pairs"},
        {"path": Path("pairs")},
        {"counts": Counter("aab")},
    ],
)
def test_what_is_meant_passes(right):
    assert half(**{"x": 1.0, **right}) == 0.5


def test_long_values_are_cut():
    assert shown("a" * 100) == "'" + "a" * 76 + "..."
    assert shown(np.ones((2, 3))) == "ndarray of shape (2, 3)"


@dataclass(init=False)
class Record:
    count: int

    def __init__(self, text: str) -> None:
        self.count = int(text) if text.isdigit() else text
        check_fields(self)


@dataclass(init=False)
class Empty:
    count: int = 3


def test_fields_are_checked_however_they_are_set():
    assert Record("3").count == 3
    with pytest.raises(ValueError, match=r"^count must be an integer, got 'many'$"):
        Record("many")
    check_fields(Empty())


HINT = ConditionalHint(2, condition_shape=(3,), steps=1, depth=1, hidden_channels=8).eval()


@pytest.mark.parametrize("prior", [PRIOR, HINT])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": "0.7"}, "temperature must be a number, got '0.7'"),
        ({"n": 4.0}, "n must be an integer, got 4.0"),
        ({"generator": "seed"}, "generator must be a Generator or None, got 'seed'"),
        ({"condition": [1.0]}, "condition must be a tensor or None, got [1.0]"),
    ],
)
def test_wrong_arguments_of_sample_are_named(prior, wrong, message):
    given = {"condition": torch.zeros(4, 3)} if prior.conditional else {}
    assert len(prior.sample(4, **given)) == 4
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prior.sample(**{"n": 4, **given, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": torch.tensor([0, 2])}, "rows must be a mask (B,) of bools, got torch.int64"),
        ({"rows": torch.ones(2, 2).bool()}, "rows must be a mask (B,) of bools, got torch.bool of"),
        ({"rows": [True, False]}, "rows must be a tensor or None, got [True, False]"),
        ({"reason": 3}, "reason must be a string, got 3"),
        ({"size": torch.ones(2)}, "size must be one number, got Tensor of shape (2,)"),
    ],
)
def test_wrong_arguments_of_a_warning_are_named(wrong, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Warned(**{"reason": "too short", **wrong})


def test_strings_are_paths():
    options = {"images": LayerModels(image_size=8), "noise": Gaussian(0.1)}
    assert SimulatedPairs(operator="denoising", folder="pairs", **options).folder == Path("pairs")
    assert found_weights("trumpet_mnist") == found_weights(Path("trumpet_mnist"))
