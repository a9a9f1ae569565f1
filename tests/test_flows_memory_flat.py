import gc
from collections import Counter

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from flowprior.flows.memory_flat import KEPT_BYTES, activation_bytes, run_chain

pytestmark = pytest.mark.usefixtures("rebuilt")

COUPLINGS = ["additive", "affine"]
METHODS = ["encode", "decode"]


def loss_of(flow, x, method):
    """A sum over the batch in which every output has its own weight."""
    y, log_det = getattr(flow, method)(x)
    weight = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view_as(y[0])
    return (weight * y + 0.5 * y.square()).sum() - 0.7 * (log_det + 0.01 * log_det.square()).sum()


def gradients(flow, x, method="encode", autocast=False):
    """Gradients of the input and of every parameter, by name."""
    x = x.clone().requires_grad_()
    flow.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = loss_of(flow, x, method)
    loss.backward()
    named = {name: parameter.grad for name, parameter in flow.named_parameters()}
    return {"input": x.grad, **named}


def both(flow, x, method="encode", autocast=False):
    flow.memory_efficient = False
    plain = gradients(flow, x, method, autocast)
    flow.memory_efficient = True
    return gradients(flow, x, method, autocast), plain


def distance(found, expected):
    found, expected = (
        torch.cat([value.double().flatten() for value in named.values()])
        for named in (found, expected)
    )
    return ((found - expected).norm() / expected.norm()).item()


def latent(flow, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(flow.parameters()).dtype
    return 0.5 * torch.randn(batch, *flow.image_shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("size", [8, (4, 12)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("shift_limit", [0.2, None])
def test_gradients_equal_autograd_in_float64(perturbed_glow, shift_limit, coupling, method, size):
    flow = perturbed_glow(2, size, levels=2, steps=4, coupling=coupling, shift_limit=shift_limit)
    flat, plain = both(flow, latent(flow), method)
    for name, expected in plain.items():
        assert expected.norm() > 0, name
        assert (flat[name] - expected).norm() <= 1e-9 * expected.norm(), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_gradients_equal_autograd_in_float32_at_full_depth(perturbed_glow, coupling, method):
    flow = perturbed_glow(
        1, 16, levels=4, steps=32, coupling=coupling, scale=0.02, dtype=torch.float32
    )
    flat, plain = both(flow, latent(flow), method)
    for name, expected in plain.items():
        assert (flat[name] - expected).norm() <= 1e-3 * expected.norm(), name


# Measured: 1e-5 with anchors; 1e-2 to 3e-2 without; 1e-2 to 6e-2 between bfloat16 and float32.
@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_needs_its_anchors(perturbed_glow, method):
    flow = perturbed_glow(1, 16, levels=2, steps=48, dtype=torch.float32)
    x = latent(flow)
    flat, plain = both(flow, x, method, autocast=True)
    assert distance(flat, plain) < 1e-3
    flow.anchor_layers = 2000
    without = gradients(flow, x, method, autocast=True)
    assert not distance(without, plain) < 3e-3


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_gradients_of_affine_couplings_equal_autograd(perturbed_glow, method):
    flow = perturbed_glow(
        1, 16, levels=2, steps=16, coupling="affine", scale=0.04, dtype=torch.float32
    )
    flat, plain = both(flow, latent(flow), method, autocast=True)
    assert distance(flat, plain) < 2e-3
    exact, _ = both(flow, latent(flow), method)
    assert 1e-4 < distance(plain, exact) < 2e-2  # What bfloat16 itself costs.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory_efficient", [True, False])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_autocast_keeps_state_and_log_det_in_float32(
    perturbed_glow, coupling, memory_efficient, method
):
    flow = perturbed_glow(
        1,
        16,
        levels=2,
        steps=4,
        coupling=coupling,
        memory_efficient=memory_efficient,
        dtype=torch.float32,
    )
    x = latent(flow)
    exact, _ = getattr(flow, method)(x)
    with torch.autocast("cpu", torch.bfloat16):
        y, log_det = getattr(flow, method)(x)
        inverse = flow.decode if method == "encode" else flow.encode
        back, back_log_det = inverse(y)
    assert {y.dtype, log_det.dtype, back.dtype, back_log_det.dtype} == {torch.float32}
    assert not torch.equal(y, exact)  # The networks did run in bfloat16.
    torch.testing.assert_close(y, exact, atol=0.1, rtol=0.1)
    torch.testing.assert_close(back, x, atol=0.05, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_two_accumulated_micro_batches_equal_one_batch(perturbed_glow, method):
    flow = perturbed_glow(1, 8, levels=2, steps=3, coupling="affine")
    x = latent(flow, batch=4)
    whole = gradients(flow, x, method)
    whole = {name: grad.clone() for name, grad in whole.items() if name != "input"}
    flow.zero_grad()
    for part in x.split(2):
        loss_of(flow, part, method).backward()
    for name, parameter in flow.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_frozen_parameters_give_input_gradients_only(perturbed_glow, coupling, method):
    flow = perturbed_glow(1, 8, levels=2, steps=3, coupling=coupling)
    x = latent(flow)
    expected = gradients(flow, x, method)["input"]
    flow.zero_grad(set_to_none=True)
    flow.requires_grad_(False)
    for _ in range(2):  # The second pass uses cached matrices.
        found = gradients(flow, x, method)
        torch.testing.assert_close(found.pop("input"), expected, rtol=1e-9, atol=1e-9)
        assert all(grad is None for grad in found.values())


def test_some_frozen_parameters(perturbed_glow):
    flow = perturbed_glow(1, 8, levels=2, steps=3)
    x = latent(flow)
    expected = gradients(flow, x)
    flow.zero_grad(set_to_none=True)
    for parameter in [*flow.levels[0].parameters(), *flow.levels[1].nets[1].parameters()]:
        parameter.requires_grad_(False)
    found = gradients(flow, x)
    for name, parameter in flow.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-9)
        else:
            assert found[name] is None
    torch.testing.assert_close(found["input"], expected["input"], rtol=1e-9, atol=1e-9)


def test_images_without_gradients_still_give_parameter_gradients(perturbed_glow):
    flow = perturbed_glow(1, 8, levels=2, steps=3)
    x = latent(flow)
    expected = gradients(flow, x)
    flow.zero_grad()
    loss_of(flow, x, "encode").backward()
    for name, parameter in flow.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_second_derivative_is_refused_where_activations_are_rebuilt(perturbed_glow, frozen):
    flow = perturbed_glow(1, 8, levels=2, steps=2)
    x = latent(flow).requires_grad_()
    flow.requires_grad_(not frozen)
    with pytest.raises(RuntimeError, match=r"set flow\.memory_efficient = False to di"):
        torch.autograd.grad(loss_of(flow, x, "encode") + x.square().sum(), x, create_graph=True)
    flow.kept_bytes = KEPT_BYTES
    (gradient,) = torch.autograd.grad(loss_of(flow, x, "encode"), x, create_graph=True)
    gradient.sum().backward()
    assert x.grad.norm() > 0


class LiveBytes:
    """Counts the bytes that autograd keeps for backward passes, parameters aside."""

    def __init__(self, flow):
        self.parameters = {parameter.data_ptr() for parameter in flow.parameters()}
        self.holders = Counter()
        self.sizes = {}
        self.peak = 0

    def pack(self, tensor):
        return Saved(tensor, self)

    def update(self):
        self.peak = max(self.peak, sum(self.sizes.values()))


class Saved:
    def __init__(self, tensor, count):
        self.tensor = tensor.detach()
        self.count = count
        self.key = tensor.untyped_storage().data_ptr()
        if self.key not in count.parameters:
            count.holders[self.key] += 1
            count.sizes[self.key] = tensor.untyped_storage().nbytes()
            count.update()

    def __del__(self):
        if self.key in self.count.holders:
            self.count.holders[self.key] -= 1
            if not self.count.holders[self.key]:
                del self.count.holders[self.key], self.count.sizes[self.key]


def peak_saved_bytes(flow, x, method):
    gc.collect()
    count = LiveBytes(flow)
    x = x.clone().requires_grad_()
    with saved_tensors_hooks(count.pack, lambda saved: saved.tensor):
        loss_of(flow, x, method).backward()
    return count.peak


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_saved_activations_are_flat_in_depth(perturbed_glow, coupling, method):
    peaks = {}
    for memory_efficient in (True, False):
        for steps in (4, 16):
            flow = perturbed_glow(
                1,
                32,
                levels=2,
                steps=steps,
                coupling=coupling,
                scale=0.02,
                memory_efficient=memory_efficient,
                dtype=torch.float32,
            )
            peaks[memory_efficient, steps] = peak_saved_bytes(flow, latent(flow, 64), method)
    assert peaks[True, 16] <= 1.1 * peaks[True, 4]
    assert peaks[False, 16] > 3.5 * peaks[False, 4]
    assert peaks[True, 4] < peaks[False, 4]


def test_small_activations_are_kept(perturbed_glow):
    flow = perturbed_glow(1, 32, levels=2, steps=4, memory_efficient=False, dtype=torch.float32)
    x = latent(flow, 8)
    plain = peak_saved_bytes(flow, x, "decode")
    flow.memory_efficient = True
    rebuilt = peak_saved_bytes(flow, x, "decode")
    flow.kept_bytes = KEPT_BYTES
    assert peak_saved_bytes(flow, x, "decode") == plain > 2 * rebuilt
    many = latent(flow, 1024)
    assert peak_saved_bytes(flow, many, "decode") < 200 * rebuilt


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("hidden", [16, 64])
def test_estimate_of_activations(perturbed_glow, hidden, coupling):
    flow = perturbed_glow(
        1, 32, levels=1, steps=8, hidden_channels=hidden, coupling=coupling, dtype=torch.float32
    )
    flow.memory_efficient = False
    x = latent(flow, 16)
    state = torch.nn.functional.pixel_unshuffle(x, 2)
    (level,) = flow.levels
    layers, _ = level._layers(state, run_chain)
    estimate = activation_bytes(layers, state)
    assert 0.7 < estimate / peak_saved_bytes(flow, x, "decode") < 3
