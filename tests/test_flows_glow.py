import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.flows import Glow, standard_normal_log_prob
from tests.conftest import make_perturbed_glow
from tests.reference import glow as reference

pytestmark = pytest.mark.usefixtures("rebuilt")

COUPLINGS = ["additive", "affine"]
SIZES = [(8, 8), (4, 12), (16, 8)]


def images(flow, batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    like = next(flow.parameters())
    return torch.rand(batch, *flow.image_shape, generator=generator, dtype=like.dtype) - 0.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory_efficient", [True, False])
@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_round_trip_both_ways(perturbed_glow, coupling, memory_efficient, size, dtype, atol):
    flow = perturbed_glow(
        3,
        size,
        levels=2,
        steps=4,
        coupling=coupling,
        memory_efficient=memory_efficient,
        scale=0.05,
        dtype=dtype,
    )
    x = images(flow, 3)
    z, log_det = flow.encode(x)
    back, back_log_det = flow.decode(z)
    assert z.shape == x.shape
    assert (z - x).abs().max() > 0.1  # The flow does something.
    torch.testing.assert_close(back, x, atol=atol, rtol=0)
    torch.testing.assert_close(back_log_det, -log_det, atol=10 * atol, rtol=atol)

    latent = torch.randn(3, *flow.latent.shape, dtype=dtype)
    x, log_det = flow.decode(latent)
    again, again_log_det = flow.encode(x)
    torch.testing.assert_close(again, latent, atol=atol, rtol=0)
    torch.testing.assert_close(again_log_det, -log_det, atol=10 * atol, rtol=atol)


@settings(max_examples=15, deadline=None)
@given(
    channels=st.integers(1, 3),
    levels=st.integers(1, 3),
    blocks=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    steps=st.integers(1, 3),
    coupling=st.sampled_from(COUPLINGS),
    seed=st.integers(0, 2**31),
)
def test_round_trip_at_any_shape(channels, levels, blocks, steps, coupling, seed):
    size = tuple(side * 2**levels for side in blocks)
    flow = make_perturbed_glow(
        channels, size, levels=levels, steps=steps, coupling=coupling, seed=seed
    )
    x = images(flow, 2, seed)
    z, log_det = flow.encode(x)
    back, back_log_det = flow.decode(z)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(back_log_det, -log_det, atol=1e-8, rtol=1e-9)


@pytest.mark.parametrize("size", [(4, 4), (4, 8)])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_log_det_is_that_of_the_full_jacobian(perturbed_glow, coupling, size):
    flow = perturbed_glow(1, size, levels=2, steps=2, coupling=coupling).requires_grad_(False)
    x = images(flow, 1)
    dimensions = x.numel()

    jacobian = torch.autograd.functional.jacobian(lambda x: flow.encode(x)[0], x)
    expected = torch.linalg.slogdet(jacobian.reshape(dimensions, dimensions))[1]
    z, log_det = flow.encode(x)
    assert abs(expected) > 0.1
    torch.testing.assert_close(log_det[0], expected, rtol=1e-10, atol=1e-10)

    jacobian = torch.autograd.functional.jacobian(lambda z: flow.decode(z)[0], z)
    expected = torch.linalg.slogdet(jacobian.reshape(dimensions, dimensions))[1]
    torch.testing.assert_close(flow.decode(z)[1][0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
@pytest.mark.parametrize(
    ("coupling", "limits"),
    [
        ("additive", (0.5, None)),
        ("additive", (0.5, 0.3)),
        ("affine", (0.5, 0.3)),
        ("affine", (2.0, 8.0)),
        ("affine", (None, None)),
    ],
)
def test_equals_the_slow_reference(perturbed_glow, coupling, limits, size):
    options = dict(zip(("log_scale_limit", "shift_limit"), limits, strict=True))
    flow = perturbed_glow(2, size, levels=2, steps=2, coupling=coupling, scale=0.2, **options)
    x = images(flow, 2)
    z, log_det = flow.encode(x)
    expected = reference.log_prob(
        flow.state_dict(), flow.image_shape, 2, 2, coupling, limits, x.numpy()
    )
    np.testing.assert_allclose(z.detach(), expected[0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_det.detach(), expected[1], rtol=1e-10)
    np.testing.assert_allclose(flow.log_prob(x).detach(), expected[2], rtol=1e-10)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_block_of_the_canvas_holds_all_levels(perturbed_glow, levels):
    channels, side = 2, 2**levels
    flow = perturbed_glow(channels, (2 * side, 3 * side), levels=levels, steps=1)
    x = images(flow, 1)
    z = flow.encode(x)[0][0]
    seen = torch.zeros_like(z)
    positions = reference.canvas_positions(flow.image_shape, levels)
    for level, prior in enumerate(flow.priors):
        # Only what leaves at this level depends on the mean of this level's prior.
        mean = prior.mean if level == levels - 1 else prior.convolution.bias
        before = mean.detach().clone()
        with torch.no_grad():
            mean.add_(1)
            mask = (flow.encode(x)[0][0] != z).double()
            mean.copy_(before)
        seen += mask
        blocks = mask.unfold(1, side, side).unfold(2, side, side).sum((0, 3, 4))
        last = level == levels - 1
        entries = channels * side**2 // 2 ** (level if last else level + 1)
        torch.testing.assert_close(blocks, torch.full((2, 3), float(entries)).double())
        expected = torch.zeros(z.numel(), dtype=torch.float64)
        expected[torch.from_numpy(positions[level].ravel())] = 1
        torch.testing.assert_close(mask.flatten(), expected)
    torch.testing.assert_close(seen, torch.ones_like(z))


def test_log_prob_integrates_the_latent_density(perturbed_glow):
    z = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(standard_normal_log_prob(z), expected)
    flow = perturbed_glow(2, 4, levels=2, steps=2)
    x, log_det = flow.decode(z)
    torch.testing.assert_close(flow.log_prob(x), expected - log_det)


def test_log_prob_and_latent_do_not_depend_on_the_batch(perturbed_glow):
    flow = perturbed_glow(1, 8, levels=2, steps=3, coupling="affine")
    x = images(flow, 4)
    z, log_det = flow.encode(x)
    for row in range(4):
        one_z, one_log_det = flow.encode(x[row : row + 1])
        torch.testing.assert_close(one_z[0], z[row])
        torch.testing.assert_close(one_log_det[0], log_det[row])


class TestSample:
    def test_shape_and_seed(self, perturbed_glow):
        flow = perturbed_glow(3, (8, 4), levels=2, steps=2, dtype=torch.float32)
        first, second, other = (
            flow.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
        )
        assert first.shape == (5, 3, 8, 4)
        assert first.dtype == torch.float32
        assert not first.requires_grad
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_is_the_decoded_latent_times_the_temperature(self, perturbed_glow):
        flow = perturbed_glow(1, 8, levels=2, steps=2)
        z = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        drawn = flow.sample(2, 0.7, generator=torch.Generator().manual_seed(9))
        torch.testing.assert_close(drawn, flow.decode(0.7 * z)[0].detach())

    def test_temperature_zero_gives_one_image(self, perturbed_glow):
        flow = perturbed_glow(1, 8, levels=2, steps=2)
        drawn = flow.sample(3, temperature=0)
        torch.testing.assert_close(drawn[1:], drawn[:1].expand(2, -1, -1, -1))
        torch.testing.assert_close(drawn[:1], flow.decode(torch.zeros_like(drawn[:1]))[0].detach())

    @pytest.mark.parametrize(("n", "temperature"), [(1, -0.1), (0, 1.0)])
    def test_rejects_bad_arguments(self, perturbed_glow, n, temperature):
        flow = perturbed_glow(1, 4, levels=1, steps=1)
        with pytest.raises(ValueError, match=r"n .* temperature"):
            flow.sample(n, temperature)


class TestErrors:
    @pytest.mark.parametrize(
        ("changed", "option"),
        [
            ({"image_size": 12}, "image_size"),
            ({"image_size": (16, 20)}, "image_size"),
            ({"image_size": 0}, "image_size"),
            ({"levels": 0}, "levels"),
            ({"steps": 0}, "steps"),
            ({"in_channels": 0}, "in_channels"),
            ({"hidden_channels": -2}, "hidden_channels"),
            ({"coupling": "cubic"}, "coupling"),
            ({"data_range": (1, 1)}, "data_range"),
            ({"data_range": (math.nan, 1)}, "data_range"),
        ],
    )
    def test_constructor_names_the_option(self, changed, option):
        options = {"in_channels": 1, "image_size": 16, "levels": 3, "steps": 1}
        with pytest.raises(ValueError, match=option):
            Glow(**{**options, "hidden_channels": 4, **changed})

    @pytest.mark.parametrize("method", ["encode", "decode"])
    @pytest.mark.parametrize(
        "shape", [(2, 1, 8, 8), (2, 3, 8, 4), (2, 3, 16, 16), (3, 8, 8), (1, 2, 3, 8, 8)]
    )
    def test_wrong_shape(self, perturbed_glow, method, shape):
        flow = perturbed_glow(3, 8, levels=2, steps=1)
        name = {"encode": "x", "decode": "z"}[method]
        with pytest.raises(ValueError, match=rf"{name} must .*\(B, 3, 8, 8\)") as e:
            getattr(flow, method)(torch.zeros(shape, dtype=torch.float64))
        assert str(shape) in str(e.value)

    def test_integer_images(self, perturbed_glow):
        flow = perturbed_glow(1, 8, levels=2, steps=1)
        with pytest.raises(ValueError, match=r"x .*torch.uint8"):
            flow.encode(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_to_unit_range_does_not_clamp():
    flow = Glow(1, 4, levels=1, steps=1, hidden_channels=2, data_range=(-1, 3))
    values = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    torch.testing.assert_close(flow.to_unit_range(values), torch.tensor([-0.5, 0.0, 0.5, 1.0]))


def test_convolutions_are_not_in_tf32():
    assert torch.backends.cudnn.allow_tf32 is False
