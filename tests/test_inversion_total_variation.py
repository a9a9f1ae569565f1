"""Total variation, runs over images, starts and recordings of inversions."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.restoration import denoise_tv_chambolle
from torch import nn

from flowprior.gaussianization import Gaussianization
from flowprior.inversion import (
    MAP,
    ImageRun,
    Recording,
    Solver,
    TotalVariation,
    invert,
    make_problem,
    project_to_latents,
    smoothed,
)
from flowprior.inversion.descent import LBFGSRun
from flowprior.inversion.solving import advance
from flowprior.inversion.total_variation import (
    VariationRun,
    VariationTerms,
    adjoint_differences,
    differences,
    total_variation,
)
from flowprior.metrics import psnr, ssim, typicality
from flowprior.physics import Gaussian, Laplace, Poisson, Relative, make_operator
from flowprior.priors import Module
from tests.inversion_problems import SIZE, blur, identity, images_of, small_decoder, small_glow

SOLVER = TotalVariation(1.0)


@pytest.fixture(scope="module")
def truth():
    x = torch.full((3, 1, SIZE, SIZE), 0.2, dtype=torch.float64)
    x[0, :, 4:10, 3:12] = 0.8
    x[1, :, :, 8:] = 0.6
    x[2, :, 5:, :] = 0.9
    return x


@pytest.fixture(scope="module")
def prior():
    return small_glow()


def test_total_variation_of_known_images(truth):
    # Perimeters × steps; two corners of the box have both differences in one pixel's length.
    expected = [0.6 * (6 + 6 + 9 + 9 - 2 + 2**0.5), 0.4 * SIZE, 0.7 * SIZE]
    found = total_variation(truth, smoothing=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_total_variation_gradient():
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total_variation, x)


def test_adjoint_of_the_differences():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    p = differences(torch.randn(2, 3, 5, 4, dtype=torch.float64))
    torch.testing.assert_close((differences(x) * p).sum(), (x * adjoint_differences(p)).sum())


def test_denoising_is_that_of_scikit_image(truth):
    """Chambolle's algorithm there minimises ½‖x − y‖² + weight·TV(x) without a box."""
    y = (0.25 + 0.5 * truth) + 0.05 * torch.randn(
        truth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    solver = TotalVariation(0.1 / 0.2**2)
    found = invert(None, identity, y, sigma=0.2, solver=solver, start=y, iterations=100)
    for mine, noisy in zip(found.x, y, strict=True):
        expected = denoise_tv_chambolle(noisy[0].numpy(), 0.1, eps=1e-12, max_num_iter=5000)
        np.testing.assert_allclose(mine[0], expected, atol=1e-3)


@pytest.mark.parametrize("weight", [0.5, 5.0])
def test_both_algorithms_find_the_same_minimum(truth, weight):
    """FISTA, where the misfit is quadratic, and L-BFGS with little smoothing."""
    y = Gaussian(0.1).add(blur(truth), seed=0, indices=range(3))
    exact, smooth = TotalVariation(weight), TotalVariation(weight, smoothing=1e-5)
    problem = make_problem(None, blur, y, sigma=0.1, start=y.clamp(0, 1))
    run = exact.begin(problem)
    assert isinstance(run, VariationRun)
    advance(run, 200)
    v = torch.nn.Parameter(run.x.clamp(1e-6, 1 - 1e-6).logit().flatten(1))
    other = LBFGSRun(VariationTerms(smooth, problem), v)
    assert (other.values["loss"] - run.values["loss"]).abs().max() < 0.02
    advance(other, 200)
    assert (other.values["loss"] > run.values["loss"] - 0.02).all()


def test_images_stay_in_the_box(truth):
    y = 3 * truth - 1
    found = invert(None, blur, y, sigma=0.1, solver=SOLVER, start=truth)
    assert found.x.min() == 0
    assert found.x.max() == 1


def test_noise_is_taken_out_within_the_box(truth):
    y = Gaussian(0.1).add(truth, seed=0, indices=range(3))
    options = {"sigma": 0.1, "solver": TotalVariation(6.0)}
    found = invert(None, identity, y, start=y, **options)
    assert found.z is None
    assert ((found.x > 0) & (found.x < 1)).all()
    assert (psnr(found.x, truth) > psnr(y, truth) + 6).all()
    alone = invert(None, identity, y[1:2], start=y[1:2], **options)
    torch.testing.assert_close(alone.x[0], found.x[1], rtol=0, atol=1e-9)
    grey = invert(None, identity, y, image_shape=(1, SIZE, SIZE), **options)
    assert (psnr(grey.x, truth) > psnr(y, truth) + 6).all()


def test_without_weight_the_data_are_fitted(truth):
    found = invert(
        None, identity, truth, sigma=1.0, start=truth, solver=TotalVariation(0.0), iterations=60
    )
    assert (found.x - truth).abs().max() < 1e-4


def test_loss_is_misfit_and_weighted_variation(truth):
    solver = TotalVariation(2.0, misfit=Laplace(0.5), smoothing=0.01)
    y = torch.zeros_like(truth)
    found = invert(None, identity, y, start=truth, solver=solver, iterations=0)
    assert found.residual is None
    misfit = truth.sum((1, 2, 3)) / 0.5
    torch.testing.assert_close(found.history["misfit"][0], misfit)
    expected = misfit + 2 * total_variation(truth, 0.01)
    torch.testing.assert_close(found.history["loss"][0], expected)


def test_complex_data(truth):
    def fourier(x):
        return torch.fft.fft2(x, norm="ortho")

    found = invert(
        None, fourier, fourier(truth), sigma=0.05, image_shape=(1, SIZE, SIZE), solver=SOLVER
    )
    assert found.x.dtype == torch.float64
    assert (psnr(found.x, truth) > 30).all()


def test_travel_times_with_total_variation(truth):
    truth = truth[[0, 2]]  # no ray sees that the other one changes from left to right
    physics = make_operator("crosshole_tomography", (1, SIZE, SIZE), sources=8)
    y = Relative(0.001).add(physics.A(truth), seed=0, indices=range(2))
    start = smoothed(truth, 2.0)
    solver = TotalVariation(1.0, misfit=Gaussian(1e-3))
    found = invert(
        None, physics, y, noise=Relative(0.001), start=start, solver=solver, iterations=60
    )
    assert (psnr(found.x, truth) > psnr(start, truth) + 1).all()


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"start": torch.zeros(2, 1, SIZE, SIZE)}, "^start"),
        ({"y": torch.zeros(3, 1, 8, 8)}, "^y must"),
        ({"physics": torch.detach}, "^physics"),
        ({"sigma": None}, "TotalVariation needs the noise level"),
    ],
)
def test_wrong_use_is_named(truth, change, option):
    given = {"physics": identity, "y": truth, "start": truth, "sigma": 1.0, "solver": SOLVER}
    with pytest.raises(ValueError, match=option):
        invert(None, **(given | change))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"weight": "1"}, "weight"),
        ({"weight": 1.0, "smoothing": 0.0}, "smoothing"),
        ({"weight": 1.0, "misfit": "l1"}, "misfit"),
    ],
)
def test_wrong_options_are_named(options, option):
    with pytest.raises(ValueError, match=f"^{option}"):
        TotalVariation(**options)


class Steps(ImageRun):
    """Two steps along the gradient; then one row is NaN."""

    def __init__(self, problem):
        super().__init__(problem)
        self.steps = 0

    def step(self):
        self.x = self.x - 0.1 * self.misfit_gradient(self.x)
        self.steps += 1
        if self.steps > 2:
            self.x[1] = torch.nan
        self.measure()


class Stepping(Solver):
    def begin(self, problem):
        return Steps(problem)


def test_run_over_images_of_the_user_s_own(truth):
    options = {"sigma": 1.0, "solver": Stepping(), "start": truth.flip(3)}
    sound = invert(None, identity, truth, iterations=2, **options)
    expected = truth + 0.9**2 * (truth.flip(3) - truth)
    torch.testing.assert_close(sound.x, expected)
    assert sound.finite.all()
    found = invert(None, identity, truth, iterations=4, **options)
    assert found.finite.tolist() == [True, False, True]
    assert torch.equal(found.x[1], sound.x[1])
    assert found.history["misfit"].isfinite().all()
    torch.testing.assert_close(found.x[0], truth[0] + 0.9**4 * (truth.flip(3) - truth)[0])


def test_smoothed_is_scipys(truth):
    expected = gaussian_filter(truth[0, 0].numpy(), 5.0)
    np.testing.assert_allclose(smoothed(truth)[0, 0], expected)
    with pytest.raises(ValueError, match="deviation"):
        smoothed(truth, 0.0)


@pytest.mark.parametrize("layers", [None, Gaussianization.robust()])
def test_projection_finds_the_latents_of_images_of_the_flow(prior, layers):
    z = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).double()
    x = prior.to_unit_range(prior.decode(z if layers is None else layers(z))[0])

    def error(iterations):
        v = project_to_latents(prior, x, reparameterization=layers, iterations=iterations)
        assert v.shape == (2, SIZE * SIZE)
        v = v.view_as(z)
        found = prior.decode(v if layers is None else layers(v))[0]
        return (prior.to_unit_range(found) - x).square().flatten(1).sum(1)

    assert (error(150) < 1e-3 * error(0)).all()


def test_projection_of_one_image_is_done_once(prior, monkeypatch):
    decode, decoded = type(prior).decode, []

    def counting(self, z):
        decoded.append(len(z))
        return decode(self, z)

    monkeypatch.setattr(type(prior), "decode", counting)
    mixed = torch.full((17, 1, SIZE, SIZE), 0.5, dtype=torch.float64)
    mixed[0, :, : SIZE // 2] = 0.0
    found, work = {}, {}
    for name, x in {"alone": mixed[1:2], "same": mixed[1:], "mixed": mixed}.items():
        decoded.clear()
        found[name] = project_to_latents(prior, x, iterations=10)
        work[name] = sum(decoded)
    assert work["alone"] == work["same"] < work["mixed"] / 2
    assert torch.equal(found["same"], found["alone"].expand(16, -1))
    assert torch.equal(found["mixed"][1:], found["same"])
    assert not torch.equal(found["mixed"][0], found["mixed"][1])
    found["same"][0] = 0.0
    assert found["same"][1].any()  # rows do not share their memory


def test_projection_with_weight_has_likelier_latents(prior, truth):
    free, weighted = (project_to_latents(prior, truth, beta=b, iterations=40) for b in (0.0, 1.0))
    likelihoods = [prior.log_prob(prior.decode(v.view_as(truth))[0]) for v in (free, weighted)]
    assert (likelihoods[1] > likelihoods[0]).all()


def test_projection_of_a_decoder_without_density():
    decoder = small_decoder()
    x = images_of(decoder, 2)
    v = project_to_latents(decoder, x, iterations=200)
    assert (decoder.generate(v) - x).abs().max() < 1e-2
    with pytest.raises(ValueError, match="log-determinant"):
        project_to_latents(decoder, x, beta=1.0)
    flat = Module(nn.Identity(), (1, 4, 4), [16]).eval()
    with pytest.raises(ValueError, match=r"^prior: .* gives images \(1, 16\)"):
        project_to_latents(flat, x)


def test_start_is_the_projection(prior, truth):
    solver = MAP(beta=0.1, projection_iterations=5)
    first = solver.start(make_problem(prior, identity, truth, sigma=0.1, start=truth))
    expected = invert(prior, identity, truth, sigma=0.1, start=truth, solver=solver, iterations=0)
    assert torch.equal(expected.z.flatten(1), first)


def test_recording_is_what_happened(prior, truth):
    recording = Recording(truth, pictures=2, last=7)
    found = invert(prior, identity, truth, sigma=1.0, iterations=7, observers=[recording])
    assert recording.iterations == list(range(8))
    assert list(recording.snapshots) == list(recording.typicality) == [0, 1, 2, 5, 7]
    curves = recording.curves
    for name in ("loss", "misfit", "log_prior"):
        torch.testing.assert_close(curves[name], found.history[name], rtol=0, atol=0)
    torch.testing.assert_close(curves["psnr"][-1], psnr(found.x, truth).double())
    torch.testing.assert_close(curves["ssim"][-1], ssim(found.x, truth).double())
    assert torch.equal(recording.snapshots[7], found.x[:2])
    radius = typicality(found.z)["radius"]
    torch.testing.assert_close(recording.diagnostics["radius"][-1], radius)


def test_recording_without_the_truth_or_latents(prior, truth):
    recording = Recording()
    options = {"sigma": 1.0, "iterations": 1, "observers": [recording]}
    invert(prior, identity, truth, **options)
    assert set(recording.latest) == {"loss", "misfit", "log_prior"}
    recording = Recording()
    options["observers"] = [recording]
    invert(None, identity, truth, start=truth, solver=SOLVER, **options)
    assert recording.typicality == recording.diagnostics == {}
    assert Recording().curves == {}


@pytest.mark.parametrize("gain", [1.0, 10.0])
def test_poisson_noise_goes_to_lbfgs(truth, gain):
    noise = Poisson(gain)
    y = noise.add(truth, seed=0, indices=range(3))
    problem = make_problem(None, identity, y, noise=noise, start=truth)
    assert isinstance(TotalVariation(3.0).begin(problem), LBFGSRun)
    found = invert(None, identity, y, noise=noise, solver=TotalVariation(0.1), start=y.clamp(0, 1))
    assert (found.history["loss"][-1] < found.history["loss"][0] - 1e-3).all()


@pytest.mark.parametrize("weight", [100.0, 1e4])
def test_loss_never_rises(truth, weight):
    y = Gaussian(0.2).add(truth, seed=0, indices=range(3))
    options = {"sigma": 0.2, "solver": TotalVariation(weight), "start": y.clamp(0, 1)}
    loss = invert(None, identity, y, iterations=60, **options).history["loss"]
    assert (loss.diff(dim=0) <= 0).all()
    assert (loss[-1] < loss[0]).all()


def test_operator_that_sees_nothing(truth):
    found = invert(None, lambda x: 0 * x, 0 * truth, sigma=0.1, solver=SOLVER, start=truth)
    assert found.finite.all()
    assert (total_variation(found.x, 0.0) < total_variation(truth, 0.0)).all()


def test_data_of_one_image_do_not_choose_the_algorithm_of_another(truth):
    """Data of 10⁷ leave nothing of the differences that tell whether a misfit is quadratic."""
    y = blur(truth).float()
    y[1] *= 1e7
    options = {"sigma": 0.1, "solver": SOLVER, "image_shape": (1, SIZE, SIZE), "iterations": 5}
    together = invert(None, blur, y, **options)
    for row in range(3):
        alone = invert(None, blur, y[row : row + 1], **options)
        assert torch.equal(alone.x[0], together.x[row])
    problem = make_problem(None, blur, y, sigma=0.1, image_shape=(1, SIZE, SIZE))
    assert isinstance(SOLVER.begin(problem), VariationRun)
