"""The 1×1-coupling flow against an independent reference, its Jacobian, and its promises."""

import numpy as np
import pytest
import torch

import flowprior
from flowprior.flows import Coupling1x1Flow
from tests.reference import coupling1x1 as reference

pytestmark = pytest.mark.usefixtures("rebuilt")

STEPS = {4: [2, 1], 8: [1, 2, 2], (8, 16): [1, 1, 2], 16: [1, 1, 2, 3]}

LIMITS = [
    {"log_scale_limit": 0.5, "shift_limit": 0.2},
    {"log_scale_limit": None, "shift_limit": None},
]


def perturbed(channels=1, size=8, scale=0.05, dtype=torch.float64, training=False, **options):
    torch.manual_seed(0)
    flow = Coupling1x1Flow(
        channels, size, **{"steps": STEPS[size], "hidden_channels": 6, **options}
    ).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    flow.initialized.fill_(True)
    return flow.train(training)


def images(flow, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    like = next(flow.parameters())
    return 2 * torch.rand(count, *flow.image_shape, generator=generator, dtype=like.dtype) - 1


def test_published_size():
    flow = Coupling1x1Flow(3, 32)
    assert sum(parameter.numel() for parameter in flow.parameters()) == 32_744_672
    assert [len(level.nets) for level in flow.levels] == [2, 2, 2, 4, 4]
    left = [gaussian is not None for gaussian in flow.priors]
    assert left == [False, False, True, True, True]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", STEPS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_round_trip_both_ways(size, limits, dtype, atol):
    flow = perturbed(2, size, dtype=dtype, **limits, scale=0.03)
    x = images(flow, 3)
    z, log_det = flow.encode(x)
    assert z.shape == x.shape
    assert (z - x).abs().max() > 0.1
    back, back_log_det = flow.decode(z)
    torch.testing.assert_close(back, x, atol=atol, rtol=0)
    torch.testing.assert_close(back_log_det, -log_det, atol=10 * atol, rtol=atol)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", [4, 8])
def test_log_det_is_that_of_the_full_jacobian(size, limits):
    flow = perturbed(1, size, **limits, scale=0.1).requires_grad_(False)
    x = images(flow, 1)
    z, log_det = flow.encode(x)
    for function, at, found in [
        (flow.encode, x, log_det),
        (flow.decode, z, flow.decode(z)[1]),
    ]:
        jacobian = torch.autograd.functional.jacobian(lambda t, f=function: f(t)[0], at)
        expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel()))[1]
        assert abs(expected) > 0.1
        torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("size", STEPS)
def test_equals_the_slow_reference(size, limits):
    flow = perturbed(2, size, **limits, scale=0.1)
    x = images(flow, 2)
    z, log_det = flow.encode(x)
    expected = reference.log_prob(
        flow.state_dict(), flow.image_shape, STEPS[size], tuple(limits.values()), x.numpy()
    )
    np.testing.assert_allclose(z.detach(), expected[0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_det.detach(), expected[1], rtol=1e-10)
    np.testing.assert_allclose(flow.log_prob(x).detach(), expected[2], rtol=1e-10)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_memory_flat_gradients_equal_autograd(method, limits):
    flow = perturbed(1, 16, **limits, scale=0.03)
    found = {}
    for flat in (True, False):
        flow.memory_efficient = flat
        x = images(flow, 3).requires_grad_()
        flow.zero_grad()
        y, log_det = getattr(flow, method)(x)
        weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view_as(y[0])
        ((weights * y + y.square()).sum() + (log_det + 0.1 * log_det.square()).sum()).backward()
        named = dict(flow.named_parameters())
        found[flat] = {"x": x.grad, **{name: value.grad for name, value in named.items()}}
    for name, expected in found[False].items():
        assert (found[True][name] - expected).norm() <= 1e-8 * expected.norm(), name


def test_first_training_batch_normalises_states_and_hidden_maps():
    torch.manual_seed(0)
    flow = Coupling1x1Flow(1, 8, steps=STEPS[8], hidden_channels=6).double().train()
    x = 0.3 * images(flow, 64) + 0.2
    seen = []
    for level in flow.levels:
        for net in level.nets:
            net.register_forward_hook(lambda net, x, _: seen.append(net.norm(net.conv1(*x))))
    flow.encode(x)
    assert flow.initialized
    seen.clear()
    z, _ = flow.encode(x)  # the nets end in zeros, so that states are the normalised ones
    assert len(seen) == sum(STEPS[8])
    for hidden in seen:
        values = hidden.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros_like(values[:, 0]))
        torch.testing.assert_close(values.var(1, correction=0), torch.ones_like(values[:, 0]))
    torch.testing.assert_close(z.square().mean().item(), 1.0, atol=1e-5, rtol=0)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    flow.encode(5 * x)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_constant_channels_stay_finite():
    torch.manual_seed(0)
    flow = Coupling1x1Flow(1, 16, steps=STEPS[16], hidden_channels=6).train()
    x = torch.full((4, 1, 16, 16), -1.0)
    flow.log_prob(x).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())
    torch.testing.assert_close(flow.decode(flow.encode(x)[0])[0], x, atol=1e-4, rtol=0)


def test_weights_survive_saving(tmp_path):
    flow = perturbed(1, 8, dtype=torch.float32)
    flowprior.save(flow, tmp_path / "w")
    loaded = flowprior.load(tmp_path / "w")
    x = images(flow, 2)
    assert torch.equal(loaded.encode(x)[0], flow.encode(x)[0])
    assert loaded.arguments == flow.arguments


@pytest.mark.parametrize(
    ("changed", "option"),
    [
        ({"image_size": 12}, "image_size"),
        ({"steps": []}, "steps"),
        ({"steps": [1, 0, 1]}, r"steps\[1\]"),
        ({"hidden_channels": 0}, "hidden_channels"),
        ({"in_channels": 0}, "in_channels"),
        ({"log_scale_limit": 0}, "log_scale_limit"),
        ({"shift_limit": 0}, r"shift_limit must be in \[0\.1, 1000\], or null, got 0"),
        ({"data_range": (1, 1)}, "data_range"),
    ],
)
def test_constructor_names_the_option(changed, option):
    options = {"in_channels": 1, "image_size": 16, "steps": [1, 1, 1], "hidden_channels": 4}
    with pytest.raises(ValueError, match=option):
        Coupling1x1Flow(**{**options, **changed})
