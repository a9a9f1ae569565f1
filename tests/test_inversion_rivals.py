"""Rivals of the flows: the L1 preset, BM3D, wavelets, plug-and-play, deep image prior."""

import importlib.util
import itertools
import json
from pathlib import Path

import bm3d
import deepinv
import numpy as np
import pytest
import pywt
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from datamodules import LayerModels
from flowprior.identity import identity as described
from flowprior.inversion import (
    BM3D,
    DPS,
    MAP,
    Checkpoint,
    DeepImagePrior,
    PlugAndPlay,
    Reconstructor,
    TotalVariation,
    Wavelet,
    csgm,
    glow_ip,
    invert,
    l1_map,
    make_problem,
)
from flowprior.inversion.proximal import MARGIN, curvature
from flowprior.inversion.wavelet import LOW_PASS, details, inverse, transform
from flowprior.metrics import psnr
from flowprior.physics import SNR, Gaussian, Laplace, denoising, random_gaussian
from flowprior.priors import Module
from tests.inversion_problems import (
    Interrupted,
    blur,
    identity,
    images_of,
    interrupt_at,
    small_glow,
)

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (1, 12, 12)


class Smoother(nn.Module):
    """A denoiser that mixes an image with its blurred version, more so at higher noise levels."""

    def __init__(self, blend=1.0):
        super().__init__()
        self.blend = nn.Parameter(torch.tensor(blend))

    def forward(self, x, sigma):
        share = self.blend * sigma.view(-1, 1, 1, 1)
        return (x + share * blur(x)) / (1 + share)


class Data(nn.Module):
    def forward(self, y, physics):
        return y


SOLVERS = {
    "MAP": MAP(),
    "csgm": csgm(),
    "GlowIP": glow_ip(),
    "l1_map": l1_map(),
    "TotalVariation": TotalVariation(1.0),
    "BM3D": BM3D(),
    "Wavelet": Wavelet(1.0),
    "PlugAndPlay": PlugAndPlay(Smoother(), stages=4),
    "DPS": DPS(Smoother(), stages=5, draws=2, first_level=2.0),
    "DeepImagePrior": DeepImagePrior(channels=4, layers=3),
    "Reconstructor": Reconstructor(Data()),
}
RIVALS = ("BM3D", "Wavelet", "PlugAndPlay", "DPS", "DeepImagePrior")


def steps(size=12, count=33, dtype=torch.float32):
    """Images (count, 1, size, size) of two constant halves and noise."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.full((count, 1, size, size), 0.2, dtype=torch.float64)
    truth[..., size // 2 :] = 0.8
    noise = torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    return truth.to(dtype), (truth + 0.1 * noise).to(dtype)


@pytest.fixture(scope="module")
def glow():
    return small_glow(12).float()


@pytest.mark.parametrize("name", RIVALS)
def test_rows_are_the_same_in_every_batch(name):
    _, y = steps()
    physics = denoising(SHAPE) if name == "BM3D" else blur
    options = {"solver": SOLVERS[name], "iterations": 4, "image_shape": SHAPE}
    options["noise"] = SNR(20.0)  # another level for each image
    alone = torch.cat(
        [invert(None, physics, y[i : i + 1], indices=[i], **options).x for i in range(len(y))]
    )
    for count in (5, 17, 33):
        rows = torch.randperm(33, generator=torch.Generator().manual_seed(count))[:count]
        found = invert(None, physics, y[rows], indices=rows, **options)
        assert torch.equal(found.x, alone[rows])


@pytest.mark.parametrize("name", [*RIVALS, "l1_map"])
def test_killed_run_goes_on_to_the_last_bit(glow, tmp_path, name):
    y = steps(count=3)[1]
    prior = glow if SOLVERS[name].needs else None
    physics = denoising(SHAPE)
    options = {"solver": SOLVERS[name], "iterations": 6, "image_shape": SHAPE, "sigma": 0.1}
    expected = invert(prior, physics, y, **options)
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=0)
    with pytest.raises(Interrupted):
        invert(prior, physics, y, observers=[interrupt_at(4)], checkpoint=checkpoint, **options)
    again = Checkpoint(checkpoint.path, seconds=0)
    found = invert(prior, physics, y, checkpoint=again, **options)
    assert torch.equal(found.x, expected.x)
    for key, values in expected.history.items():
        assert torch.equal(found.history[key], values), key


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "DPS"])
def test_unknown_noise_is_one_line(name):
    with pytest.raises(ValueError, match=f"^{name} needs the noise level"):
        invert(None, denoising(SHAPE), steps()[1], solver=SOLVERS[name], image_shape=SHAPE)


def test_dps_draws_with_an_operator_of_each_image():
    """Several draws of an image meet the operator of that image."""
    kept = (torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    y = kept * steps(count=2)[1]
    options = {"sigma": 0.1, "solver": SOLVERS["DPS"], "iterations": 5, "image_shape": SHAPE}
    found = invert(None, lambda x: x * kept, y, **options)
    for row in range(2):
        alone = {"indices": [row], **options}
        expected = invert(None, lambda x, row=row: x * kept[row], y[row : row + 1], **alone)
        torch.testing.assert_close(found.x[row], expected.x[0])


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: BM3D(0.0), "strength"),
        (lambda: Wavelet(-1.0), "weight"),
        (lambda: Wavelet(1.0, family="db3"), "family"),
        (lambda: Wavelet(1.0, levels=0), "levels"),
        (lambda: PlugAndPlay("dncnn"), "denoiser"),
        (lambda: PlugAndPlay(Smoother(), strength=0), "strength"),
        (lambda: PlugAndPlay(Smoother(), first_level=0), "first_level"),
        (lambda: PlugAndPlay(Smoother(), stages=1), "stages"),
        (lambda: PlugAndPlay(Smoother(), last_level=0.0), "last_level"),
        (lambda: PlugAndPlay(Smoother(), first_level=0.1, last_level=0.2), "last_level"),
        (lambda: PlugAndPlay(Smoother(), weights="nowhere"), "weights"),
        (lambda: DPS("unet"), "denoiser"),
        (lambda: DPS(Smoother(), step_size=-1.0), "step_size"),
        (lambda: DPS(Smoother(), draws=0), "draws"),
        (lambda: DPS(Smoother(), stages=1), "stages"),
        (lambda: DPS(Smoother(), first_level=0.1, last_level=0.2), "last_level"),
        (lambda: DeepImagePrior(learning_rate=0), "learning_rate"),
        (lambda: DeepImagePrior(channels=0), "channels"),
        (lambda: DeepImagePrior(layers=1), "layers"),
        (lambda: l1_map(alpha=-1), "beta"),
        (lambda: MAP(tolerance=2.0), "tolerance"),
    ],
)
def test_wrong_options_are_named(make, option):
    with pytest.raises(ValueError, match=f"^{option}"):
        make()


def test_l1_map_minimises_the_papers_objective():
    flow = small_glow(12)
    truth = images_of(flow, 2)
    y = blur(truth)
    run = l1_map(alpha=0.3).begin(make_problem(flow, blur, y, sigma=0.1))
    z = run.z
    x, log_det = flow.decode(z)
    unit = 2 * flow.to_unit_range(x) - 1
    normal = -0.5 * (z.square() + np.log(2 * np.pi)).flatten(1).sum(1)
    expected = (blur(unit) - (blur(2 * truth - 1))).abs().flatten(1).sum(1)
    expected = expected + 0.3 * (log_det - normal)
    torch.testing.assert_close(run.values["loss"], expected)
    assert 0.05 < z.std() < 0.2


def test_bm3d_takes_the_noise_level_of_each_image():
    y = steps(size=16, count=2)[1]
    y[1] *= 0.5
    physics, options = denoising((1, 16, 16)), {"image_shape": (1, 16, 16), "iterations": 1}
    found = invert(None, physics, y, noise=SNR(20.0), solver=BM3D(2.0), **options)
    for image, recovered in zip(y, found.x, strict=True):
        sigma = 2 * (image.square().mean() / 101).sqrt().item()
        expected = bm3d.bm3d(image[0].numpy(), sigma)
        np.testing.assert_allclose(recovered[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"^noise: BM3D"):
        invert(None, physics, y, noise=Laplace(0.1), solver=BM3D(), **options)


def test_bm3d_refuses_images_that_it_would_crash_on():
    y = torch.rand(1, 1, 8, 32)
    with pytest.raises(ValueError, match="at least 9×9 pixels, got 8×32"):
        invert(None, denoising((1, 8, 32)), y, sigma=0.1, solver=BM3D(), image_shape=(1, 8, 32))


def test_missing_bm3d_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^BM3D needs .*pip install"):
        BM3D().check(None)


def test_bm3d_denoises():
    truth, y = steps(size=32, count=1)
    found = invert(None, denoising((1, 32, 32)), y, sigma=0.1, solver=BM3D(), start=y, iterations=1)
    assert (found.x - truth).square().mean() < 0.2 * (y - truth).square().mean()


@pytest.mark.parametrize("family", LOW_PASS)
def test_wavelets_are_orthonormal_and_blind_to_polynomials(family):
    low_pass = LOW_PASS[family]
    x = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = transform(x, low_pass, 3)
    torch.testing.assert_close(inverse(found, low_pass, 3), x)
    torch.testing.assert_close(found.square().sum(), x.square().sum())
    moments = len(low_pass) // 2
    ramp = torch.linspace(0, 1, 32, dtype=torch.float64) ** (moments - 1)
    seen = details(transform(ramp.expand(1, 1, 32, 32), low_pass, 1), 1)
    inner = seen[..., :16, 16 : 32 - moments]  # the others see the jump from one end to the other
    assert inner.abs().max() < 1e-10


def test_haar_of_one_block():
    found = transform(torch.tensor([[[[1.0, 3.0], [5.0, 11.0]]]]), LOW_PASS["haar"], 1)
    torch.testing.assert_close(found, torch.tensor([[[[10.0, -4.0], [-6.0, 2.0]]]]))


@pytest.mark.parametrize("family", LOW_PASS)
def test_wavelets_agree_with_pywavelets(family):
    """Every subband, up to a circular shift of the periodic image and the sign of its filters."""
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = transform(x[None, None], LOW_PASS[family], 1)[0, 0].numpy()
    mine = [found[:4, :4], found[4:, :4], found[:4, 4:], found[4:, 4:]]
    shifts = list(itertools.product(range(8), range(8)))
    for shift in shifts:
        low, high = pywt.dwt2(x.roll(shift, (0, 1)).numpy(), family, mode="periodization")
        pairs = list(zip(mine, (low, *high), strict=True))
        if all(np.allclose(np.abs(a), np.abs(b), rtol=0, atol=1e-10) for a, b in pairs):
            signs = [np.sign(a * b) for a, b in pairs]
            assert all((sign == sign[0, 0]).all() for sign in signs)
            return
    raise AssertionError("no shift gives the same coefficients")


def test_curvature_is_the_squared_norm_of_the_operator():
    physics = random_gaussian(SHAPE, measurements=20, dtype=torch.float64)
    matrix = physics.A(torch.eye(144, dtype=torch.float64).view(144, *SHAPE))
    expected = torch.linalg.matrix_norm(matrix, 2) ** 2

    def gradient(x):
        return (physics.A(x) @ matrix.T).view_as(x) - 3.0

    at_zero = gradient(torch.zeros(2, *SHAPE, dtype=torch.float64))
    found = curvature(gradient, at_zero)
    assert ((found <= expected * (1 + 1e-9)) & (found * MARGIN > expected)).all()


def test_curvature_finds_one_eigenvalue_among_many():
    """It hardly shows in the first iterations."""
    generator = torch.Generator().manual_seed(1)
    unit = torch.randn(1, 1, 128, 128, generator=generator)
    unit = unit / unit.norm()

    def gradient(x):
        return x + 0.5 * (x * unit).sum((1, 2, 3), keepdim=True) * unit

    found = curvature(gradient, torch.zeros(3, 1, 128, 128))
    torch.testing.assert_close(found, torch.full((3,), 1.5), rtol=0.02, atol=0)


@pytest.mark.parametrize("solver", ["Wavelet", "PlugAndPlay"])
def test_noise_that_is_not_gaussian_is_refused(solver):
    y = steps(count=2)[1]
    with pytest.raises(ValueError, match="Gaussian noise"):
        invert(None, blur, y, noise=Laplace(0.1), solver=SOLVERS[solver], image_shape=SHAPE)


def test_wavelet_converges_to_the_minimiser_that_slow_descent_finds():
    _, y = steps(count=2, dtype=torch.float64)
    weight, low_pass, sigma = 5.0, LOW_PASS["db2"], 0.1
    data = blur(y)
    x, step = torch.full_like(y, 0.5), sigma**2
    for _ in range(1500):
        residual = blur(x) - data
        # Zero padding with its border in the mean makes the blur symmetric.
        coefficients = transform(x - step * blur(residual) / sigma**2, low_pass, 2)
        excess = coefficients.clamp(-weight * step, weight * step)
        x = inverse(coefficients - details(excess, 2), low_pass, 2)
    norm = details(transform(x, low_pass, 2), 2).abs().sum((1, 2, 3))
    loss = (blur(x) - data).square().sum((1, 2, 3)) / (2 * sigma**2) + weight * norm
    solver = Wavelet(weight, family="db2", levels=2)
    found = invert(None, blur, data, sigma=sigma, solver=solver, image_shape=SHAPE, iterations=300)
    torch.testing.assert_close(found.history["loss"][-1], loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-3)


def test_small_weights_fit_the_noise_and_large_ones_smooth():
    truth, y = steps(count=4)
    options = {"sigma": 0.1, "image_shape": SHAPE, "iterations": 30}
    found = {
        weight: invert(None, identity, y, solver=Wavelet(weight, levels=2), **options).x
        for weight in (0.0, 20.0, 1e4)
    }
    torch.testing.assert_close(found[0.0], y)
    error = {weight: (x - truth).square().mean() for weight, x in found.items()}
    assert error[20.0] < 0.5 * error[0.0]
    blocks = found[1e4].unfold(2, 4, 4).unfold(3, 4, 4)
    assert blocks.flatten(-2).std(-1).max() < 1e-3
    assert error[1e4] > error[20.0] / 2


@pytest.mark.parametrize(("sides", "levels"), [((28, 28), 2), ((64, 48), 4), ((6, 12), 1)])
def test_wavelet_takes_as_many_levels_as_there_can_be(sides, levels):
    assert Wavelet(1.0).scales((1, *sides)) == levels


@pytest.mark.parametrize(("levels", "sides"), [(3, (12, 8)), (None, (7, 8))])
def test_wavelet_levels_must_divide_the_sides(levels, sides):
    solver, y = Wavelet(1.0, levels=levels), torch.zeros(1, 1, *sides)
    with pytest.raises(ValueError, match=r"^levels"):
        invert(None, identity, y, sigma=1.0, solver=solver, image_shape=(1, *sides))


def test_plug_and_play_of_no_denoiser_fits_the_data():
    class Nothing(nn.Module):
        def forward(self, x, sigma):
            return x

    _, y = steps(count=2)
    solver = PlugAndPlay(Nothing())
    found = invert(None, identity, y, sigma=0.1, solver=solver, image_shape=SHAPE, iterations=60)
    torch.testing.assert_close(found.x, y, rtol=0, atol=1e-3)


@pytest.mark.parametrize("last_level", [None, 0.2])
def test_stages_of_plug_and_play_are_half_quadratic_splitting(last_level):
    seen = []

    class Watcher(nn.Module):
        def forward(self, x, sigma):
            seen.append(sigma[0].item())
            return blur(x)

    y = 2 * steps(count=1)[1]
    solver = PlugAndPlay(Watcher(), None, 3.0, first_level=0.5, stages=5, last_level=last_level)
    options = {"image_shape": SHAPE, "iterations": 8}
    found = invert(None, lambda x: 2 * x, y, sigma=0.1, solver=solver, **options)
    last = last_level or 0.1 / 2 / MARGIN**0.5
    levels = torch.logspace(np.log10(0.5), np.log10(last), 5).tolist()
    assert seen[-5:] == pytest.approx(levels)
    x = torch.full_like(y, 0.5)
    for level in levels:
        weight = 3.0 / level**2
        x = blur((2 * y / 0.1**2 + weight * x) / (4 / 0.1**2 + weight))
    torch.testing.assert_close(found.x, x)
    misfit = found.history["misfit"]
    assert misfit[4] != misfit[5]
    assert (misfit[5:] == misfit[5]).all()


def test_data_step_solves_its_least_squares_problem():
    physics = random_gaussian(SHAPE, measurements=6, dtype=torch.float64)
    matrix = physics.A(torch.eye(144, dtype=torch.float64).view(144, *SHAPE)).T
    x = steps(count=2, dtype=torch.float64)[1]
    y = physics.A(0.5 * x)
    run = SOLVERS["Wavelet"].begin(make_problem(None, physics, y, sigma=0.1, image_shape=SHAPE))
    weight = torch.tensor([2.0, 50.0], dtype=torch.float64).view(-1, 1, 1, 1)
    found = run.fitted(x, weight)
    for row in range(2):
        normal = matrix.T @ matrix / 0.01 + weight[row, 0, 0, 0] * torch.eye(144)
        right = matrix.T @ y[row] / 0.01 + weight[row, 0, 0, 0] * x[row].flatten()
        torch.testing.assert_close(found[row].flatten(), torch.linalg.solve(normal, right))


@pytest.mark.parametrize(
    "make",
    [
        lambda: deepinv.models.DRUNet(1, 1, nc=(4, 4, 4, 4), nb=1, pretrained=None),
        lambda: deepinv.models.DnCNN(1, 1, depth=3, nf=4, pretrained=None),
    ],
)
def test_denoisers_of_deepinv_with_weights_of_a_file(tmp_path, make):
    torch.manual_seed(0)
    trained, other = make(), make()
    before = [parameter.clone() for parameter in other.parameters()]
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    y = steps(count=2)[1]
    options = {"sigma": 0.1, "image_shape": SHAPE, "iterations": 2}
    weights = str(tmp_path / "model.safetensors")
    found = invert(None, blur, y, solver=PlugAndPlay(other, weights), **options)
    expected = invert(None, blur, y, solver=PlugAndPlay(trained), **options)
    assert torch.equal(found.x, expected.x)
    assert all(torch.equal(p, b) for p, b in zip(other.parameters(), before, strict=True))
    # What the network had before its weights were read tells no evaluation from another.
    solvers = [PlugAndPlay(network, weights) for network in (other, make())]
    assert described(solvers[0]) == described(solvers[1]) != described(PlugAndPlay(make()))
    with pytest.raises(ValueError, match=r"^weights="):
        PlugAndPlay(Smoother(), weights)


@pytest.mark.parametrize("result", [lambda x: x[..., :4], lambda x: x @ torch.ones(3, 3), id])
def test_denoiser_of_other_images_is_refused(result):
    class Wrong(nn.Module):
        def forward(self, x, sigma):
            return result(x)

    with pytest.raises(ValueError, match=r"^denoiser: Wrong"):
        invert(None, blur, steps()[1], sigma=0.1, solver=PlugAndPlay(Wrong()), image_shape=SHAPE)


def test_deep_image_prior_starts_from_seeds_and_fits():
    _, y = steps(count=1)
    y = y.expand(2, *SHAPE)
    options = {"sigma": 0.1, "solver": SOLVERS["DeepImagePrior"], "image_shape": SHAPE}
    first = invert(None, identity, y, iterations=0, **options)
    assert not torch.equal(first.x[0], first.x[1])
    other = invert(None, identity, y, iterations=0, seed=1, **options)
    assert not torch.equal(first.x, other.x)
    state = torch.random.get_rng_state()
    found = invert(None, identity, y, iterations=150, **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    misfit = found.history["misfit"]
    assert misfit.shape == (151, 2)
    assert (misfit[-1] < 0.1 * misfit[0]).all()


def test_deep_image_prior_takes_the_steps_of_adam():
    _, y = steps(count=1)
    solver = SOLVERS["DeepImagePrior"]
    run = solver.begin(make_problem(None, blur, y, sigma=0.1, image_shape=SHAPE))
    network, z = run.fits[0].network, run.fits[0].z
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (((blur(network(z)) - y) / 0.1).square().sum() / 2).backward()
        optimizer.step()
    expected = network(z)
    again = solver.begin(make_problem(None, blur, y, sigma=0.1, image_shape=SHAPE))
    again.step()
    again.step()
    torch.testing.assert_close(again.x, expected)


class OfNormalImages(nn.Module):
    """The best denoiser of images whose pixels are N(mean, deviation²), independent."""

    mean, deviation = 0.3, 0.2

    def forward(self, x, sigma):
        share = self.deviation**2 / (self.deviation**2 + sigma.view(-1, 1, 1, 1) ** 2)
        return self.mean + share * (x - self.mean)


def test_dps_far_from_the_data_draws_from_the_prior():
    solver = DPS(OfNormalImages(), step_size=1e-12, draws=500, stages=800)
    problem = make_problem(None, blur, steps(4, 1)[1], image_shape=(1, 4, 4))
    run = solver.begin(problem)
    while run.active.any():
        run.step()
    assert run.noisy.mean().item() == pytest.approx(0.3, abs=0.004)
    assert run.noisy.std().item() == pytest.approx(0.2, rel=0.02)


def test_dps_is_the_published_algorithm():
    """Algorithm 1 of Chung et al. as it stands there, for mixed noise and images in [-1, 1]."""
    y = steps(count=2, dtype=torch.float64)[1]
    solver = DPS(OfNormalImages().double(), step_size=0.1, stages=6, first_level=3.0)
    run = solver.begin(make_problem(None, blur, y, image_shape=SHAPE))
    signal = [1 / (1 + 4 * level**2) for level in solver.levels]
    x = signal[0] ** 0.5 * (2 * run.noisy[:, 0] - 1)
    for k, level in enumerate(solver.levels[:-1]):
        x = x.requires_grad_()
        noisy = (x / signal[k] ** 0.5 + 1) / 2
        clean = 2 * solver.denoiser(noisy, noisy.new_full((2,), level)) - 1
        distance = (blur((clean + 1) / 2) - y).flatten(1).norm(dim=1)
        pull = torch.autograd.grad(distance.sum(), x)[0]
        alpha = signal[k] / signal[k + 1]
        mean = (
            alpha**0.5 * (1 - signal[k + 1]) * x + signal[k + 1] ** 0.5 * (1 - alpha) * clean
        ) / (1 - signal[k])
        deviation = ((1 - alpha) * (1 - signal[k + 1]) / (1 - signal[k])) ** 0.5
        run.done += 1
        noise = run._noise()[:, 0]
        run.done -= 1
        x = (mean + deviation * noise - 0.4 * pull).detach()
        run.step()
        found = signal[k + 1] ** 0.5 * (2 * run.noisy[:, 0] - 1)
        torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)
    assert not run.active.any()


def test_dps_recovers_a_clean_image_of_the_prior():
    generator = torch.Generator().manual_seed(4)
    truth = 0.3 + 0.2 * torch.randn(3, *SHAPE, generator=generator)
    solver = DPS(OfNormalImages(), step_size=0.5, stages=200)
    found = invert(None, identity, truth, solver=solver, iterations=200, image_shape=SHAPE)
    assert (found.x - truth).square().mean().sqrt() < 0.02


def test_solvers_that_need_no_prior_take_one():
    y = steps(count=1)[1]
    prior = Module(nn.Sequential(nn.Unflatten(1, SHAPE)), SHAPE, [64]).eval()
    found = invert(prior, blur, y, sigma=0.1, solver=Wavelet(1.0), iterations=2)
    assert found.z is None


@pytest.fixture
def training(monkeypatch):
    """The script that trains a denoiser; it saves after each step."""
    path = ROOT / "docs" / "train_denoiser.py"
    spec = importlib.util.spec_from_file_location("train_denoiser", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    return module


@pytest.mark.parametrize("kind", ["denoiser", "diffusion"])
def test_training_of_a_denoiser_resumes(training, tmp_path, monkeypatch, kind):
    recipe = training.RECIPES[kind]
    data = LayerModels(image_size=28, num_train=8, num_val=4, data_range=(0.0, 1.0))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    training.train(recipe, data, whole, 3)
    noisy = training.noisy

    def stops(recipe, step, images):
        if step == 2:
            raise Interrupted
        return noisy(recipe, step, images)

    monkeypatch.setattr(training, "noisy", stops)
    with pytest.raises(Interrupted):
        training.train(recipe, data, killed, 3)
    monkeypatch.setattr(training, "noisy", noisy)
    training.train(recipe, data, killed, 3)
    expected, found = (load_file(f / "model.safetensors") for f in (whole, killed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shipped_denoiser_removes_noise():
    folder = ROOT / "weights" / "denoiser_mnist"
    network = deepinv.models.DRUNet(**json.loads((folder / "card.json").read_text())["init_args"])
    truth = torch.zeros(1, 1, 28, 28)
    truth[..., 6:22, 12:16] = 1  # a digit
    y = Gaussian(0.2).add(truth, seed=0, indices=[0])
    solver = PlugAndPlay(network, str(folder / "model.safetensors"))
    found = invert(None, denoising((1, 28, 28)), y, sigma=0.2, solver=solver, start=y)
    assert psnr(found.x.clamp(0, 1), truth) > psnr(y.clamp(0, 1), truth) + 7
