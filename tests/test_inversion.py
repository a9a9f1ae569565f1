"""Inversion with MAP and the loop that all solvers share."""

import copy
import math
import re
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass

import deepinv
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

import flowprior
from flowprior.gaussianization import Gaussianization
from flowprior.inversion import (
    MAP,
    Checkpoint,
    Discrepancy,
    Posterior,
    Progress,
    Reconstructor,
    Restarts,
    Solver,
    TotalVariation,
    csgm,
    glow_ip,
    invert,
    make_problem,
    row_seed,
)
from flowprior.inversion.latent_terms import LatentTerms
from flowprior.latent import standard_normal_log_prob
from flowprior.physics import Gaussian, Laplace, Poisson, Relative, denoising, random_gaussian
from tests.conftest import make_perturbed_glow
from tests.inversion_problems import (
    SIZE,
    Interrupted,
    LinearGaussian,
    Shifted,
    blur,
    identity,
    images_of,
    interrupt_at,
    mask,
    small_decoder,
    small_glow,
    two_part_decoder,
)

FREE = MAP(penalty="none")
LIGHT = {"sigma": 1.0, "solver": MAP(beta=1e-3)}


@pytest.fixture(scope="module")
def prior():
    return small_glow()


@pytest.fixture(scope="module")
def truth(prior):
    return images_of(prior)


def test_noiseless_image_in_the_range_is_recovered(prior, truth):
    found = invert(prior, identity, truth, sigma=1.0, solver=FREE)
    assert (found.x - truth).abs().max() < 1e-3
    assert found.history["misfit"][-1].max() < 1e-6 * found.history["misfit"][0].min()
    torch.testing.assert_close(found.x, prior.to_unit_range(prior.decode(found.z)[0]))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
@pytest.mark.parametrize("layers", [None, Gaussianization(patch_size=4, rotation="none")])
def test_loss_falls_and_history_tells(prior, truth, optimizer, layers):
    y = blur(truth)
    solver = MAP(1e-3, penalty="log_density", optimizer=optimizer, reparameterization=layers)
    found = invert(prior, blur, y, sigma=1.0, solver=solver, iterations=15)
    loss, misfit, log_prior = (found.history[name] for name in ("loss", "misfit", "log_prior"))
    assert loss.shape == (16, 4)
    assert loss.dtype == torch.float64
    assert (loss[-1] < loss[0]).all()
    if optimizer == "lbfgs":
        assert (loss.diff(dim=0) <= 1e-12).all()
    torch.testing.assert_close(loss, misfit - 1e-3 * log_prior)
    torch.testing.assert_close(misfit[-1], 0.5 * (blur(found.x) - y).square().sum((1, 2, 3)))
    expected = prior.log_prob(prior.decode(found.z)[0])
    torch.testing.assert_close(log_prior[-1], expected, rtol=1e-8, atol=1e-8)
    if layers is not None:
        assert (found.z.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-9


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_result_does_not_depend_on_the_batch(prior, truth, optimizer):
    y = mask(truth)
    options = {"sigma": 1.0, "solver": MAP(1e-3, optimizer=optimizer), "iterations": 12}
    together = invert(prior, mask, y, **options)
    for i in range(len(y)):
        alone = invert(prior, mask, y[i : i + 1], **options)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-7)


@pytest.mark.parametrize("layers", [None, Gaussianization(4, passes=2), Gaussianization.paper()])
def test_the_batch_does_not_change_a_bit(prior, truth, layers):
    flow = copy.deepcopy(prior).float()
    gaussian = random_gaussian((1, SIZE, SIZE), 30)
    options = {"sigma": 1.0, "solver": MAP(1e-3, reparameterization=layers), "iterations": 6}
    for physics, y in ((mask, mask(truth.float())), (gaussian, gaussian.A(truth.float()))):
        together = invert(flow, physics, y, **options)
        for rows in ([0], [1, 2, 3]):
            apart = invert(flow, physics, y[rows], **options)
            assert torch.equal(apart.x, together.x[rows])


OWN = {
    "masks": lambda values: deepinv.physics.Inpainting((1, SIZE, SIZE), mask=values.round()),
    "filters": lambda values: deepinv.physics.BlurFFT((1, SIZE, SIZE), filter=values[..., :3, :3]),
}


@pytest.mark.parametrize("solver", [MAP(), MAP(optimizer="adam"), Restarts(MAP(), 2)])
@pytest.mark.parametrize("make", OWN)
def test_operator_with_parameters_for_each_image(prior, truth, make, solver):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(4, 1, SIZE, SIZE, generator=generator).double()
    y = OWN[make](values).A(truth)
    options = {"sigma": 1.0, "solver": solver, "iterations": 5}
    together = invert(prior, OWN[make](values), y, **options)
    for row in range(4):
        rows = slice(row, row + 1)
        alone = invert(prior, OWN[make](values[rows]), y[rows], **options)
        torch.testing.assert_close(together.x[rows], alone.x, rtol=0, atol=1e-6)


def test_unit_of_the_loss_does_not_decide_on_the_end(prior, truth):
    y = mask(truth)
    for sigma in (1e3, 1.0, 1e-3):
        found = invert(prior, mask, y, sigma=sigma, solver=FREE, iterations=40)
        assert (found.history["misfit"][-1] / found.history["misfit"][0]).max() < 1e-2


@pytest.mark.parametrize(
    "solver",
    [
        MAP(),
        MAP(optimizer="adam"),
        MAP(reparameterization=Gaussianization(4, passes=2)),
        Discrepancy(MAP(), stage=2),
        Discrepancy(MAP(optimizer="adam"), stage=2),
    ],
)
def test_row_that_overflows_is_reported_and_leaves_the_others_alone(prior, truth, solver):
    y = mask(truth)
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(4, SIZE * SIZE, generator=generator).double()
    options = {"sigma": 1.0, "solver": solver, "iterations": 5}
    expected = invert(prior, mask, y, latents=latents, **options)
    latents[1] *= 1e200
    found = invert(prior, mask, y, latents=latents, **options)
    assert found.finite.tolist() == [True, False, True, True]
    rows = [0, 2, 3]
    torch.testing.assert_close(found.x[rows], expected.x[rows], rtol=0, atol=1e-7)
    assert any("row 1 became NaN or infinite" in warning for warning in found.warnings)


def test_adam_needs_no_gradient_mode(prior, truth):
    y = mask(truth)
    options = {"sigma": 1.0, "solver": MAP(optimizer="adam"), "iterations": 3}
    expected = invert(prior, mask, y, **options)
    with torch.no_grad():
        found = flowprior.invert(prior, mask, y, **options)
    assert torch.equal(found.x, expected.x)


def test_large_weight_of_the_latent_norm_keeps_the_latent_short(prior, truth):
    options = {"sigma": 1.0, "iterations": 40}
    norms = [
        invert(
            prior, mask, mask(truth), solver=MAP(beta, penalty="latent_norm"), **options
        ).z.norm()
        for beta in (0.0, 1e-2, 1e2)
    ]
    assert norms[0] > norms[1] > norms[2]
    assert norms[2] < 1e-2 * norms[0]


def test_terms_and_units(prior, truth):
    z = prior.encode(truth - 0.5)[0]
    rows, v, size = torch.arange(4), z.flatten(1), truth[0].numel()
    problem = make_problem(prior, identity, torch.zeros_like(truth), sigma=0.5)
    x, values = LatentTerms(MAP(beta=2.0, penalty="log_density"), problem)(v, rows)
    torch.testing.assert_close(x, truth)
    squared = 2 * truth.square().sum((1, 2, 3))
    torch.testing.assert_close(values["misfit"], squared)
    torch.testing.assert_close(values["log_prior"], prior.log_prob(truth - 0.5))
    torch.testing.assert_close(values["loss"], squared - 2 * values["log_prior"])
    solver = MAP(2.0, "bits_per_dim", "latent_norm", misfit=Laplace(1 / 255))
    values = LatentTerms(solver, problem)(v, rows)[1]
    absolute = 255 * truth.abs().sum((1, 2, 3))
    torch.testing.assert_close(values["misfit"], absolute)
    expected = absolute - 2 * standard_normal_log_prob(z) / (size * math.log(2))
    torch.testing.assert_close(values["loss"], expected)


def test_beta_of_1_is_bayes_rule():
    # With d = x − m, (AᵀA/σ² + I/s²) d = Aᵀ(y − A m)/σ².
    prior = LinearGaussian(mean=0.5, scale=0.2)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(9, 16, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    sigma = 0.3
    precision = matrix.T @ matrix / sigma**2 + torch.eye(16).double() / 0.2**2
    right = (y - 0.5 * matrix.sum(1)) @ matrix / sigma**2
    expected = 0.5 + torch.linalg.solve(precision, right.T).T
    found = invert(prior, lambda x: x.flatten(1) @ matrix.T, y, sigma=sigma)
    torch.testing.assert_close(found.x.flatten(1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "noise", [Laplace(0.05), Poisson(200.0), Relative(0.1)], ids=lambda noise: type(noise).__name__
)
def test_every_noise_model_recovers_its_data(noise):
    prior = LinearGaussian(size=8)
    truth = images_of(prior, 6).clamp(min=0.05)

    def eightfold(x):
        return x.repeat(1, 8, 1, 1)

    y = noise.add(eightfold(truth), seed=0, indices=range(6))
    # From the mean, because the likelihood of relative noise has maxima of either sign.
    found = invert(prior, eightfold, y, noise=noise, solver=MAP(start_scale=0.0))
    error, average = (found.x - truth).square().mean(), y.unflatten(1, (8, 1)).mean(1)
    assert error < 1.1 * (average - truth).square().mean()
    assert error < 0.03 * (truth - 0.5).square().mean()
    assert found.warnings == ()


def test_a_solvers_own_misfit_is_what_is_minimised():
    prior = LinearGaussian()
    y = torch.full((1, 1, 4, 4), 0.6).double()
    # sigma says what the residual is measured in.
    found = invert(prior, identity, y, sigma=0.1, solver=MAP(misfit=Gaussian(0.2)))
    torch.testing.assert_close(found.x, torch.full_like(y, 0.55))
    torch.testing.assert_close(found.residual, torch.tensor([0.5]).double())


def test_csgm_and_glow_ip_minimise_their_published_objectives():
    prior = LinearGaussian()
    y = torch.rand(2, 1, 4, 4).double()
    for solver in (csgm(gamma=0.3), glow_ip(gamma=0.3)):
        problem = make_problem(prior, identity, y)
        v = solver.start(problem)
        x, values = LatentTerms(solver, problem)(v, torch.arange(2))
        published = (2 * (x - y)).square().flatten(1).sum(1) + 0.3 * v.square().sum(1)
        constant = 2 * values["loss"] - published
        torch.testing.assert_close(constant, torch.full_like(constant, constant[0].item()))
    assert (glow_ip().start(problem) == 0).all()
    assert (csgm().start(problem) != 0).all()


def test_images_in_one_draw_start_equal_and_a_seed_repeats_them(prior, truth):
    y = blur(truth)
    first, again, other = (
        invert(prior, blur, y, iterations=0, seed=seed, sigma=1.0).z for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert (first == first[:1]).all()
    assert not torch.equal(first, other)


def test_layers_for_each_part_of_the_latent():
    prior = two_part_decoder()
    y = images_of(prior)
    layers = Gaussianization(patch_size=2, rotation="none")
    solver = MAP(penalty="none", reparameterization={"picture": layers})
    found = invert(prior, identity, y, sigma=1.0, solver=solver, iterations=20)
    picture = prior.latent.split(found.z)["picture"]
    assert (picture.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-9
    style = Gaussianization(patch_size=1, whiten=False, rotation="none", temperature=0.5)
    both = MAP(penalty="none", reparameterization={"picture": layers, "style": style})
    found = invert(prior, identity, y, sigma=1.0, solver=both, iterations=20)
    parts = prior.latent.split(found.z)
    assert (parts["style"].std(1, correction=0) - 0.5).abs().max() < 1e-9
    assert (parts["picture"].std((1, 2, 3), correction=0) - 1).abs().max() < 1e-9


def test_conditional_prior():
    prior = Shifted(scale=0.1)
    condition = torch.tensor([0.2, 0.8]).double().view(2, 1, 1, 1)
    y = torch.full((2, 1, 4, 4), 0.5).double()
    together = invert(prior, identity, y, sigma=0.1, condition=condition)
    # Half-way between the data and the condition.
    expected = (0.5 + condition).expand(2, 1, 4, 4) / 2
    torch.testing.assert_close(together.x, expected, rtol=0, atol=1e-6)
    several = invert(prior, identity, y, sigma=0.1, condition=condition, solver=Restarts(MAP(), 2))
    torch.testing.assert_close(several.x, expected, rtol=0, atol=1e-6)
    projected = invert(prior, identity, y, sigma=0.1, condition=condition, start=y, iterations=0)
    assert (projected.x - 0.5).abs().max() < 0.15


class BackProjection(torch.nn.Module):
    def forward(self, y, physics):
        return physics.A_adjoint(y)


# What does not go together, and the word that says so.
PRIORS = {
    "flow": lambda: small_glow(4),
    "decoder": small_decoder,
    "parts": two_part_decoder,
    "none": lambda: None,
}
ROBUST = Gaussianization(patch_size=2, rotation="none")
SOLVERS = {
    "MAP": MAP(penalty="log_density"),
    "layers": MAP(penalty="log_density", reparameterization=ROBUST),
    "latent norm": MAP(penalty="latent_norm"),
    "csgm": csgm(),
    "Restarts": Restarts(MAP(penalty="none"), 2),
    "Discrepancy": Discrepancy(MAP(penalty="latent_norm"), stage=2),
    "TotalVariation": TotalVariation(1.0),
    "Reconstructor": Reconstructor(BackProjection()),
}
NO_DENSITY, NAMES, NO_PRIOR = "use latent_norm or none", "style, picture", "there is no prior"
CONFLICTS = {
    ("MAP", "decoder"): NO_DENSITY,
    ("MAP", "parts"): NO_DENSITY,
    ("layers", "decoder"): NO_DENSITY,
    ("layers", "parts"): NO_DENSITY,
    **{
        (solver, "none"): NO_PRIOR
        for solver in ("MAP", "layers", "latent norm", "csgm", "Restarts", "Discrepancy")
    },
}


@pytest.mark.parametrize("solver_name", SOLVERS)
@pytest.mark.parametrize("prior_name", PRIORS)
def test_every_solver_with_every_prior(solver_name, prior_name):
    prior, solver = PRIORS[prior_name](), SOLVERS[solver_name]
    y = 0.5 + 0.1 * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    physics = denoising((1, 4, 4))
    options = {"sigma": 0.1, "solver": solver, "iterations": 4, "image_shape": (1, 4, 4)}
    conflict = CONFLICTS.get((solver_name, prior_name))
    if conflict:
        with pytest.raises(ValueError, match=conflict):
            invert(prior, physics, y, **options)
        return
    found = invert(prior, physics, y, **options)
    assert found.x.shape == y.shape
    assert found.finite.all()
    assert found.residual.shape == (2,)
    assert all(values.shape == (5, 2) for values in found.history.values())
    assert (found.history["misfit"][-1] < found.history["misfit"][0]).all()
    works_on_images = solver_name in ("TotalVariation", "Reconstructor")
    assert (found.z is None) == works_on_images


class Even(LinearGaussian):
    """x = mean + scale · z², which is flat at z = 0."""

    def decode(self, z):
        return super().decode(z.square())


@pytest.mark.parametrize("wrap", [lambda solver: solver, lambda solver: Restarts(solver, 1)])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_row_that_is_stuck_is_not_told_to_go_on(optimizer, wrap):
    prior = Even()
    start = torch.stack([torch.zeros(16), torch.full((16,), 0.1)]).double()
    y = torch.full((2, 1, 4, 4), 0.9).double()
    options = {"sigma": 0.1, "solver": wrap(MAP(optimizer=optimizer)), "latents": start}
    found = [w for w in invert(prior, identity, y, **options).warnings if w.startswith("row 0")]
    stuck = [warning for warning in found if ": the surprise is" not in warning]
    assert len(stuck) == 1
    assert ("stopped by iteration 0" in stuck[0]) == (optimizer == "lbfgs")
    assert ("more iterations" in stuck[0]) == (optimizer == "adam")


def test_row_that_no_beta_moves_is_stuck_and_one_that_waits_for_beta_is_not():
    start = torch.stack([torch.zeros(16), torch.full((16,), 0.1)]).double()
    y = torch.full((2, 1, 4, 4), 2.0).double()
    options = {"sigma": 0.1, "solver": Discrepancy(MAP(beta=30.0), stage=30), "latents": start}
    found = invert(Even(), identity, y, iterations=20, **options)
    assert found.history["beta"].numpy() == pytest.approx(30)  # not changed yet
    unchanged, unfitted = (one for one in found.warnings if one.kind != "out_of_range")
    assert unchanged.startswith("beta is the solver's")
    assert unfitted.startswith("rows 0, 1: the residual is up to")
    found = invert(Even(), identity, y, iterations=50, **options)
    assert found.history["beta"][-1].numpy() == pytest.approx(10)
    stuck, waiting = (warning for warning in found.warnings if warning.kind != "out_of_range")
    assert stuck.startswith("row 0 stopped by iteration 30")
    assert waiting.startswith("row 1: the residual is up to 2.5 times")


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_row_ends_when_its_loss_has_stopped_falling(prior, truth, optimizer):
    y, tolerance = Gaussian(0.1).add(blur(truth), seed=0, indices=range(4)), 0.01
    rate = {"learning_rate": 0.2} if optimizer == "adam" else {}
    solver = MAP(optimizer=optimizer, tolerance=tolerance, **rate)
    options = {"sigma": 0.1, "solver": solver, "iterations": 100}
    found = invert(prior, blur, y, **options)
    loss = found.history["loss"]
    assert loss[0].min() > 1
    fall = loss[:-20] - loss[20:]
    small = fall <= tolerance * loss[20:].abs().clamp(min=1)
    ends = small.long().argmax(0) + 20
    assert small.any(0).all()
    assert len(ends.unique()) > 1
    for row, end in enumerate(ends):
        assert loss[end, row] != loss[end - 1, row]
        assert (loss[end:, row] == loss[end, row]).all()
        alone = invert(prior, blur, y[row : row + 1], indices=[row], **options)
        assert torch.equal(alone.history["loss"][:, 0], loss[:, row])
        assert torch.equal(alone.x[0], found.x[row])


def test_progress_is_shown_without_a_terminal(prior, truth, monkeypatch, capfd):
    monkeypatch.setattr("flowprior.progress._FIRST_LINE", 0.0)
    monkeypatch.setattr("flowprior.progress._NEXT_LINES", 0.0)
    invert(prior, blur, blur(truth), iterations=2, sigma=1.0, observers=[Progress(2)])
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert [re.search(r"\d/2 iterations, .* left", line)[0][0] for line in lines] == ["1", "2"]
    assert all(line.startswith("loss ") for line in lines)
    assert not out


def uncoloured(text):
    return re.sub(r"\x1b\[\d+m", "", text)


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("progress", [None, False, True])
def test_what_is_long_shows_progress_on_a_terminal_by_default(
    prior, truth, monkeypatch, capfd, progress, long
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("flowprior.inversion.progress.LONG", 0.0 if long else 100.0)
    options = {"sigma": 1.0, "solver": TotalVariation(1.0), "start": truth, "iterations": 2}
    invert(None, blur, blur(truth), progress=progress, **options)
    wanted = long if progress is None else progress
    assert ("2/2 iterations" in uncoloured(capfd.readouterr().err)) == wanted


def test_problems_are_one_line(prior, truth):
    problem = make_problem(prior, blur, blur(truth), sigma=0.5)
    kind = type(prior).__name__
    assert repr(problem) == f"Problem(4 data 1×16×16 of images 1×16×16, {Gaussian(0.5)}, {kind})"
    unknown = make_problem(None, blur, blur(truth), image_shape=(1, 16, 16))
    assert repr(unknown).endswith("of images 1×16×16, unknown noise, no prior)")


def test_no_progress_elsewhere_and_none_beside_ones_own(prior, truth, monkeypatch, capfd):
    monkeypatch.setattr("flowprior.progress._FIRST_LINE", 0.0)
    monkeypatch.setattr("flowprior.inversion.progress.LONG", 0.0)
    options = {"sigma": 1.0, "solver": TotalVariation(1.0), "start": truth, "iterations": 1}
    invert(None, blur, blur(truth), **options)
    assert not capfd.readouterr().err
    invert(None, blur, blur(truth), progress=True, **options)
    assert "1/1 iterations" in capfd.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    invert(None, blur, blur(truth), observers=[Progress(1)], **options)
    assert uncoloured(capfd.readouterr().err).count("1/1 iterations") == 1


@pytest.mark.parametrize("iterations", [-1, 1.5, None, True])
def test_progress_of_no_number_of_iterations(iterations):
    with pytest.raises(ValueError, match=r"^iterations"):
        Progress(iterations)


class Data(torch.nn.Module):
    """A reconstructor that takes the data for the images."""

    def forward(self, y, physics):
        return y


def test_progress_has_no_text_where_the_noise_is_not_known(truth, monkeypatch, capfd):
    monkeypatch.setattr("flowprior.progress._FIRST_LINE", 0.0)
    options = {"solver": Reconstructor(Data()), "start": truth, "iterations": 1}
    progress = Progress(1)
    for _ in range(2):  # the second call finds a new bar
        invert(None, blur, blur(truth), observers=[progress], **options)
        assert capfd.readouterr().err.startswith("1/1 iterations")


@pytest.mark.parametrize("iteration", [1, 5])
def test_progress_is_a_bar_on_a_terminal_and_leaves_it(prior, truth, monkeypatch, capfd, iteration):
    monkeypatch.setenv("FORCE_COLOR", "1")
    observers = [Progress(2), interrupt_at(iteration)]
    options = {"sigma": 1.0, "solver": TotalVariation(1.0), "start": truth, "iterations": 2}
    with pytest.raises(Interrupted) if iteration < 2 else nullcontext():
        invert(None, blur, blur(truth), observers=observers, **options)
    err = capfd.readouterr().err
    assert "iterations" in err
    assert re.search(r"loss \d", err) or iteration == 1  # redrawn ten times a second
    assert err.rindex("\x1b[?25h") > err.rindex("\x1b[?25l")  # the cursor is back


def test_iterations_are_told_to_all_observers(prior, truth):
    seen = []

    def first(iteration, run):
        seen.append(iteration)

    def second(iteration, run):
        assert run.x.shape == truth.shape
        assert run.values["loss"].shape == run.active.shape == run.finite.shape == (4,)
        seen.append(-iteration)

    invert(prior, blur, blur(truth), iterations=2, sigma=1.0, observers=[first, second])
    assert seen == [0, 0, 1, -1, 2, -2]


def test_rows_that_are_done_repeat_their_values():
    prior = LinearGaussian()
    seen = []
    y = torch.rand(2, 1, 4, 4).double()
    found = invert(
        prior, identity, y, sigma=0.2, observers=[lambda k, run: seen.append(run.active)]
    )
    assert not seen[-1].any()
    assert found.history["loss"].shape == (101, 2)
    assert (found.history["loss"][50:] == found.history["loss"][-1]).all()


def test_random_numbers_of_an_image_depend_on_its_number_and_the_seed_alone():
    y = torch.rand(2, 1, 4, 4)

    def seed(row, *stage, first=0, **options):
        numbers = {"indices": [4, 7][first:], "seed": 3}
        problem = make_problem(
            None, identity, y[first:], image_shape=y.shape[1:], **numbers | options
        )
        return row_seed(problem, row, *stage)

    assert seed(1, 5) == seed(0, 5, first=1)
    assert len({seed(0, 1), seed(1, 1), seed(0, 2), seed(0, 1, seed=4)}) == 4


def test_residual_and_warnings():
    prior = LinearGaussian(size=16)
    truth = images_of(prior)
    y = Gaussian(0.2).add(truth, seed=0, indices=range(4))
    found = invert(prior, identity, y, sigma=0.2, solver=FREE)
    expected = (found.x - y).square().mean((1, 2, 3)).sqrt() / 0.2
    torch.testing.assert_close(found.residual, expected)
    outside, warning = found.warnings
    assert outside.kind == "out_of_range"
    assert "rows 0, 1, 2, 3" in warning
    assert "larger weight of the prior (beta, weight)" in warning
    start = invert(prior, identity, y + torch.tensor([0.0, 0, 1, 0]).view(4, 1, 1, 1), sigma=0.3)
    assert any("row 2" in w and "smaller weight of the prior" in w for w in start.warnings)
    assert "warnings: " in repr(start)
    unknown = invert(prior, identity, y, solver=MAP(misfit=Gaussian(0.2)))
    assert unknown.residual is None
    assert unknown.warnings == ()
    assert repr(unknown) == "Estimate(4 images 1×16×16 after 100 iterations)"


WRONG = {
    "shape of y": ({"y": torch.zeros(2, 1, 8, 8).double()}, r"^y must have shape \(B, 1, 16, 16\)"),
    "NaN in y": ({"y": torch.full((2, 1, SIZE, SIZE), torch.nan)}, r"^y must .* rows \[0, 1\]"),
    "numpy y": ({"y": np.zeros((2, 1, SIZE, SIZE))}, r"got ndarray .*: torch.from_numpy\(y\)$"),
    "no channel": (
        {"y": torch.zeros(2, SIZE, SIZE).double()},
        r"^y must .*got \(2, 16, 16\): add a channel axis: y\[:, None\]$",
    ),
    "no batch": ({"y": torch.zeros(1, SIZE, SIZE).double()}, r"for the one image: y\[None\]$"),
    "list y": ({"y": [[[0.0]]]}, "^y must be a tensor, got "),
    "bool y": ({"y": torch.ones(2, 1, SIZE, SIZE).bool()}, "^y must .*got torch.bool"),
    "integer y": ({"y": torch.ones(2, 1, SIZE, SIZE).long()}, "^y must .*got torch.int64"),
    "empty y": ({"y": torch.ones(0, 1, SIZE, SIZE)}, "^y must "),
    "y of numbers": ({"y": torch.ones(2)}, r"^y must .* got \(2,\)"),
    "start of 0 to 255": ({"start": torch.full((2, 1, SIZE, SIZE), 200.0)}, r"start .*\[0, 1\]"),
    "indices twice": ({"indices": [0, 0, 1, 2]}, "indices"),
    "indices between": ({"indices": [0, 0.5, 1, 2]}, "indices"),
    "no gradient": ({"physics": lambda x: x.detach()}, "no gradient"),
    "no operator": ({"physics": 3}, "Physics or a function"),
    "operator of other images": ({"physics": lambda x: x.view(-1, 7)}, "does not take images"),
    "operator of nothing": ({"physics": lambda x: x[:, :0]}, "no data at all"),
    "operator of one number": ({"physics": lambda x: x.sum()}, "physics: "),
    "operator of numbers": ({"physics": lambda x: x.mean((1, 2, 3))}, r"physics: .*\(1,\)"),
    "operator of two": ({"physics": lambda x: (x, x)}, "gives tuple, expected one tensor"),
    "other masks": ({"physics": lambda x: x * torch.ones(4, 1, 1, 1)}, "4 rows of data of 1 image"),
    "solver": ({"solver": "map"}, "^solver must be .*'map'"),
    "iterations": ({"iterations": -1}, "^iterations"),
    "half an iteration": ({"iterations": 2.5}, "^iterations"),
    "seed": ({"seed": "a"}, "^seed"),
    "negative seed": ({"seed": -1}, "^seed"),
    "indices": ({"indices": [1]}, "^indices"),
    "negative index": ({"indices": [0, -1]}, "^indices"),
    "word for indices": ({"indices": "ab"}, "^indices"),
    "number for latents": ({"latents": 3}, "^latents must be"),
    "one index": ({"indices": 5}, "^indices"),
    "start": ({"start": torch.zeros(2, 1, 8, 8)}, "^start must be .* shape"),
    "numpy start": ({"start": np.zeros((2, 1, SIZE, SIZE))}, "^start must .*ndarray"),
    "NaN in start": ({"start": torch.full((2, 1, SIZE, SIZE), torch.nan)}, "^start must be finite"),
    "latents": ({"latents": torch.zeros(2, 5)}, "^latents must be .* shape"),
    "too many latents": ({"latents": torch.zeros(3, SIZE * SIZE)}, "^latents must have 2 rows"),
    "condition": ({"condition": torch.zeros(2, 3)}, "^condition"),
    "no noise level": ({"sigma": None}, "needs the noise level"),
    "sigma and noise": ({"noise": Laplace(1.0)}, "^sigma and noise"),
    "no noise": ({"sigma": 0.0}, "^sigma is 0"),
    "negative sigma": ({"sigma": -1.0}, "^sigma"),
    "word for noise": ({"sigma": None, "noise": "gaussian"}, "^noise must"),
    "counts below 0": (
        {"sigma": None, "noise": Poisson(9.0), "y": -torch.ones(2, 1, 16, 16)},
        "^y",
    ),
    "prior": ({"prior": torch.nn.Linear(2, 2)}, "^prior must be"),
    "prior in training": ({"prior": make_perturbed_glow(1, SIZE, levels=2, steps=2)}, "frozen"),
    "prior in training mode": ({"prior": small_glow().train()}, "frozen"),
    "observers": ({"observers": print}, "^observers"),
    "checkpoint": ({"checkpoint": "file.pt"}, "^checkpoint"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_clear_line(prior, truth, name):
    changes, words = WRONG[name]
    given = {"prior": prior, "physics": blur, "y": blur(truth)[:2], "sigma": 1.0, "iterations": 1}
    with pytest.raises(ValueError, match=words) as caught:
        invert(**(given | changes))
    assert "\n" not in str(caught.value)


def test_one_image_of_three_colours_lacks_an_axis():
    y = torch.zeros(3, 8, 8)
    options = {"sigma": 1.0, "solver": TotalVariation(1.0), "image_shape": (3, 8, 8)}
    with pytest.raises(ValueError, match=r"for the one image: y\[None\]$"):
        invert(None, identity, y, **options)
    assert invert(None, identity, y[None], iterations=1, **options).x.shape == (1, 3, 8, 8)


def test_latents_may_have_the_shape_of_those_of_an_estimate(prior, truth):
    options = {"y": blur(truth)[:2], "sigma": 0.1, "iterations": 2}
    z = invert(prior, blur, **options).z
    assert z.ndim > 2
    expected = invert(prior, blur, latents=z.flatten(1), **options)
    moving = torch.nn.Parameter(z.clone())
    for latents in (z, moving):
        assert torch.equal(invert(prior, blur, latents=latents, **options).x, expected.x)
    assert torch.equal(moving, expected.z)
    with pytest.raises(ValueError, match=r"^latents must be .* shape"):
        invert(prior, blur, latents=z.flatten(2), **options)


def test_image_shape_is_needed_without_a_prior(truth):
    solver = TotalVariation(1.0)
    with pytest.raises(ValueError, match="image_shape or start"):
        invert(None, identity, truth, sigma=1.0, solver=solver)
    for wrong in ("abc", (1, 16), (1, 16, 0), 16):
        with pytest.raises(ValueError, match="image_shape must be"):
            invert(None, identity, truth, sigma=1.0, solver=solver, image_shape=wrong)
    with pytest.raises(ValueError, match=r"latents needs .*no prior"):
        invert(
            None, identity, truth, sigma=1.0, solver=solver, start=truth.clamp(0, 1), latents=truth
        )


def test_condition_must_fit():
    y = torch.rand(2, 1, 4, 4).double()
    for condition in (None, torch.rand(3, 1, 1, 1), [0.5, 0.5]):
        with pytest.raises(ValueError, match=r"^condition must"):
            invert(Shifted(), identity, y, sigma=1.0, condition=condition)


def test_operator_of_several_tensors_is_refused(prior, truth):
    physics = deepinv.physics.stack(*2 * [denoising((1, SIZE, SIZE))])
    with pytest.raises(ValueError, match="got TensorList"):
        invert(prior, physics, physics.A(truth), sigma=1.0)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"misfit": "huber"}, "misfit"),
        ({"penalty": "l1"}, "penalty"),
        ({"beta_unit": "bits"}, "beta_unit"),
        ({"beta": -1.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"beta": True}, "beta"),
        ({"beta": "1"}, "beta"),
        ({"optimizer": "newton"}, "optimizer"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"start_scale": -1.0}, "start_scale"),
        ({"projection_iterations": 2.5}, "projection_iterations"),
        ({"reparameterization": "robust"}, "reparameterization"),
        ({"reparameterization": {"z": "robust"}}, "reparameterization"),
        ({"reparameterization": torch.nn.Identity()}, "reparameterization"),
    ],
)
def test_wrong_options_of_map_are_named(options, option):
    with pytest.raises(ValueError, match=f"^{option} must"):
        MAP(**options)


def test_layers_must_be_those_of_the_latent(prior, truth):
    options = {"sigma": 1.0, "iterations": 1}
    with pytest.raises(ValueError, match=r"reparameterization: no part w; .* z"):
        invert(prior, blur, truth, solver=MAP(reparameterization={"w": ROBUST}), **options)
    parts = two_part_decoder()
    solver = MAP(penalty="none", reparameterization=ROBUST)
    with pytest.raises(ValueError, match=r"reparameterization: .* style, picture"):
        invert(parts, identity, images_of(parts), solver=solver, **options)


def test_data_with_a_graph_and_numbers_of_numpy(prior, truth):
    y, start = blur(truth[:2]), truth[:2].flip(3)
    options = {"sigma": np.float64(1.0), "solver": MAP(beta=1e-3, projection_iterations=3)}
    expected = invert(prior, blur, y, start=start, iterations=2, **options)
    y, start = (1 * tensor.clone().requires_grad_() for tensor in (y, start))
    options["indices"] = np.array([4, 2])
    found = invert(prior, blur, y, start=start, iterations=np.int64(2), **options)
    assert torch.equal(found.x, expected.x)


def test_noise_model_is_checked_before_the_first_iteration(prior, truth):
    # The solver fits by a misfit of its own; the noise serves the residual alone.
    options = {"solver": csgm(), "observers": [interrupt_at(0)]}
    for wrong in ({"sigma": 0.0}, {"noise": Poisson(9.0)}):
        with pytest.raises(ValueError, match=r"^sigma|^y of Poisson"):
            invert(prior, identity, truth - 1, **wrong, **options)


class Sampling:
    """Gives the runs of a solver a posterior."""

    def begin(self, problem):
        run = super().begin(problem)
        run.posterior = lambda: Spread(run.x)
        return run


@dataclass(frozen=True)
class Sampler(Sampling, TotalVariation):
    pass


@dataclass
class Spread:
    mean: torch.Tensor

    def sample(self, count, *, seed):
        return self.mean.expand(count, *self.mean.shape)


def test_a_posterior_comes_with_the_estimate(truth):
    options = {"sigma": 1.0, "start": truth, "iterations": 1}
    found = invert(None, blur, truth, solver=Sampler(1.0), **options)
    assert isinstance(found.posterior, Posterior)
    assert found.posterior.sample(3, seed=0).shape == (3, *truth.shape)
    assert invert(None, blur, truth, solver=TotalVariation(1.0), **options).posterior is None


def test_an_observer_that_raises_stops_the_run(prior, truth, tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.pt", seconds=1e9)
    with pytest.raises(Interrupted):
        invert(prior, blur, truth, observers=[interrupt_at(1)], checkpoint=checkpoint, **LIGHT)
    assert not checkpoint.path.exists()


@pytest.mark.parametrize(
    "solver",
    [
        MAP(2.0, misfit=Gaussian(0.1), optimizer="adam"),
        Restarts(csgm(), 3),
        Discrepancy(MAP(), target=0.9),
        TotalVariation(2.0),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_solvers_are_built_from_yaml(solver):
    def described(value):
        if not is_dataclass(value):
            return value
        options = {field.name: described(getattr(value, field.name)) for field in fields(value)}
        path = f"{type(value).__module__}.{type(value).__name__}"
        return {"class_path": path, "init_args": options}

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--solver", type=Solver)
    parsed = parser.parse_object({"solver": described(solver)})
    assert parser.instantiate(parsed).solver == solver
