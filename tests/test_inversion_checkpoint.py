"""Batches that are killed and go on from their checkpoint."""

import copy
import time
from dataclasses import dataclass

import pytest
import torch

from flowprior.gaussianization import Gaussianization
from flowprior.inversion import (
    MAP,
    Checkpoint,
    Discrepancy,
    ImageRun,
    Reconstructor,
    Recording,
    Restarts,
    Solver,
    TotalVariation,
    invert,
)
from tests.inversion_problems import Interrupted, blur, images_of, interrupt_at, mask, small_glow


@dataclass(frozen=True)
class GradientDescent(Solver):
    """A user's solver over images."""

    rate: float = 0.5

    def begin(self, problem):
        return GradientRun(self.rate, problem)


class GradientRun(ImageRun):
    def __init__(self, rate, problem):
        super().__init__(problem)
        self.rate = rate

    def step(self):
        self.x = self.x - self.rate * self.misfit_gradient(self.x)
        self.measure()


class Doubling(torch.nn.Module):
    def forward(self, y, physics):
        return 2 * y + 0.1 * torch.randn_like(y)


SOLVERS = {
    "lbfgs": MAP(beta=0.1),
    "adam": MAP(beta=0.1, optimizer="adam"),
    "layers": MAP(beta=0.1, reparameterization=Gaussianization(4, rotation="none")),
    "total variation": TotalVariation(1.0),
    "restarts": Restarts(MAP(beta=0.1), 2),
    "restarts of adam": Restarts(MAP(beta=0.1, optimizer="adam"), 2),
    "discrepancy": Discrepancy(MAP(beta=10.0), stage=2),
    "discrepancy of adam": Discrepancy(MAP(beta=10.0, optimizer="adam"), stage=2),
    "images": GradientDescent(),
    "reconstructor": Reconstructor(Doubling()),
}


@pytest.fixture(scope="module")
def glow():
    return small_glow()


@pytest.fixture(scope="module")
def truth(glow):
    return images_of(glow, 3)


@pytest.fixture(scope="module")
def y(truth):
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)).double()
    return blur(truth) + 0.1 * noise


def assert_same(found, expected):
    assert torch.equal(found.x, expected.x)
    assert (found.z is None) == (expected.z is None)
    assert found.z is None or torch.equal(found.z, expected.z)
    assert torch.equal(found.finite, expected.finite)
    assert torch.equal(found.residual, expected.residual)
    assert found.warnings == expected.warnings
    assert set(found.history) == set(expected.history)
    for name, values in expected.history.items():
        assert torch.equal(found.history[name], values), name


@pytest.mark.parametrize("killed", [1, 5])
@pytest.mark.parametrize("name", SOLVERS)
def test_killed_batch_goes_on_to_the_last_bit(glow, truth, y, tmp_path, name, killed):
    options = {"sigma": 0.1, "solver": SOLVERS[name], "iterations": 8}
    whole = Recording(truth.clamp(0, 1), pictures=2, last=8)
    expected = invert(glow, blur, y, observers=[whole], **options)
    checkpoint = Checkpoint(tmp_path / "new" / "state.pt", seconds=0)
    lost = [Recording(truth.clamp(0, 1), pictures=2, last=8), interrupt_at(killed)]
    with pytest.raises(Interrupted):
        invert(glow, blur, y, observers=lost, checkpoint=checkpoint, **options)
    seen, recording = [], Recording(truth.clamp(0, 1), pictures=2, last=8)
    observers = [recording, lambda iteration, run: seen.append(iteration)]
    again = Checkpoint(checkpoint.path, seconds=0)
    found = invert(glow, blur, y, observers=observers, checkpoint=again, **options)
    assert seen == list(range(killed, 9))
    assert_same(found, expected)
    assert recording.iterations == whole.iterations
    assert set(recording.snapshots) == set(whole.snapshots)
    for iteration, images in whole.snapshots.items():
        assert torch.equal(recording.snapshots[iteration], images)
    for name, values in whole.curves.items():
        assert torch.equal(recording.curves[name], values)
    for name, values in whole.diagnostics.items():
        assert torch.equal(recording.diagnostics[name], values)


def test_rows_that_have_ended_stay_so_after_a_kill(glow, y, tmp_path):
    solver = MAP(optimizer="adam", learning_rate=0.2, tolerance=0.01)
    options = {"sigma": 0.1, "solver": solver, "iterations": 100}
    expected = invert(glow, blur, y, **options)
    loss = expected.history["loss"]
    ends = (loss != loss[-1]).sum(0)
    killed = int(ends.min()) + 1
    assert 20 < killed < ends.max() < 100
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    with pytest.raises(Interrupted):
        invert(glow, blur, y, observers=[interrupt_at(killed)], checkpoint=checkpoint, **options)
    assert_same(invert(glow, blur, y, checkpoint=checkpoint, **options), expected)


def test_finished_batch_is_read_and_not_run(glow, y, tmp_path):
    options = {"sigma": 0.1, "iterations": 3}
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    expected = invert(glow, blur, y, checkpoint=checkpoint, **options)
    found = invert(glow, blur, y, checkpoint=checkpoint, observers=[], **options)
    assert_same(found, expected)
    # More iterations continue it.
    longer = invert(glow, blur, y, checkpoint=checkpoint, sigma=0.1, iterations=5)
    assert_same(longer, invert(glow, blur, y, sigma=0.1, iterations=5))
    with pytest.raises(ValueError, match=r"checkpoint .*iteration 5.*iterations=2"):
        invert(glow, blur, y, checkpoint=checkpoint, sigma=0.1, iterations=2)
    checkpoint.remove()
    checkpoint.remove()
    assert not checkpoint.path.exists()


def test_it_is_written_when_its_time_has_come(glow, y, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=25)
    written = []

    def clock(iteration, run):
        written.append(checkpoint.path.exists() and checkpoint.path.stat().st_mtime_ns)
        now[0] += 10

    invert(glow, blur, y, sigma=0.1, iterations=7, observers=[clock], checkpoint=checkpoint)
    # Seconds 30 and 60, after iterations 2 and 5.
    assert [bool(time) for time in written] == [False] * 3 + [True] * 5
    assert len(set(written[3:])) == 2


OTHERS = {
    "solver": {"solver": MAP(beta=0.2)},
    "layers": {"solver": MAP(beta=0.1, reparameterization=Gaussianization.robust())},
    "seed": {"seed": 1},
    "indices": {"indices": [3, 4, 5]},
    "observers": {"observers": [Recording()]},
    "noise": {"sigma": 0.2},
}


@pytest.mark.parametrize("name", [*OTHERS, "data", "fewer data"])
def test_checkpoint_of_something_else_is_refused(glow, y, tmp_path, name):
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    options = {"sigma": 0.1, "solver": MAP(beta=0.1), "iterations": 1, "checkpoint": checkpoint}
    invert(glow, blur, y, **options)
    before = checkpoint.path.read_bytes()
    other = {"data": y + 1e-9, "fewer data": y[:2]}.get(name, y)
    with pytest.raises(ValueError, match=r"^checkpoint .*state.pt") as caught:
        invert(glow, blur, other, **(options | OTHERS.get(name, {})))
    assert "\n" not in str(caught.value)
    assert checkpoint.path.read_bytes() == before


def test_checkpoint_of_another_prior_operator_or_start_is_refused(glow, y, tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    options = {"sigma": 0.1, "iterations": 1, "checkpoint": checkpoint}
    invert(glow, blur, y, start=y.clamp(0, 1), **options)
    other = copy.deepcopy(glow)
    next(other.parameters()).data.add_(1e-6)
    for prior, physics, start in (
        (other, blur, y.clamp(0, 1)),
        (glow, mask, y.clamp(0, 1)),
        (glow, blur, y.clamp(0.1, 1)),
        (glow, blur, None),
    ):
        with pytest.raises(ValueError, match=r"^checkpoint .*state.pt"):
            invert(prior, physics, y, start=start, **options)


DAMAGED = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "text": lambda data: b"state: 1\n",
    "zeros": lambda data: bytes(len(data)),
    "changed": lambda data: data[:200] + bytes(200) + data[400:],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_one_clear_line(glow, y, tmp_path, name):
    path = tmp_path / "state.pt"
    options = {"sigma": 0.1, "iterations": 1, "checkpoint": Checkpoint(path, seconds=0)}
    invert(glow, blur, y, **options)
    path.write_bytes(DAMAGED[name](path.read_bytes()))
    with pytest.raises(ValueError, match=r"^checkpoint .*state.pt") as caught:
        invert(glow, blur, y, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"run": {}}, torch.zeros(3), {"owner": 1}])
def test_file_of_another_program_is_one_clear_line(glow, y, tmp_path, content):
    path = tmp_path / "state.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"^checkpoint .*state.pt") as caught:
        invert(glow, blur, y, sigma=0.1, iterations=1, checkpoint=Checkpoint(path))
    assert "\n" not in str(caught.value)


def test_folder_in_place_of_the_file(glow, y, tmp_path):
    with pytest.raises(ValueError, match=r"^checkpoint"):
        invert(glow, blur, y, sigma=0.1, iterations=1, checkpoint=Checkpoint(tmp_path))


def test_a_solver_with_a_function_is_the_same_in_another_process(glow, y, tmp_path):
    def options():
        @dataclass(frozen=True)
        class WithFunction(GradientDescent):
            function: object = None

        return {"solver": WithFunction(function=lambda x: x), "sigma": 0.1}

    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    invert(glow, blur, y, iterations=2, checkpoint=checkpoint, **options())
    found = invert(glow, blur, y, iterations=3, checkpoint=checkpoint, **options())
    assert torch.equal(found.x, invert(glow, blur, y, iterations=3, **options()).x)


def test_a_path_without_a_suffix(glow, y, tmp_path):
    path = tmp_path / "run"
    options = {"sigma": 0.1, "solver": SOLVERS["lbfgs"], "iterations": 2}
    found = invert(glow, blur, y, checkpoint=Checkpoint(path, seconds=0), **options)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    again = invert(glow, blur, y, checkpoint=Checkpoint(path, seconds=0), **options)
    assert torch.equal(found.x, again.x)
