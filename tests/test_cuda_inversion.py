"""Operators, noise, solvers, observers and checkpoints on a GPU: as on the CPU."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flowprior.gaussianization import Gaussianization
from flowprior.gaussianization.matrix_functions import inverse_sqrt
from flowprior.inversion import (
    BM3D,
    DPS,
    MAP,
    BatchedLBFGS,
    Checkpoint,
    DeepImagePrior,
    Discrepancy,
    PlugAndPlay,
    Progress,
    Reconstructor,
    Recording,
    Restarts,
    TotalVariation,
    Wavelet,
    csgm,
    cuda_graphs,
    glow_ip,
    invert,
    l1_map,
    project_to_latents,
    smoothed,
)
from flowprior.inversion.cuda_graphs import Graphed, _Graph, no_cuda_graphs
from flowprior.physics import SNR, BandLimited, Contaminated, Gaussian, Laplace, Poisson, Relative
from flowprior.physics.noise import standard_normal
from tests.gpu import DEVICE, agree, moved, on_gpu, uniform
from tests.inversion_problems import (
    Interrupted,
    blur,
    identity,
    images_of,
    interrupt_at,
    small_decoder,
    small_glow,
)

pytestmark = on_gpu

ITERATIONS = 5
SIGMA = 0.1


class Smoother(nn.Module):
    """A denoiser that mixes an image with its blurred version, more so at higher noise levels."""

    def __init__(self):
        super().__init__()
        self.blend = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, sigma):
        share = self.blend * sigma.view(-1, 1, 1, 1)
        return (x + share * blur(x)) / (1 + share)


class Doubling(nn.Module):
    def forward(self, y, physics):
        return 2 * y + 0.1 * torch.randn(y.shape, dtype=y.dtype).to(y)


LAYERS = Gaussianization(4, rotation="none")
OF_PRIOR = {
    "L-BFGS": MAP(beta=0.1),
    "Adam": MAP(beta=0.1, optimizer="adam", tolerance=1e-4),
    "image density": MAP(beta=0.1, penalty="log_density"),
    "layers": MAP(beta=0.1, reparameterization=LAYERS),
    "CSGM": csgm(),
    "GlowIP": glow_ip(),
    "L1 MAP": l1_map(),
    "restarts": Restarts(MAP(beta=0.1), 3),
    "restarts of Adam": Restarts(csgm(), 2),
    "discrepancy": Discrepancy(MAP(beta=10.0), stage=2),
    "discrepancy of Adam": Discrepancy(MAP(beta=10.0, optimizer="adam"), stage=2),
}
OF_IMAGES = {
    "total variation": TotalVariation(1.0),
    "total variation by L-BFGS": TotalVariation(1.0, misfit=Laplace(SIGMA)),
    "wavelets": Wavelet(1.0),
    "plug and play": PlugAndPlay(Smoother()),
    "DPS": DPS(Smoother(), draws=2, stages=ITERATIONS, first_level=2.0),
    "deep image prior": DeepImagePrior(channels=8, layers=3),
    "reconstructor": Reconstructor(Doubling()),
}
SOLVERS = {**OF_PRIOR, **OF_IMAGES}


@pytest.fixture(scope="module")
def glow():
    return small_glow()


@pytest.fixture(scope="module")
def truth(glow):
    return images_of(glow, 5)


@pytest.fixture(scope="module")
def y(truth):
    return Gaussian(SIGMA).add(blur(truth), seed=0, indices=range(5))


def both(prior, physics, y, **options):
    """Estimates of the device and of the CPU."""
    expected = invert(prior, physics, y, **options)
    there = {k: v.to(DEVICE) if torch.is_tensor(v) else v for k, v in options.items()}
    prior = None if prior is None else moved(prior)
    physics = moved(physics) if isinstance(physics, nn.Module) else physics
    return invert(prior, physics, y.to(DEVICE), **there), expected


def agree_as_estimates(found, expected, atol=1e-5):
    agree(found.x, expected.x, atol)
    agree(found.finite, expected.finite, 0)
    agree(found.residual, expected.residual, atol)
    agree(found.history, expected.history, atol=1e-3, rtol=1e-5)
    assert (found.z is None) == (expected.z is None)
    if found.z is not None:
        agree(found.z, expected.z, 10 * atol)


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_gives_the_images_of_the_cpu(glow, y, name):
    prior = glow if name in OF_PRIOR else None
    options = {"solver": SOLVERS[name], "sigma": SIGMA, "iterations": ITERATIONS}
    found, expected = both(prior, blur, y, image_shape=(1, 16, 16), seed=3, **options)
    assert torch.isfinite(expected.x).all()
    # The networks of a deep image prior are float32 where deepinv makes buffers of its own.
    agree_as_estimates(found, expected, 1e-3 if name == "deep image prior" else 1e-5)


@pytest.fixture
def replays(monkeypatch):
    """Numbers of rows of all replays of CUDA graphs."""
    monkeypatch.setattr(cuda_graphs, "REPEATS", 2)
    sizes, replay = [], _Graph.replay

    def counted(graph, tensors):
        sizes.append(len(tensors[0]))
        return replay(graph, tensors)

    monkeypatch.setattr(_Graph, "replay", counted)
    return sizes


only_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs are CUDA's")
REPLAYED = ["L-BFGS", "Adam", "image density", "CSGM", "L1 MAP", "restarts of Adam", "discrepancy"]


@only_cuda
@pytest.mark.parametrize("name", [*REPLAYED, "layers", "total variation by L-BFGS"])
def test_replays_give_what_calls_give(glow, y, name, replays):
    prior = moved(glow) if name in OF_PRIOR else None
    options = {"solver": SOLVERS[name], "sigma": SIGMA, "iterations": 12, "seed": 3}
    options["image_shape"] = (1, 16, 16)
    found = invert(prior, blur, y.to(DEVICE), **options)
    assert len(replays) > 8
    with no_cuda_graphs():
        expected = invert(prior, blur, y.to(DEVICE), **options)
    torch.testing.assert_close(found.x, expected.x, atol=1e-6, rtol=0)
    for value, other in zip(found.history.values(), expected.history.values(), strict=True):
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-6)
    assert found.calls.forward.tolist() == expected.calls.forward.tolist()
    assert found.calls.adjoint.tolist() == expected.calls.adjoint.tolist()


@only_cuda
def test_graphs_of_former_inversions_do_not_spoil_new_ones(glow, y, replays):
    prior, counts = moved(glow), []
    for _ in range(4):
        invert(prior, blur, y.to(DEVICE), solver=MAP(beta=0.1), sigma=SIGMA, iterations=8)
        counts.append(len(replays))
    assert min(counts[0], *(b - a for a, b in itertools.pairwise(counts))) > 4


@only_cuda
@pytest.mark.parametrize("rows", [1, 5, 17, 33])
def test_replay_of_some_rows(rows, replays):
    def function(x, numbers):
        for _ in range(200):
            x = x + 1
        return x, {"number": 2 * numbers}

    graphed, x = Graphed(33), uniform(33, 7).to(DEVICE)
    for count in (33, 33, 33, rows, rows, rows, rows):
        numbers = torch.arange(count, device=DEVICE)
        found, named = graphed(function, x[:count], numbers)
        torch.testing.assert_close(found, x[:count] + 200)
        assert named["number"].tolist() == list(range(0, 2 * count, 2))
    assert len(replays) >= 3


@only_cuda
def test_what_waits_for_the_gpu_is_called(replays):
    def waits(x):
        return x * float(x.sum() > -1)

    def fails(x):  # only while it is recorded
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return 2 * x

    x = torch.ones(4, 3, device=DEVICE)
    for function, factor in ((waits, 1), (fails, 2)):
        graphed = Graphed(4)
        for _ in range(6):
            torch.testing.assert_close(graphed(function, x), factor * x)
    assert not replays
    torch.cuda.empty_cache()
    assert (x @ x.T).sum().item() == 48
    graphed = Graphed(4)  # and others are still recorded
    for _ in range(6):
        torch.testing.assert_close(graphed(torch.exp, x), x.exp())
    assert torch.randn(1000, device=DEVICE).std() > 0.5


@only_cuda
def test_masks_of_each_image_under_graphs(glow, truth, replays):
    prior, masks = moved(glow), (uniform(5, 1, 16, 16) > 0.3).to(DEVICE)
    y = masks * truth.to(DEVICE)
    options = {"solver": MAP(beta=0.1), "sigma": SIGMA, "iterations": 12}
    found = invert(prior, lambda x: x * masks, y, **options)
    assert replays
    with no_cuda_graphs():
        expected = invert(prior, lambda x: x * masks, y, **options)
    torch.testing.assert_close(found.x, expected.x, atol=1e-6, rtol=0)


def test_inverse_square_root_and_its_gradient():
    draws = uniform(5, 16, 20, dtype=torch.float64)
    matrix, made = draws @ draws.mT + 1e-3 * torch.eye(16), []
    for device in ("cpu", DEVICE):
        leaf = matrix.to(device).requires_grad_()
        root = inverse_sqrt(leaf)
        made.append([root, *torch.autograd.grad(root.square().sum(), leaf)])
    agree(made[1], made[0], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", ["L-BFGS", "layers", "total variation", "plug and play"])
def test_solver_in_float32(glow, y, name):
    prior = moved(glow).float().cpu() if name in OF_PRIOR else None
    options = {"solver": SOLVERS[name], "sigma": SIGMA, "iterations": 3}
    found, expected = both(prior, blur, y.float(), image_shape=(1, 16, 16), **options)
    agree(found.x, expected.x, 2e-2)


def test_shipped_denoiser():
    from deepinv.models import DRUNet

    folder = Path(__file__).resolve().parent.parent / "weights" / "denoiser_mnist"
    network = DRUNet(**json.loads((folder / "card.json").read_text())["init_args"])
    solver = PlugAndPlay(network, str(folder / "model.safetensors"), stages=3)
    y = uniform(2, 1, 28, 28)
    options = {"solver": solver, "sigma": SIGMA, "iterations": 3, "image_shape": (1, 28, 28)}
    found, expected = both(None, blur, y, **options)
    agree(found.x, expected.x, 5e-3)


def test_bm3d(y):
    pytest.importorskip("bm3d")
    options = {"solver": BM3D(), "sigma": SIGMA, "iterations": 1, "start": y}
    found, expected = both(None, identity, y, **options)
    agree(found.x, expected.x, 1e-6)


@pytest.mark.parametrize("name", ["L-BFGS", "restarts", "total variation"])
def test_given_start(glow, truth, y, name):
    if name == "restarts":
        start = {"latents": uniform(15, 256, dtype=torch.float64)}
    else:
        start = {"start": smoothed(truth, 2.0).clamp(0, 1)}
        agree(smoothed(truth.to(DEVICE), 2.0), smoothed(truth, 2.0), 1e-12)
    prior = glow if name in OF_PRIOR else None
    options = {"solver": SOLVERS[name], "sigma": SIGMA, "iterations": 3, **start}
    agree_as_estimates(*both(prior, blur, y, **options))


def test_decoder_and_projection(glow, truth):
    decoder = small_decoder()
    y = images_of(decoder, 3)
    agree_as_estimates(*both(decoder, identity, y, sigma=SIGMA, iterations=4))
    expected = project_to_latents(glow, truth, iterations=3)
    agree(project_to_latents(moved(glow), truth.to(DEVICE), iterations=3), expected, 1e-5)


def test_data_elsewhere_are_named(glow, y):
    if DEVICE == "cpu":
        pytest.skip("there is one device only")
    with pytest.raises(ValueError, match="y is on cpu but the prior is on cuda"):
        invert(moved(glow), blur, y, sigma=SIGMA)


def test_batch_changes_little(glow, y):
    there, options = y.to(DEVICE), {"solver": MAP(beta=0.1), "sigma": SIGMA, "iterations": 4}
    whole = invert(moved(glow), blur, there, **options).x
    for row in (0, 4):
        alone = invert(moved(glow), blur, there[row : row + 1], indices=[row], **options).x
        torch.testing.assert_close(alone[0], whole[row], atol=1e-6, rtol=0)


def test_batched_lbfgs_finds_the_minimum_of_every_row():
    scale = torch.linspace(1, 100, 8, dtype=torch.float64, device=DEVICE)
    goal = torch.arange(3.0, dtype=torch.float64, device=DEVICE)[:, None].expand(3, 8)
    x = nn.Parameter(torch.zeros(3, 8, dtype=torch.float64, device=DEVICE))
    optimizer = BatchedLBFGS([x])

    def closure(rows):
        losses = (scale * (x[rows] - goal[rows]).square()).sum(1)
        losses.sum().backward()
        return losses

    for _ in range(100):
        optimizer.step(closure)
    assert not optimizer.active.any()
    torch.testing.assert_close(x.detach(), goal, atol=1e-6, rtol=0)
    again = BatchedLBFGS([x])
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.status, optimizer.status)


@pytest.mark.parametrize(
    "name",
    ["L-BFGS", "Adam", "layers", "restarts", "discrepancy", *OF_IMAGES],
)
def test_killed_run_resumes(glow, truth, y, tmp_path, name):
    prior = moved(glow) if name in OF_PRIOR else None
    options = {"sigma": SIGMA, "solver": SOLVERS[name], "iterations": ITERATIONS}
    options |= {"image_shape": (1, 16, 16)}
    there, clean = y.to(DEVICE), truth.clamp(0, 1).to(DEVICE)
    torch.manual_seed(0)
    whole = Recording(clean, pictures=2)
    expected = invert(prior, blur, there, observers=[whole], **options)
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    lost = [Recording(clean, pictures=2), interrupt_at(3)]
    with pytest.raises(Interrupted):
        invert(prior, blur, there, observers=lost, checkpoint=checkpoint, **options)
    recording, seen = Recording(clean, pictures=2), []
    observers = [recording, lambda iteration, run: seen.append(iteration)]
    found = invert(prior, blur, there, observers=observers, checkpoint=checkpoint, **options)
    assert seen == [3, 4, 5]
    assert found.x.device.type == DEVICE
    torch.testing.assert_close(found.x, expected.x, atol=1e-6, rtol=0)
    assert recording.iterations == whole.iterations
    for curve, values in whole.curves.items():
        torch.testing.assert_close(recording.curves[curve], values, atol=1e-4, rtol=1e-4)


def test_checkpoint_of_the_gpu_continues_on_the_cpu(glow, y, tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    options = {"sigma": SIGMA, "checkpoint": checkpoint}
    invert(moved(glow), blur, y.to(DEVICE), iterations=2, **options)
    found = invert(glow, blur, y, iterations=4, **options)
    expected = invert(glow, blur, y, iterations=4, sigma=SIGMA)
    torch.testing.assert_close(found.x, expected.x, atol=1e-5, rtol=0)


def test_progress(glow, y, capsys):
    there = y.to(DEVICE)
    invert(moved(glow), blur, there, sigma=SIGMA, iterations=3, observers=[Progress(3)])
    assert "Error" not in capsys.readouterr().err


NOISES = {
    "Gaussian": Gaussian(0.1),
    "Relative": Relative(0.1),
    "SNR": SNR(20.0),
    "Laplace": Laplace(0.1),
    "Poisson": Poisson(50.0),
    "Contaminated": Contaminated(0.1),
    "BandLimited": BandLimited(0.1, 10.0, 0.02),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NOISES)
def test_noise_is_that_of_the_cpu(name, dtype):
    noise, clean = NOISES[name], uniform(4, 1, 8, 8, dtype=dtype) + 0.1
    indices = torch.tensor([3, 1, 7, 0])
    expected = noise.add(clean, seed=2, indices=indices)
    found = noise.add(clean.to(DEVICE), seed=2, indices=indices.to(DEVICE))
    agree(found, expected, 1e-6)
    pair = clean.to(DEVICE), expected.to(DEVICE)
    for method in ("misfit", "standardised", "residual"):
        agree(getattr(noise, method)(*pair), getattr(noise, method)(clean, expected), 1e-4, 1e-5)


def test_normal_draws_are_equal_to_the_last_bit():
    like = torch.zeros(3, 50)
    found = standard_normal(like.to(DEVICE), 1, [5, 2, 9]).cpu()
    assert torch.equal(found, standard_normal(like, 1, [5, 2, 9]))


SMALL = {"gaussian_blur": {"tau": 1.0}, "random_gaussian": {"measurements": 20}}
SMALL |= {"phase_retrieval": {"measurements": 20}, "crosshole_tomography": {"sources": 3}}
SMALL |= {key: {"sources": 2, "duration": 0.15} for key in ("linearized_born", "full_waveform")}
NAMES = [
    *("denoising", "gaussian_blur", "mean_blur", "box_inpainting", "random_inpainting"),
    *("super_resolution", "colourisation", "random_gaussian", "phase_retrieval"),
    *("cartesian_mri", "limited_angle_ct", "crosshole_tomography"),
    *("linearized_born", "full_waveform"),
]


@pytest.mark.parametrize("name", NAMES)
def test_operator_is_that_of_the_cpu(name):
    from flowprior.physics import make_operator

    shape = (3 if name == "colourisation" else 1, 16, 16)
    physics = make_operator(name, shape, **SMALL.get(name, {}))
    x, found = uniform(3, *shape), []
    for device in ("cpu", DEVICE):
        operator, image = physics.to(device), x.to(device).requires_grad_()
        y = operator.A(image)
        (gradient,) = torch.autograd.grad(y.square().sum(), image)
        found.append([y, gradient])
        if hasattr(operator, "A_adjoint") and name not in ("phase_retrieval",):
            linear = name not in ("crosshole_tomography", "full_waveform")
            found[-1] += [operator.A_adjoint(y.detach())] if linear else []
    scale = max(1.0, found[0][1].abs().max().item())
    agree(found[1], found[0], 1e-4 * scale, rtol=1e-4)


def test_every_operator_is_tested():
    from flowprior.physics import OPERATORS

    assert set(NAMES) == set(OPERATORS)


def test_eikonal_times_and_gradient():
    from flowprior.physics import crosshole

    physics = crosshole((1, 24, 24), sources=4, refine=2)
    x, found = uniform(3, 1, 24, 24, dtype=torch.float64), []
    for device in ("cpu", DEVICE):
        model = x.to(device).requires_grad_()
        times = physics.to(device).A(model)
        found.append((times, torch.autograd.grad(times.square().sum(), model)[0]))
    agree(found[1], found[0], 1e-12)
