"""What conditional flows are given of data, and that it stays with their weights."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from deepinv.physics import Inpainting
from scipy.fft import idctn
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flowprior
from datamodules import LayerModels, SimulatedPairs
from flowprior.inversion import MAP, invert, make_problem, solve
from flowprior.losses import ConditionalLikelihood
from flowprior.physics import (
    AboutGrey,
    Condition,
    Gaussian,
    GaussianEstimate,
    MigratedData,
    ScaledData,
    count_calls,
    gaussian_blur,
    random_gaussian,
)
from flowprior.posterior import Amortised
from flowprior.priors import Module
from lightning_modules import FlowModule
from tests.test_flows_conditional import make

PHYSICS = gaussian_blur((1, 8, 8), tau=1.0)


def images(seed: int) -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_migrated_data_are_the_weighted_adjoint_of_what_grey_does_not_explain() -> None:
    x, other = images(0), images(1)
    given = partial(MigratedData(scale=2.0, depth_power=1.0), PHYSICS, like=x[:1])
    depth = ((torch.arange(8) + 0.5) / 8)[:, None]
    weighted = 2 * (PHYSICS.A(x - 0.5) * PHYSICS.A(depth * other)).sum()
    found = given(PHYSICS.A(x))
    torch.testing.assert_close((found * other).sum(), weighted, rtol=1e-4, atol=1e-4)
    assert torch.equal(given(PHYSICS.A(x)[1:2]), found[1:2])


def test_scaled_data() -> None:
    x = images(0)
    assert torch.equal(ScaledData(3.0)(PHYSICS, x, x[:1]), 3 * x)


def test_operators_with_a_mask_for_each_image() -> None:
    mask = (images(2) > 0.4).float()
    masked = Inpainting((1, 8, 8), mask=mask)
    found = MigratedData(2.0)(masked, masked.A(images(0)), images(0))
    torch.testing.assert_close(found, 2 * mask * (images(0) - 0.5))


POWER = [[0.04, 0.01, 0.004], [0.02, 0.005, 0.002]]


def test_gaussian_estimate_is_the_posterior_mean_of_a_gaussian_prior() -> None:
    """Against SciPy's cosine transform and a dense solve."""
    shape, sigma = (1, 6, 8), 0.05
    physics = gaussian_blur(shape, tau=1.0).double()
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = physics.A(x)
    found = GaussianEstimate(sigma, POWER, iterations=200, scale=3.0)(physics, y, x[:1])
    places = np.meshgrid(np.arange(6) / 6, np.arange(8) / 8 * 2, indexing="ij")
    grid = RegularGridInterpolator((range(2), range(3)), np.log(POWER))
    power = np.exp(grid(np.stack(places, -1))).ravel()
    units = np.eye(48).reshape(48, 6, 8)
    back = idctn(units, axes=(1, 2), norm="ortho").reshape(48, 48)  # rows: one frequency each
    covariance = torch.from_numpy(back.T @ (power[:, None] * back))
    A = physics.A(torch.from_numpy(units)[:, None]).flatten(1).mT
    gain = covariance @ A.mT @ torch.linalg.inv(A @ covariance @ A.mT + sigma**2 * torch.eye(48))
    expected = 3 * (y - physics.A(torch.full_like(x, 0.5))).flatten(1) @ gain.mT
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [1, 5, 17, 33])
def test_gaussian_estimates_do_not_depend_on_their_batch(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    y = PHYSICS.A(torch.rand(count, 1, 8, 8, generator=generator))
    estimate = partial(GaussianEstimate(0.1, POWER, 5), PHYSICS, like=y[:1])
    alone = torch.cat([estimate(row[None]) for row in y])
    assert torch.equal(estimate(y), alone)


def test_gaussian_estimate_of_an_affine_operator_with_masks_and_its_size() -> None:
    x = images(0)
    mask = (images(2) > 0.4).float()
    masked = Inpainting((1, 8, 8), mask=mask)
    found = GaussianEstimate(1e-3, [[1.0, 1.0], [1.0, 1.0]], 10)(masked, masked.A(x), x)
    torch.testing.assert_close(found, mask * (x - 0.5), atol=1e-4, rtol=1e-4)
    linear = random_gaussian((1, 8, 8), measurements=40)
    about = AboutGrey(linear)
    estimate = GaussianEstimate(0.1, POWER, 10)
    same = estimate(about, about.A(x), x[:1]), estimate(linear, linear.A(x), x[:1])
    torch.testing.assert_close(*same, atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class Gradient(Condition):
    """Of the squared misfit, at grey, by automatic differentiation."""

    gives_images = True

    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        def of_data(y: Tensor) -> Tensor:
            count_calls(forward=1, adjoint=1)
            with torch.enable_grad():
                grey = torch.full_like(like, 0.5, requires_grad=True)
                return torch.autograd.grad((physics.A(grey) - y).square().sum() / 2, grey)[0]

        return of_data


@dataclass(frozen=True)
class Halved(Condition):
    """Half of what another condition gives."""

    gives_images = True

    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda y: GaussianEstimate(0.01, POWER, 6)(physics, y, like) / 2


@pytest.mark.parametrize("count", [1, 5, 17])
@pytest.mark.parametrize(
    ("condition", "forward", "adjoint"),
    [
        (Halved(), 6, 7),
        (ScaledData(), 0, 0),
        (MigratedData(), 0, 1),
        (GaussianEstimate(0.01, POWER, 6), 6, 7),
        (Gradient(), 1, 1),
    ],
)
def test_calls_that_make_conditions_count(
    count: int, condition: Condition, forward: int, adjoint: int
) -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flow.eval().requires_grad_(False).conditioning = condition
    y = PHYSICS.A(torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    found = invert(flow, PHYSICS, y, sigma=1.0, solver=Amortised(mean_draws=4), iterations=0)
    assert found.calls.forward.tolist() == [forward] * count
    assert found.calls.adjoint.tolist() == [adjoint] * count


def test_calls_are_those_of_one_solution() -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flow.eval().requires_grad_(False).conditioning = MigratedData()
    y = PHYSICS.A(images(0))
    problem = make_problem(flow, PHYSICS, y, sigma=0.1)
    first, second = (solve(MAP(), problem, 3).calls for _ in range(2))
    alone = invert(flow, PHYSICS, y, sigma=0.1, solver=MAP(), iterations=3).calls
    for one in (second, alone):
        assert torch.equal(first.forward, one.forward)
        assert torch.equal(first.adjoint, one.adjoint)
    assert (first.adjoint > 1).all()


def test_power_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    small = [[0.01 * number for number in row] for row in POWER]
    estimate = GaussianEstimate(0.1, small)
    root = estimate._root(torch.empty(1, 1, 32, 32, dtype=torch.float64))
    draws = torch.randn(4000, 1, 32, 32, generator=generator, dtype=torch.float64)
    found = GaussianEstimate.power_of(0.5 + root(draws), bands=3)
    low, high = (torch.tensor(row) for row in small)
    expected = torch.stack([low, (low * high).sqrt(), high])
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0.02, atol=0)
    assert GaussianEstimate.power_of(torch.full((1, 1, 4, 4), 0.5), 2)[1][1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be"),
        ({"scale": -1.0}, "scale must be"),
        ({"iterations": 0}, "iterations must be an integer"),
        ({"power": []}, "power must have at least two rows and columns.* got rows of no numbers"),
        ({"power": [[1.0, 2.0], [1.0]]}, "power must have .* got rows of 2, 1 numbers"),
        ({"power": [[1.0, 2.0], [1.0, 0.0]]}, "power must be"),
        ({"power": 3.0}, "power must be"),
    ],
)
def test_mistakes_in_gaussian_estimates(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianEstimate(**{"sigma": 0.1, "power": POWER, **options})


def test_what_a_gaussian_estimate_needs() -> None:
    estimate = GaussianEstimate(0.1, POWER)
    assert Condition.restored(json.loads(json.dumps(estimate.described()))) == estimate
    with pytest.raises(ValueError, match="Identity has no A_adjoint, which GaussianEstimate needs"):
        estimate(nn.Identity(), images(0), images(0)[:1])
    with pytest.raises(ValueError, match="bands must be an integer from 2 to 8"):
        GaussianEstimate.power_of(images(0), bands=9)
    wrong = [10 * images(0) - 5, images(0).byte(), images(0)[0], images(0) / 0, images(0)[:0]]
    for given in [*wrong, images(0).tolist(), images(0).numpy()]:
        with pytest.raises(ValueError, match=r"^images must "):
            GaussianEstimate.power_of(given)
    for physics in (Squared(), Shifted()):
        with pytest.raises(ValueError, match=f"linear or affine .* which {type(physics).__name__}"):
            estimate(physics, images(0), images(0)[:1])


class Squared(nn.Module):
    """Not linear."""

    def A(self, x: Tensor) -> Tensor:
        return x**2

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


class Shifted(nn.Module):
    """Linear, with what is not its adjoint."""

    def A(self, x: Tensor) -> Tensor:
        return x.roll(1, 3)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.roll(1, 3)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"scale": "a"}, {"depth_power": -1.0}])
def test_mistakes(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MigratedData(**options)


@dataclass(frozen=True)
class Halved(Condition):
    """A user's own."""

    times: int = 1

    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda y: y / 2**self.times


class Undescribed(Condition):
    """No dataclass."""

    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda y: y


@dataclass(frozen=True)
class WithWeights(Undescribed):
    weights: Any


def test_conditions_that_no_file_can_keep() -> None:
    with pytest.raises(ValueError, match="Undescribed must be a frozen dataclass"):
        Undescribed().described()
    for weights in (torch.zeros(2), (1.0, 2.0), np.float32(2), math.nan):
        with pytest.raises(ValueError, match="WithWeights: options must be numbers"):
            WithWeights(weights).described()
    images = LayerModels(image_size=8, num_train=8, num_val=4, num_test=4, batch_size=4)
    pairs = SimulatedPairs(images, "denoising", Gaussian(0.1), condition=Undescribed())
    with pytest.raises(ValueError, match="Undescribed must be a frozen dataclass"):
        pairs.check(1)
    given = {"options": {"measurements": 16}, "condition": MigratedData()}
    pairs = SimulatedPairs(images, "phase_retrieval", Gaussian(0.1), **given)
    with pytest.raises(ValueError, match="has no A_adjoint"):
        pairs.check(1)


def test_training_without_a_data_module_leaves_it_alone() -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flow.conditioning = ScaledData(3.0)
    module = FlowModule(flow, loss=ConditionalLikelihood())
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **options)
    trainer.fit(module, DataLoader(TensorDataset(images(0), images(1)), 3))
    assert flow.conditioning == ScaledData(3.0)


@pytest.mark.parametrize("given", [None, ScaledData(0.3), MigratedData(2.0, 1.5), Halved(2)])
def test_weights_keep_it(given: Condition | None, tmp_path: Path) -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flow.conditioning = given
    flowprior.save(flow, tmp_path)
    assert flowprior.load(tmp_path).conditioning == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"condition": 3, "options": {}}, "one of GaussianEstimate, MigratedData, ScaledData"),
        ({"condition": "ScaledData", "options": {"scale": -1}}, "scale must be a positive"),
        (
            {"condition": "ScaledData", "options": {"size": 1}},
            "options of ScaledData must be scale",
        ),
        ({"options": {"scale": 1.0}}, "one of GaussianEstimate, MigratedData, ScaledData"),
        ({"condition": {}}, "one of GaussianEstimate, MigratedData, ScaledData"),
        ({"condition": "MigratedData"}, "options of MigratedData must be depth_power, scale"),
        ({"condition": "MigratedData", "options": {"scale": 7.0}}, "must be depth_power, scale"),
        ("ScaledData", "one of GaussianEstimate, MigratedData, ScaledData"),
    ],
)
def test_damaged_weights(given: object, message: str, tmp_path: Path) -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flowprior.save(flow, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "conditioning": given}))
    with pytest.raises(flowprior.WeightsError, match=f"config.json: conditioning.*{message}"):
        flowprior.load(tmp_path)


def test_a_condition_that_is_not_imported_is_left_out(tmp_path: Path) -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flowprior.save(flow, tmp_path)
    path = tmp_path / "config.json"
    given = {"condition": "theirs.Whitened", "options": {}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "conditioning": given}))
    with pytest.warns(UserWarning, match="got theirs.Whitened; it is left out"):
        assert flowprior.load(tmp_path).conditioning is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_data_of_any_precision_and_batch(dtype: torch.dtype) -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flow.eval().requires_grad_(False).conditioning = MigratedData(2.0)
    y = PHYSICS.A(images(0)).to(dtype)
    condition = make_problem(flow, PHYSICS, y, sigma=0.1).condition
    assert condition.dtype == torch.float32
    alone = make_problem(flow, PHYSICS, y[1:2], sigma=0.1).condition
    assert torch.equal(alone[0], condition[1])


def test_decoders_take_no_condition() -> None:
    prior = Module(nn.Linear(4, 64), (1, 8, 8), [4])
    with pytest.raises(ValueError, match="Module takes no condition"):
        prior.generate(torch.zeros(1, 4), torch.zeros(1, 3))
