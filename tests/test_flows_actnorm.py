import pytest
import torch

from flowprior.flows import Glow


def fresh(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    return Glow(1, 8, **{"levels": 2, "steps": 2, "hidden_channels": 4, **options}).to(dtype)


def batch(seed=1, n=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=generator, dtype=dtype) * 0.3 + 0.1


def snapshot(flow):
    return {name: value.clone() for name, value in flow.state_dict().items()}


def assert_same(flow, before):
    for name, value in flow.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_first_training_batch_leaves_whitened_channels(coupling):
    flow = fresh(dtype=torch.float64, coupling=coupling).train()
    x = batch(n=64, dtype=torch.float64)
    before = snapshot(flow)
    assert not flow.initialized
    flow.encode(x)
    assert flow.initialized
    h = torch.nn.functional.pixel_unshuffle(x, 2)
    bias, log_scale = (getattr(flow.levels[0].convolutions, n)[0] for n in ("bias", "log_scale"))
    torch.testing.assert_close(-bias, h.mean((0, 2, 3)))
    scale = (12 * torch.tanh(log_scale / 12)).exp()
    torch.testing.assert_close(1 / scale, h.std((0, 2, 3), correction=0))
    changed = {name for name, value in flow.state_dict().items() if (value != before[name]).any()}
    assert changed == {"initialized"} | {
        f"levels.{level}.convolutions.{name}"
        for level in range(2)
        for name in ("bias", "log_scale")
    }


def test_first_training_batch_gives_latents_of_unit_variance():
    # One level, networks that start at zero and rotations: the last ActNorm's output, rotated.
    flow = fresh(dtype=torch.float64, levels=1, steps=3).train()
    z, _ = flow.encode(batch(n=64, dtype=torch.float64))
    torch.testing.assert_close(z.square().mean().item(), 1.0, atol=1e-5, rtol=0)


def test_second_batch_changes_nothing():
    flow = fresh().train()
    flow.encode(batch())
    before = snapshot(flow)
    flow.encode(5 * batch(2))
    assert_same(flow, before)


def test_never_in_evaluation_mode_nor_by_decoding():
    flow = fresh().eval()
    before = snapshot(flow)
    flow.encode(batch())
    flow.log_prob(batch())
    flow.sample(2)
    flow.train().decode(batch())
    assert_same(flow, before)
    flow.encode(batch())
    assert flow.initialized


def test_survives_the_state_dict():
    flow = fresh().train()
    flow.encode(batch())
    before = snapshot(flow)
    resumed = fresh(seed=5).train()
    resumed.load_state_dict(flow.state_dict())
    resumed.encode(5 * batch(2))
    assert_same(resumed, before)


def test_state_dict_of_a_fresh_flow_brings_the_initialisation_back():
    untouched = fresh().state_dict()
    flow = fresh().train()
    flow.encode(batch())
    flow.load_state_dict(untouched)
    assert not flow.initialized
    flow.encode(batch())
    assert flow.initialized


@pytest.mark.parametrize("memory_efficient", [True, False])
@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize("kind", ["zero", "constant", "one pixel phase"])
def test_constant_channels_stay_finite(kind, coupling, memory_efficient):
    flow = fresh(coupling=coupling, memory_efficient=memory_efficient).train()
    x = batch() if kind == "one pixel phase" else torch.zeros(4, 1, 8, 8)
    if kind == "constant":
        x += 0.37
    x[:, :, ::2, ::2] = x[0, 0, 0, 0]  # One channel after the squeeze.
    x.requires_grad_()
    z, log_det = flow.encode(x)
    loss = -flow.log_prob(x).mean()
    loss.backward()
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert loss.isfinite()
    for name, tensor in [("x", x), *flow.named_parameters()]:
        assert tensor.grad.isfinite().all(), name
    with torch.no_grad():
        # Inputs of a channel without variance are scaled by at most 1/min_std = 1000.
        torch.testing.assert_close(flow.decode(z)[0], x, atol=1e-4, rtol=0)
