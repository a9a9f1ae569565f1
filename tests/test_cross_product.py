"""Every prior with every operator and every solver, or one line that says why not."""

import math

import pytest
import torch
import torch.nn.functional as F
import zuko
from torch import nn

from flowprior.flows import Coupling1x1Flow, Trumpet
from flowprior.gaussianization import Gaussianization
from flowprior.inversion import (
    BM3D,
    DPS,
    MAP,
    DeepImagePrior,
    Discrepancy,
    IFlow,
    PlugAndPlay,
    Reconstructor,
    Restarts,
    TotalVariation,
    Wavelet,
    csgm,
    glow_ip,
    invert,
    l1_map,
)
from flowprior.physics import OPERATORS, Gaussian, make_operator
from flowprior.posterior import PSGLD, Coupling, Langevin, TemperedSMC, Variational
from flowprior.priors import Cropped, GaussianPrior, Module, Padded, Prior, from_zuko
from tests.conftest import make_perturbed_glow

SIZE = 16
COUNT = 2
ITERATIONS = 3


class Smoother(nn.Module):
    """Stands for a denoiser: the mean of an image and its blurred version."""

    def forward(self, x, sigma):
        return (x + nn.functional.avg_pool2d(x, 3, stride=1, padding=1)) / 2


class TwoParts(nn.Module):
    """A decoder of a style (3,) and a picture."""

    def forward(self, style, picture):
        return 0.5 + 0.1 * picture + 0.1 * style.mean(1).view(-1, 1, 1, 1)


class Resized(nn.Module):
    """Stands for a network that undoes the operator: grey where data are no images."""

    def forward(self, y, physics):
        y = y.real if y.is_complex() else y
        return y.flatten(1).mean(1).view(-1, 1, 1, 1).expand(-1, channels_of(physics), SIZE, SIZE)


def channels_of(physics):
    return getattr(physics, "channels", 1)


def coupling1x1(channels, size):
    scales = int(math.log2(size))
    flow = Coupling1x1Flow(channels, size, steps=[1] * scales, hidden_channels=4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return flow


def trumpet(channels):
    layout = ["squeeze", 1, "halve", "squeeze", "halve", "halve"]
    flow = Trumpet(channels, SIZE, layout, widths=(4, 4), low_steps=1, low_hidden_channels=4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return flow


def padded(channels):
    small = make_perturbed_glow(
        channels, SIZE - 4, levels=1, steps=1, scale=0.05, dtype=torch.float32
    )
    return Padded(small, SIZE)


def decoder(channels):
    layers = [
        nn.Linear(5, channels * SIZE**2),
        nn.Sigmoid(),
        nn.Unflatten(1, (channels, SIZE, SIZE)),
    ]
    return Module(nn.Sequential(*layers), (channels, SIZE, SIZE), [5])


def zuko_flow(channels):
    flow = zuko.flows.NICE(channels * SIZE**2, transforms=2, hidden_features=[8])
    return from_zuko(flow, (channels, SIZE, SIZE))


def two_parts(channels):
    shape = (channels, SIZE, SIZE)
    return Module(TwoParts(), shape, {"style": [3], "picture": list(shape)})


def gaussian(channels):
    smooth = F.avg_pool2d(torch.rand(20, channels, SIZE, SIZE), 3, stride=1, padding=1)
    return GaussianPrior(smooth, stationary=True)


PRIORS = {
    "Glow": lambda channels: make_perturbed_glow(
        channels, SIZE, levels=2, steps=1, scale=0.05, dtype=torch.float32
    ),
    "Coupling1x1Flow": lambda channels: coupling1x1(channels, SIZE),
    "Cropped": lambda channels: Cropped(coupling1x1(channels, 2 * SIZE), SIZE),
    "Padded": padded,
    "Trumpet": trumpet,
    "decoder": decoder,
    "GaussianPrior": gaussian,
    "zuko": zuko_flow,
    "two parts": two_parts,
}
LATENT = {
    "MAP, latent norm": MAP(),
    "MAP, density": MAP(penalty="log_density"),
    "MAP, Adam": MAP(optimizer="adam"),
    "MAP, layers": MAP(penalty="none", reparameterization=Gaussianization.robust()),
    "l1_map": l1_map(),
    "csgm": csgm(),
    "glow_ip": glow_ip(),
    "Restarts": Restarts(MAP(), count=2),
    "Restarts of csgm": Restarts(csgm(), count=10),
    "Discrepancy": Discrepancy(MAP(), stage=1),
    "Langevin": Langevin(chains=2, warm_up=2, leapfrog=1, descent_iterations=2),
    "PSGLD": PSGLD(0.001, chains=2, warm_up=2, thin=1),
    "TemperedSMC": TemperedSMC(particles=8, moves=1, leapfrog=1),
    "Variational": Variational(Coupling(hidden=2), draws=2, descent_iterations=2),
}
RANGE = {
    "iFlow": IFlow(),
    "iFlow, layer-wise density": IFlow(beta=1.0),
    "iFlow, projected": IFlow(through=False),
    "iFlow, projected, density": IFlow(beta=1.0, through=False),
}
"""Need a prior, but have no latents."""
IMAGE = {
    "TotalVariation": TotalVariation(1.0),
    "Wavelet": Wavelet(1.0, levels=1),
    "BM3D": BM3D(),
    "PlugAndPlay": PlugAndPlay(Smoother(), stages=3),
    "DPS": DPS(Smoother(), stages=3, first_level=0.1),
    "DeepImagePrior": DeepImagePrior(channels=4, layers=3),
    "Reconstructor": Reconstructor(Resized()),
}
NONLINEAR = ("phase_retrieval", "crosshole_tomography", "full_waveform")
OPTIONS = {"random_gaussian": {"measurements": 20}, "phase_retrieval": {"measurements": 20}}
WAVES = {"sources": 1, "receivers": 4, "duration": 0.15}
OPTIONS |= {"linearized_born": WAVES, "full_waveform": WAVES}
SCALED_FOR_IMAGES = [("glow_ip", "crosshole_tomography")]
"""Its weight is for errors of images, and travel times are in seconds."""
START_IS_BEST = [
    (solver, operator)
    for solver in ("iFlow, projected", "iFlow, projected, density")
    for operator in ("denoising", "box_inpainting")
]
"""The projection of data that are images is about the closest in the range."""
QUICK = [operator for operator in OPERATORS if operator not in ("linearized_born", "full_waveform")]
CASES = [
    *((prior, operator, solver) for prior in PRIORS for operator in QUICK for solver in LATENT),
    *((prior, operator, solver) for prior in PRIORS for operator in QUICK for solver in RANGE),
    *(("none", operator, solver) for operator in QUICK for solver in IMAGE),
    # Waves take seconds.
    *(("Glow", operator, "MAP, latent norm") for operator in OPERATORS if operator not in QUICK),
    *(("none", operator, "TotalVariation") for operator in OPERATORS if operator not in QUICK),
]


def conflict(prior: str, operator: str, solver: str) -> str | None:
    """Why these do not go together, in words of the error; None if they do."""
    if solver in RANGE and prior != "Trumpet":
        return "needs a projection"
    if prior in ("decoder", "two parts") and solver in ("MAP, density", "l1_map"):
        return "needs a log-determinant"
    if solver == "MAP, layers" and prior == "decoder":
        return "patch_size=4 must divide the sides of the latent"
    if solver == "MAP, layers" and prior == "Trumpet":
        return "latent part z: whiten: .* N >= 2"  # it is a single patch
    if solver == "MAP, layers" and prior == "two parts":
        return "give layers by name: style, picture"
    if solver == "BM3D" and operator != "denoising":
        return "BM3D only denoises"
    if solver in ("Wavelet", "PlugAndPlay") and operator in NONLINEAR:
        return "needs a linear physics"
    return None


@pytest.mark.parametrize(("prior", "operator", "solver"), CASES)
def test_prior_operator_solver(prior, operator, solver):
    channels = 2 if operator == "colourisation" else 1
    physics = make_operator(operator, (channels, SIZE, SIZE), **OPTIONS.get(operator, {}))
    truth = torch.linspace(0.2, 0.8, SIZE).expand(COUNT, channels, SIZE, SIZE)
    clean = physics.A(truth)
    sigma = 0.1 * clean.std().item()
    y = Gaussian(sigma).add(clean, seed=0, indices=range(COUNT))
    known: Prior | None = None
    if prior != "none":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            known = PRIORS[prior](channels).eval().requires_grad_(False)
    options = {"sigma": sigma, "iterations": ITERATIONS, "image_shape": (channels, SIZE, SIZE)}
    options["solver"] = {**LATENT, **RANGE, **IMAGE}[solver]
    why = conflict(prior, operator, solver)
    if why is not None:
        with pytest.raises(ValueError, match=why) as error:
            invert(known, physics, y, **options)
        assert "\n" not in str(error.value)
        return
    found = invert(known, physics, y, **options)
    assert found.x.shape == truth.shape
    assert found.finite.all()
    assert found.x.isfinite().all()
    assert (found.z is None) == (solver not in LATENT)
    assert found.history["misfit"].shape[1:] == (COUNT,)
    assert all(curve.isfinite().all() for curve in found.history.values())
    if isinstance(options["solver"], Langevin | PSGLD | Variational):
        drawn = found.posterior.sample(2, seed=0)
        assert drawn.shape == (2, *truth.shape)
        assert drawn.isfinite().all()
    comparable = "loss" in found.history and "beta" not in found.history  # one β all along
    if comparable and (solver, operator) in START_IS_BEST:
        assert (found.history["loss"][-1] <= found.history["loss"][0]).all()
    elif comparable and (solver, operator) not in SCALED_FOR_IMAGES:
        assert (found.history["loss"][-1] < found.history["loss"][0]).all()
