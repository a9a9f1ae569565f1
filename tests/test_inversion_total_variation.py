"""The total-variation baseline, starts and recordings of inversions."""

import numpy as np
import pytest
import torch
from flowprior.inversion.total_variation import total_variation
from scipy.ndimage import gaussian_filter

from flowprior.gaussianization import Gaussianization
from flowprior.inversion import (
    Recording,
    TotalVariationProblem,
    invert,
    invert_with_total_variation,
    project_to_latents,
    smoothed,
)
from flowprior.metrics import psnr, ssim, typicality
from flowprior.physics import gaussian_noise, make_operator, relative_noise
from tests.conftest import make_perturbed_glow

SIZE = 16


@pytest.fixture(scope="module")
def truth():
    x = torch.full((3, 1, SIZE, SIZE), 0.2, dtype=torch.float64)
    x[0, :, 4:10, 3:12] = 0.8
    x[1, :, :, 8:] = 0.6
    x[2, :, 5:, :] = 0.9
    return x


@pytest.fixture(scope="module")
def prior():
    flow = make_perturbed_glow(1, SIZE, levels=2, steps=2, coupling="affine", scale=0.05)
    return flow.eval().requires_grad_(False)


def identity(x):
    return x


def test_total_variation_of_known_images(truth):
    # Perimeters × steps; two corners of the box have both differences in one pixel's length.
    expected = [0.6 * (6 + 6 + 9 + 9 - 2 + 2**0.5), 0.4 * SIZE, 0.7 * SIZE]
    found = total_variation(truth, smoothing=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_total_variation_gradient():
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total_variation, x)


def test_noise_is_taken_out_within_the_box(truth):
    y = gaussian_noise(truth, 0.1, seed=0, indices=range(3))
    found = invert_with_total_variation(identity, y, y, weight=0.06, iterations=100)
    assert found.z is None
    assert ((found.x > 0) & (found.x < 1)).all()
    assert (psnr(found.x, truth) > psnr(y, truth) + 6).all()
    alone = invert_with_total_variation(identity, y[1:2], y[1:2], weight=0.06, iterations=100)
    assert torch.equal(alone.x[0], found.x[1])


def test_without_weight_the_data_are_fitted(truth):
    found = invert_with_total_variation(identity, truth, truth, weight=0.0, iterations=60)
    assert (found.x - truth).abs().max() < 1e-4


def test_travel_times_with_total_variation(truth):
    truth = truth[[0, 2]]  # no ray sees that the other one changes from left to right
    physics = make_operator("crosshole_tomography", (1, SIZE, SIZE), sources=8)
    y = relative_noise(physics.A(truth), 0.001, seed=0, indices=range(2))
    start = smoothed(truth, 2.0)
    found = invert_with_total_variation(
        physics, y, start, weight=1.0, data_scale=1000.0, iterations=60
    )
    assert (psnr(found.x, truth) > psnr(start, truth) + 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"data_scale": 0.0}, "data_scale"),
        ({"start": torch.zeros(2, 1, SIZE, SIZE)}, r"\(3, C, H, W\)"),
        ({"y": torch.zeros(3, 1, 8, 8)}, "y must have shape"),
        ({"physics": torch.detach}, "no gradient"),
    ],
)
def test_wrong_use_is_named(truth, change, message):
    given = {"physics": identity, "y": truth, "start": truth, "weight": 1.0, **change}
    with pytest.raises(ValueError, match=message):
        invert_with_total_variation(**given)


def test_smoothing_must_be_positive(truth):
    with pytest.raises(ValueError, match="smoothing"):
        TotalVariationProblem(identity, truth, truth[0], 1.0, smoothing=0.0)


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
        found = prior.decode(v if layers is None else layers(v))[0]
        return (prior.to_unit_range(found) - x).square().flatten(1).sum(1)

    assert (error(150) < 1e-3 * error(0)).all()


def test_projection_with_weight_has_likelier_latents(prior, truth):
    free, weighted = (project_to_latents(prior, truth, beta=b, iterations=40) for b in (0.0, 1.0))
    likelihoods = [prior.log_prob(prior.decode(v)[0]) for v in (free, weighted)]
    assert (likelihoods[1] > likelihoods[0]).all()


def test_recording_is_what_happened(prior, truth):
    recording = Recording(truth, pictures=2, patch_size=4, last=7)
    found = invert(prior, identity, truth, iterations=7, on_iteration=recording)
    assert recording.iterations == list(range(8))
    assert list(recording.snapshots) == list(recording.typicality) == [0, 1, 2, 5, 7]
    curves = recording.curves
    for name in ("loss", "misfit", "log_prior"):
        torch.testing.assert_close(curves[name], found.history[name].double(), rtol=0, atol=0)
    torch.testing.assert_close(curves["psnr"][-1], psnr(found.x, truth).double())
    torch.testing.assert_close(curves["ssim"][-1], ssim(found.x, truth).double())
    assert torch.equal(recording.snapshots[7], found.x[:2])
    radius = typicality(found.z, 4)["radius"]
    torch.testing.assert_close(recording.diagnostics["radius"][-1], radius)
    decoded = prior.to_unit_range(prior.decode(found.z)[0])
    torch.testing.assert_close(found.x, decoded)


def test_recording_without_the_truth(prior, truth):
    recording = Recording()
    invert(prior, identity, truth, iterations=1, on_iteration=recording)
    assert set(recording.latest) == {"loss", "misfit", "log_prior"}


def test_crosshole_positions():
    physics = make_operator("crosshole_tomography", (1, 8, 6), sources=2, receivers=4, extent=10)
    assert physics.sources.tolist() == [[2, 0], [6, 0]]
    assert physics.receivers.tolist() == [[1, 5], [3, 5], [5, 5], [7, 5]]
    assert physics.spacing == 2.0
    assert make_operator("crosshole_tomography", (1, 8, 6)).A(torch.rand(3, 1, 8, 6)).shape == (
        *(3, 8, 8),
    )


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8, 8), {}, r"models \(1, H, W > 1\)"),
        ((1, 8, 8), {"sources": 9}, "sources must be 1 to 8"),
        ((1, 8, 8), {"receivers": 0}, "receivers must be 1 to 8"),
        ((1, 8, 8), {"source": 9}, "its options are sources, receivers, extent"),
    ],
)
def test_wrong_crosshole_is_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        make_operator("crosshole_tomography", shape, **options)
