"""What conditional flows are given of data, and that it stays with their weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flowprior
from flowprior.physics import Condition, MigratedData, ScaledData, gaussian_blur
from tests.test_flows_conditional import make

PHYSICS = gaussian_blur((1, 8, 8), tau=1.0)


def images(seed: int) -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_migrated_data_are_the_weighted_adjoint_of_what_grey_does_not_explain() -> None:
    x, other = images(0), images(1)
    given = MigratedData(scale=2.0, depth_power=1.0).of(PHYSICS, x[:1])
    depth = ((torch.arange(8) + 0.5) / 8)[:, None]
    weighted = 2 * (PHYSICS.A(x - 0.5) * PHYSICS.A(depth * other)).sum()
    found = given(PHYSICS.A(x))
    torch.testing.assert_close((found * other).sum(), weighted, rtol=1e-4, atol=1e-4)
    assert torch.equal(given(PHYSICS.A(x)[1:2]), found[1:2])


def test_scaled_data() -> None:
    x = images(0)
    assert torch.equal(ScaledData(3.0).of(PHYSICS, x[:1])(x), 3 * x)


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


@pytest.mark.parametrize("given", [None, ScaledData(0.3), MigratedData(2.0, 1.5), Halved(2)])
def test_weights_keep_it(given: Condition | None, tmp_path: Path) -> None:
    flow = make("images", condition_shape=(1, 8, 8), image_size=8, dtype=torch.float32)
    flow.conditioning = given
    flowprior.save(flow, tmp_path)
    assert flowprior.load(tmp_path).conditioning == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"condition": "Nothing", "options": {}}, "one of MigratedData, ScaledData"),
        ({"condition": "ScaledData", "options": {"scale": -1}}, "scale must be a positive"),
        ({"condition": "ScaledData", "options": {"size": 1}}, "size"),
        ({"options": {"scale": 1.0}}, "one of MigratedData, ScaledData"),
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
