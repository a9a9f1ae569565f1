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
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import flowprior
from datamodules import LayerModels, SimulatedPairs
from flowprior.inversion import make_problem
from flowprior.losses import ConditionalLikelihood
from flowprior.physics import Condition, Gaussian, MigratedData, ScaledData, gaussian_blur
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
        ({"condition": 3, "options": {}}, "one of MigratedData, ScaledData"),
        ({"condition": "ScaledData", "options": {"scale": -1}}, "scale must be a positive"),
        (
            {"condition": "ScaledData", "options": {"size": 1}},
            "options of ScaledData must be scale",
        ),
        ({"options": {"scale": 1.0}}, "one of MigratedData, ScaledData"),
        ({"condition": {}}, "one of MigratedData, ScaledData"),
        ({"condition": "MigratedData"}, "options of MigratedData must be depth_power, scale"),
        ({"condition": "MigratedData", "options": {"scale": 7.0}}, "must be depth_power, scale"),
        ("ScaledData", "one of MigratedData, ScaledData"),
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
