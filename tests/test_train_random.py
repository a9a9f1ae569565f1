"""Trainings whose loss draws random numbers: exact resumption, numbers of each process its own."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from flowprior.flows import Flow, Glow
from flowprior.losses import Loss, MaximumLikelihood
from lightning_modules import FlowModule
from lightning_modules.flow_module import step_seed
from tests.entry_points import TINY, scalars, train_here


class Noisy(MaximumLikelihood):
    """Likelihood of images with noise."""

    def __call__(self, flow: Flow, images: Tensor) -> dict[str, Tensor]:
        return super().__call__(flow, images + 0.1 * torch.randn_like(images))


class Drawn(Loss):
    """The random numbers themselves."""

    monitor = "drawn"

    def __call__(self, flow: Flow, images: Tensor) -> dict[str, Tensor]:
        return {"drawn": torch.rand(len(images))}


def state(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_stop_changes_no_bit(tmp_path: Path, accumulated: int) -> None:
    config = yaml.safe_load(TINY)
    config["model"]["loss"] = {"class_path": "tests.test_train_random.Noisy"}
    config["trainer"] |= {"max_epochs": 2, "accumulate_grad_batches": accumulated}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    train_here(tmp_path, "--output", "whole")
    train_here(tmp_path, "--output", "parts", "--trainer.max_steps", "3")
    train_here(tmp_path, "--output", "parts")
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    for curve in ("train/bits_per_dim", "val/bits_per_dim"):
        assert scalars(tmp_path / "whole", curve) == scalars(tmp_path / "parts", curve)


def test_processes_steps_and_uses_draw_numbers_of_their_own() -> None:
    keys = [(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [torch.rand(3, generator=torch.Generator().manual_seed(step_seed(*k))) for k in keys]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(keys)
    assert step_seed(0, 1, 2) == step_seed(0, 1, 2)


def test_two_ranks_draw_different_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = (
        FlowModule(Glow(1, 8, levels=1, steps=1), loss=Drawn()),
        torch.zeros(2, 1, 8, 8),
    )
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    found = []
    for rank in (0, 1, 0):
        monkeypatch.setattr(FlowModule, "global_rank", property(lambda _, rank=rank: rank))
        found.append(module.training_step(images, 0))
    assert found[0] == found[2] != found[1]
    assert found[0] != module.training_step(images, 1)


def test_what_is_drawn_elsewhere_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    module, images = (
        FlowModule(Glow(1, 8, levels=1, steps=1), loss=Drawn()),
        torch.zeros(2, 1, 8, 8),
    )
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    torch.manual_seed(3)
    module.training_step(images, 0)
    module.validation_step(images, 0)
    assert torch.equal(torch.rand(4), expected)
