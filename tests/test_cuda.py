"""Flows, layers and metrics on a GPU: as on the CPU."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch

import flowprior
from flowprior.flows import Coupling1x1Flow, Glow
from flowprior.gaussianization import Gaussianization
from flowprior.losses import LatentLikelihood, Reconstruction
from flowprior.metrics import (
    bits_per_dim,
    coded_bits_per_dim,
    largest_patch_correlation,
    psnr,
    ssim,
    typicality,
    unusual_round_trips,
    worst_round_trip,
)
from tests.conftest import make_perturbed_glow
from tests.gpu import DEVICE, agree, moved, normal, on_gpu, uniform
from tests.test_trumpet import trumpet

pytestmark = on_gpu

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
SHIPPED = ["coupling1x1_mnist", "glow_layers_32", "glow_layers_32_free", "glow_mnist"]
ROUND_TRIP = 1e-4
"""What a flow in float32 promises for images like those it was trained on."""


def coupling1x1():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Coupling1x1Flow(1, 16, steps=[2, 2, 1, 1], hidden_channels=8).double()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    flow.initialized.fill_(True)
    return flow.eval()


BIJECTIONS = {
    "affine Glow": partial(make_perturbed_glow, 1, 16, levels=2, steps=3, coupling="affine"),
    "additive Glow": partial(make_perturbed_glow, 1, 16, levels=2, steps=3, coupling="additive"),
    "1x1-coupling flow": coupling1x1,
}
FLOWS = {**BIJECTIONS, "TRUMPET": trumpet, "TRUMPET, ReLU": partial(trumpet, "relu")}
CASES = [
    *((name, method) for name in FLOWS for method in ("encode", "decode", "generate", "log_prob")),
    *((name, "project") for name in FLOWS if name not in BIJECTIONS),
]
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 2e-4), (torch.float64, 1e-9)], ids=["float32", "float64"]
)


@pytest.fixture
def tf32():
    """Switches TF32 of convolutions on."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


def images(flow, count=5, dtype=torch.float32):
    low, high = flow.data_range
    return low + (high - low) * uniform(count, *flow.image_shape, dtype=dtype)


def gradients(flow, x):
    """Gradients of the log density by image and parameters, by name."""
    x = x.clone().requires_grad_()
    flow.zero_grad()
    flow.log_prob(x).sum().backward()
    found = {name: p.grad for name, p in flow.named_parameters() if p.grad is not None}
    return {"x": x.grad, **found}


@pytest.mark.parametrize(("name", "method"), CASES)
@PRECISIONS
def test_flows_are_those_of_the_cpu(name, method, dtype, atol):
    flow = FLOWS[name]().to(dtype).requires_grad_(False)
    backwards = method in ("decode", "generate")
    given = normal(5, *flow.latent.shape, dtype=dtype) if backwards else images(flow, 5, dtype)
    expected = getattr(flow, method)(given)
    agree(getattr(moved(flow), method)(given.to(DEVICE)), expected, atol, rtol=atol)


def test_samples_of_a_seed_are_those_of_the_cpu():
    flow = FLOWS["affine Glow"]().float()
    expected = flow.sample(3, 0.8, generator=torch.Generator().manual_seed(1))
    found = moved(flow).sample(3, 0.8, generator=torch.Generator().manual_seed(1))
    agree(found, expected, 1e-4)


def test_matrices_are_folded_anew_after_a_move():
    flow = FLOWS["affine Glow"]().float().requires_grad_(False)
    z = normal(2, *flow.latent.shape)
    expected = flow.generate(z)
    flow.to(DEVICE)
    agree(flow.generate(z.to(DEVICE)), expected, 1e-4)
    torch.testing.assert_close(flow.to("cpu").generate(z), expected)


@pytest.mark.usefixtures("rebuilt")
@pytest.mark.parametrize("name", BIJECTIONS)
def test_memory_flat_gradients_are_those_of_autograd(name):
    flow = moved(BIJECTIONS[name]())
    assert flow.memory_efficient
    plain = copy.deepcopy(flow)
    plain.memory_efficient = False
    x = images(flow, 4, torch.float64).to(DEVICE)
    found, expected = gradients(flow, x), gradients(plain, x)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, msg=parameter)


@pytest.mark.usefixtures("rebuilt")
@pytest.mark.parametrize("loss", [Reconstruction(), LatentLikelihood()])
def test_memory_flat_gradients_of_trumpet_are_those_of_autograd(loss):
    found = []
    for memory_efficient in (True, False):
        flow = moved(trumpet(memory_efficient=memory_efficient))
        x = images(flow, 3, torch.float64).to(DEVICE)
        next(iter(loss(flow, x).values())).sum().backward()
        found.append({n: p.grad for n, p in flow.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() != set()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_gradients_in_float32_are_those_of_the_cpu():
    flow = BIJECTIONS["affine Glow"]().float()
    expected = gradients(flow, images(flow, 4))
    found = gradients(moved(flow), images(flow, 4).to(DEVICE))
    for name, gradient in expected.items():
        error = (found[name].cpu() - gradient).norm() / gradient.norm().clamp(min=1)
        assert error < 1e-3, f"{name}: {error:.2g}"


@pytest.mark.parametrize("name", ["affine Glow", "1x1-coupling flow", "TRUMPET"])
def test_first_batch_initialises_as_on_the_cpu(name):
    flow = FLOWS[name]().train()
    for buffer in ("initialized", "low_initialized"):
        if hasattr(flow, buffer):
            getattr(flow, buffer).fill_(False)
    flow.load_state_dict(flow.state_dict())  # forgets that it was initialised
    other, x = moved(flow), images(flow, 8, torch.float64)
    expected = flow.latents(x)
    agree(other.latents(x.to(DEVICE)).abs(), expected.abs(), 1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_load_onto_the_device(name):
    flow, other = flowprior.load(WEIGHTS / name), flowprior.load(WEIGHTS / name, DEVICE)
    assert {tensor.device.type for tensor in other.state_dict().values()} == {DEVICE}
    x = flow.sample(4, 0.7, generator=torch.Generator().manual_seed(0))
    expected = flow.log_prob(x)
    agree(other.log_prob(x.to(DEVICE)), expected, atol=0.5, rtol=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_round_trip_of_shipped_weights(name):
    assert round_trip(flowprior.load(WEIGHTS / name, DEVICE)) < ROUND_TRIP


def test_unusual_images_come_back_as_on_the_cpu():
    name = WEIGHTS / "glow_layers_32"
    expected = unusual_round_trips(flowprior.load(name))
    for kind, error in unusual_round_trips(flowprior.load(name, DEVICE)).items():
        assert error < 20 * expected[kind] + ROUND_TRIP, kind


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU has no TF32")
@pytest.mark.parametrize("name", ["glow_layers_32", "glow_mnist"])
def test_convolutions_in_tf32_would_break_the_round_trip(name, tf32):
    """Why flowprior.flows switches it off: if this fails, there is no need to."""
    error = round_trip(flowprior.load(WEIGHTS / name, DEVICE))
    assert error > ROUND_TRIP, f"round trip {error:.2g} with TF32"


def round_trip(flow):
    x = flow.sample(8, 0.8, generator=torch.Generator().manual_seed(0))
    return worst_round_trip(flow, flow.to_unit_range(x).clamp(0, 1))


@pytest.mark.parametrize("preset", [Gaussianization.paper, Gaussianization.robust])
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (4, 512)], ids=["images", "vectors"])
def test_gaussianization_forward_and_backward(preset, shape):
    v = normal(*shape, dtype=torch.float64)
    v = (v + 0.1 * v.square()) * torch.exp(0.05 * v.square())
    found = []
    for device in ("cpu", DEVICE):
        x = v.to(device).requires_grad_()
        z = preset().to(device)(x)
        (gradient,) = torch.autograd.grad(z.sin().sum(), x)
        found.append((z, gradient))
    agree(found[1], found[0], 1e-6)


def test_gaussianization_in_float32():
    v = normal(2, 1, 32, 32).exp()
    agree(Gaussianization.robust()(v.to(DEVICE)), Gaussianization.robust()(v), 5e-3)


def test_gaussianization_keeps_broken_rows_apart():
    v = normal(4, 1, 16, 16, dtype=torch.float64)
    v[1, 0, 3, 3] = torch.nan
    v[2] = 1.0
    agree(Gaussianization.robust()(v.to(DEVICE)), Gaussianization.robust()(v), 1e-6)


@pytest.mark.parametrize(
    "metric",
    [
        psnr,
        ssim,
        lambda x, y: typicality(normal(3, 1, 32, 32).to(x)),
        lambda x, y: largest_patch_correlation(normal(3, 1, 32, 32).to(x)),
        lambda x, y: bits_per_dim(x.flatten(1).sum(1), 1024, 8),
        lambda x, y: coded_bits_per_dim(x.flatten(1).sum(1), x - 0.5, 5, (-0.5, 0.5), True),
    ],
    ids=["psnr", "ssim", "typicality", "correlation", "bits_per_dim", "coded_bits_per_dim"],
)
def test_metrics(metric):
    x, truth = uniform(3, 1, 32, 32, seed=1), uniform(3, 1, 32, 32, seed=2)
    agree(metric(x.to(DEVICE), truth.to(DEVICE)), metric(x, truth), 1e-3, rtol=1e-4)


@pytest.mark.usefixtures("rebuilt")
@pytest.mark.parametrize("memory_efficient", [True, False])
def test_training_in_bfloat16(memory_efficient):
    """The coupling nets alone run in bfloat16: gradients are near those of float32."""
    flow = Glow(3, 32, 2, 4, 32, "affine", memory_efficient=memory_efficient)
    flow = flow.to(DEVICE).train()
    x = uniform(8, 3, 32, 32).to(DEVICE) - 0.5
    flow.log_prob(x)
    with torch.no_grad():
        for number, parameter in enumerate(flow.parameters()):
            parameter.add_(0.02 * normal(*parameter.shape, seed=number).to(parameter))
    expected = gradients(flow, x)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    with torch.autocast(DEVICE, torch.bfloat16):
        z = flow.encode(x)[0]
        found = gradients(flow, x)
    assert z.dtype == torch.float32
    whole, other = (torch.cat([g.flatten() for g in many.values()]) for many in (expected, found))
    assert (other - whole).norm() < 0.1 * whole.norm()


@pytest.mark.slow
def test_compiled_log_prob():
    flow = make_perturbed_glow(1, 8, levels=1, steps=1, dtype=torch.float32, coupling="affine")
    flow = flow.to(DEVICE).requires_grad_(False)
    x = images(flow).to(DEVICE)
    found = torch.compile(flow.log_prob)(x)
    torch.testing.assert_close(found, flow.log_prob(x), atol=1e-2, rtol=1e-4)
