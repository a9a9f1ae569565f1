"""Training on pairs of images and data: data modules, losses, and a run as a user starts it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import flowprior
from datamodules import LayerModels, Rosenbrock, SimulatedPairs
from datamodules.dequantize import ImageSource
from flowprior.losses import ConditionalLikelihood, JointLikelihood
from flowprior.physics import Gaussian, denoising
from tests.entry_points import scalars, train_here
from tests.test_flows_conditional import make, pairs
from tests.test_train import assert_same, weights

ROSENBROCK = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.ConditionalHint
    init_args: {in_channels: 2, condition_shape: [2], steps: 2, hidden_channels: 8, depth: 1,
                data_range: [0.0, 1.0]}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: datamodules.Rosenbrock
  init_args: {num_train: 64, num_val: 9, batch_size: 8}
trainer: {accelerator: cpu, log_every_n_steps: 1}
checkpoints: {every_n_steps: 3}
phases:
- {name: joint, loss: {class_path: flowprior.losses.JointLikelihood}, epochs: 1}
- {name: images, loss: {class_path: flowprior.losses.ConditionalLikelihood}, epochs: 1}
"""
SIMULATED = """
seed_everything: 0
model:
  flow:
    class_path: flowprior.flows.Glow
    init_args: {in_channels: 1, image_size: 16, levels: 2, steps: 2, hidden_channels: 8,
                coupling: affine, condition_shape: [1, 16, 16]}
  loss: {class_path: flowprior.losses.ConditionalLikelihood}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: datamodules.SimulatedPairs
  init_args:
    operator: gaussian_blur
    options: {tau: 1.0}
    noise: {class_path: flowprior.physics.Gaussian, init_args: {sigma: 0.1}}
    images:
      class_path: datamodules.LayerModels
      init_args: {image_size: 16, num_train: 64, num_val: 9, num_test: 8, batch_size: 8}
trainer: {accelerator: cpu, max_epochs: 2, log_every_n_steps: 1}
samples: {images: 2}
"""


def run(folder: Path, config: str, *arguments: str, status: int = 0) -> Path:
    (folder / "tiny.yaml").write_text(config)
    train_here(folder, *arguments, status=status)
    return folder / "runs" / "tiny"


def test_rosenbrock_has_the_moments_of_its_density() -> None:
    data = Rosenbrock(num_train=40_000, noise=0.4)
    _, x, y = next(data.pairs("train", 40_000))
    assert x.shape == (40_000, 2, 1, 1)
    first, second = x.flatten(1).double().T
    assert first.mean() == pytest.approx(0, abs=0.02)
    assert first.var() == pytest.approx(1, abs=0.03)
    rest = second - first**2
    assert rest.mean() == pytest.approx(0, abs=0.02)
    assert rest.var() == pytest.approx(0.5, abs=0.02)
    noise = y - x.flatten(1)
    assert noise.std(0).tolist() == pytest.approx([0.4, 0.4], abs=0.01)
    assert (
        abs(torch.corrcoef(torch.cat([noise.T, rest[None].float(), x[:, :1, 0, 0].T]))[0, 1:]).max()
        < 0.02
    )


def test_pairs_depend_on_seed_split_and_index() -> None:
    data = Rosenbrock()
    _, x, y = next(data.pairs("val", 5))
    _, one, its = next(data.pairs("val", 1, [3]))
    assert torch.equal(one[0], x[3])
    assert torch.equal(its[0], y[3])
    assert torch.equal(next(data.batches("val", 5))[1], x)
    for other in (Rosenbrock(seed=1).pairs("val", 5), data.pairs("test", 5)):
        assert not torch.equal(next(other)[1], x)
    assert Rosenbrock(noise=0.3).fingerprint() != data.fingerprint()
    for options, name in (({"noise": 0}, "data.noise"), ({"num_val": 0}, "data.num_val")):
        with pytest.raises(ValueError, match=name):
            Rosenbrock(**options)


def test_data_are_simulated_of_unquantised_images() -> None:
    images = LayerModels(image_size=16, n_bits=5)
    data = SimulatedPairs(images, "denoising", Gaussian(0.05))
    assert data.condition_shape == (1, 16, 16)
    indices, x, y = next(data.pairs("test", 4))
    assert torch.equal(x, next(images.batches("test", 4))[1])
    truth = torch.stack([images.images("test")[index] for index in indices])
    noise = y - denoising((1, 16, 16)).A(truth)
    assert noise.std().item() == pytest.approx(0.05, rel=0.1)
    assert not torch.allclose(noise, next(data.pairs("val", 4))[2] - 0.5)
    assert torch.equal(next(data.pairs("test", 1, [2]))[2][0], y[2])
    other = SimulatedPairs(images, "denoising", Gaussian(0.06))
    assert other.fingerprint() != data.fingerprint()
    flipped = LayerModels(image_size=16, horizontal_flips=True)
    with pytest.raises(ValueError, match=r"data.images.horizontal_flips=True: expected false"):
        SimulatedPairs(flipped, "denoising", Gaussian(0.1))
    with pytest.raises(ValueError, match="operator must be one of"):
        SimulatedPairs(images, "nothing", Gaussian(0.1))


class Cut(ImageSource):
    def __init__(self, whole: ImageSource) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def pixels(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        return [image[..., :10] for image in self.whole.pixels(indices)]


class Wide(LayerModels):
    """Their left parts."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, 16, 10)

    def images(self, split: str) -> Cut:
        return Cut(super().images(split))


def test_data_of_images_that_are_not_square() -> None:
    data = SimulatedPairs(Wide(image_size=16), "denoising", Gaussian(0.05))
    assert data.image_shape == data.condition_shape == (1, 16, 10)
    _, x, y = next(data.pairs("test", 4))
    assert x.shape == y.shape == (4, 1, 16, 10)


def test_losses_are_the_densities_of_their_lanes() -> None:
    flow = make("vectors")
    x, y = pairs(flow)
    joint = JointLikelihood()(flow, x, y)
    alone = ConditionalLikelihood()(flow, x, y)
    torch.testing.assert_close(alone["conditional_nll"], -flow.log_prob(x, y))
    torch.testing.assert_close(joint["conditional_nll"], alone["conditional_nll"])
    torch.testing.assert_close(joint["condition_nll"], -flow.condition_log_prob(y))
    total = -flow.log_prob(x, y) - flow.condition_log_prob(y)
    torch.testing.assert_close(joint["joint_nll"], total)
    trained = {id(p) for p in ConditionalLikelihood().trains(flow)}
    assert trained == {id(p) for p in flow.x_lane.parameters()}
    assert len(list(JointLikelihood().trains(flow))) == len(list(flow.parameters()))
    glow = make("Glow, image")
    assert len(list(ConditionalLikelihood().trains(glow))) == len(list(glow.parameters()))
    with pytest.raises(ValueError, match=r"JointLikelihood needs a flow of the data too"):
        JointLikelihood().trains(glow)


def test_phases_of_a_joint_flow_stop_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", ROSENBROCK)
    for limit in (5, 8, 11):
        stopped = run(tmp_path, ROSENBROCK, "--trainer.max_steps", str(limit))
        if limit == 8:
            border = weights(stopped)
    stopped = run(tmp_path, ROSENBROCK)
    assert_same(stopped, whole, 1e-7)
    curve = scalars(whole, "val/conditional_nll")
    assert list(curve) == [7, 15]
    for name, value in weights(stopped).items():
        if name.startswith("flow.y_lane."):
            assert torch.equal(value, border[name]), name
    moved = weights(stopped)["flow.x_lane.bridges.0.conv3.bias"]
    assert not torch.equal(moved, border["flow.x_lane.bridges.0.conv3.bias"])
    flow = flowprior.load(whole / "weights")
    assert flow.condition_shape == (2,)
    assert "worst_round_trip" not in flowprior.weights.read_config(whole / "weights")["card"]


def test_a_glow_is_trained_on_simulated_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = run(tmp_path, SIMULATED)
    assert "images/s" in capsys.readouterr().out
    assert list(scalars(folder, "train/conditional_nll")) == list(range(16))
    curve = scalars(folder, "val/conditional_nll")
    assert curve[15] < curve[7]
    assert scalars(folder, "latent/radius")
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    for name in ("truth", "temperature_1"):
        assert [event.step for event in events.Images(f"samples/{name}")] == [7, 15]
    flow = flowprior.load(folder / "weights")
    assert flow.sample(3, condition=torch.zeros(3, 1, 16, 16)).shape == (3, 1, 16, 16)


PLAIN = "flowprior.losses.MaximumLikelihood"
MISTAKES = {
    "no pairs": (
        SIMULATED.replace("condition_shape: [1, 16, 16]", "condition_shape: null"),
        "model.flow takes conditions of shape none but data gives",
    ),
    "other shape": (
        ROSENBROCK.replace("condition_shape: [2]", "condition_shape: [3]"),
        r"model.flow takes conditions of shape (3,) but data gives (2,)",
    ),
    "plain loss": (
        SIMULATED.replace("flowprior.losses.ConditionalLikelihood", PLAIN),
        "loss MaximumLikelihood takes images without conditions, but data gives pairs",
    ),
    "joint loss": (
        SIMULATED.replace("ConditionalLikelihood", "JointLikelihood"),
        "JointLikelihood needs a flow of the data too",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture) -> None:
    config, words = MISTAKES[mistake]
    assert not run(tmp_path, config, status=2).exists()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line]
    assert words in line
