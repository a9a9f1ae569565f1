"""Conditional flows: HINT and Glow with a condition."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd.functional import jacobian

import flowprior
from flowprior.flows import ConditionalHint, Glow
from flowprior.flows.hint import parts
from tests.test_flows_memory_flat import peak_saved_bytes

pytestmark = pytest.mark.usefixtures("rebuilt")

VECTORS = {"in_channels": 5, "condition_shape": (3,), "depth": 3}
IMAGES = {"in_channels": 1, "condition_shape": (2, 4, 4), "image_size": 4, "squeezes": 1}
HINTS = {
    "vectors": VECTORS,
    "numbers": {"in_channels": 1, "condition_shape": (1,)},
    "images": {**IMAGES, "depth": 2},
    "shared": {**IMAGES, "depth": 2, "shared": True},
    "not squeezed": {**IMAGES, "in_channels": 3, "squeezes": 0},
    "free": {**VECTORS, "log_scale_limit": None, "shift_limit": None},
}
GLOWS = {
    "Glow, image": {"condition_shape": (2, 8, 4)},
    "Glow, vector": {"condition_shape": (3,), "coupling": "additive"},
}


def make(name, scale=0.2, dtype=torch.float64, **options):
    """A flow whose every parameter is moved off its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in HINTS:
            small = {"steps": 2, "hidden_channels": 6, **HINTS[name], **options}
            flow = ConditionalHint(**small)
        else:
            small = {"levels": 2, "steps": 2, "hidden_channels": 6, "coupling": "affine"}
            flow = Glow(1, (8, 4), **{**small, **GLOWS[name], **options})
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
    flow.initialized.fill_(True)
    return flow.to(dtype).eval()


def pairs(flow, count=3, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = flow.image_shape, flow.condition_shape
    return [torch.randn(count, *shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", [*HINTS, *GLOWS])
def test_round_trip(name, dtype, atol):
    flow = make(name, dtype=dtype)
    x, y = pairs(flow, dtype=dtype)
    z, log_det = flow.encode(x, y)
    assert z.shape == x.shape
    assert (z - x).abs().max() > 0.1
    back, back_log_det = flow.decode(z, y)
    torch.testing.assert_close(back, x, atol=atol, rtol=0)
    torch.testing.assert_close(back_log_det, -log_det, atol=10 * atol, rtol=0)
    torch.testing.assert_close(flow.generate(z, y), back)
    torch.testing.assert_close(flow.latents(x, y), z)
    assert not torch.allclose(flow.encode(x, y + 1)[0], z)


@pytest.mark.parametrize("name", HINTS)
def test_round_trip_of_both_lanes(name):
    flow = make(name)
    x, y = pairs(flow)
    there = flow.encode_joint(y, x)
    back = flow.decode_joint(there.y, there.x)
    torch.testing.assert_close(back.x, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(back.y, y, atol=1e-9, rtol=0)
    torch.testing.assert_close(back.x_log_det, -there.x_log_det)
    torch.testing.assert_close(back.y_log_det, -there.y_log_det)
    torch.testing.assert_close(flow.encode(x, y), (there.x, there.x_log_det))


@pytest.mark.parametrize("name", [*HINTS, *GLOWS])
def test_log_det_is_that_of_the_jacobian_of_images(name):
    flow = make(name).requires_grad_(False)
    x, y = pairs(flow, 1)
    n = x.numel()
    for method, given in (("encode", x), ("decode", flow.latents(x, y))):
        found, log_det = getattr(flow, method)(given, y)
        full = jacobian(lambda x, method=method: getattr(flow, method)(x, y)[0], given)
        expected = torch.linalg.slogdet(full.reshape(n, n))[1]
        assert found.shape == given.shape
        torch.testing.assert_close(log_det[0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", HINTS)
def test_the_joint_jacobian_is_block_triangular(name):
    flow = make(name, steps=3).requires_grad_(False)
    x, y = pairs(flow, 1)
    n, m = x.numel(), y.numel()
    (yy, yx), (xy, xx) = jacobian(lambda y, x: flow.encode_joint(y, x)[:2], (y, x))
    yy, xx, xy, yx = yy.view(m, m), xx.view(n, n), xy.view(n, m), yx.view(m, n)
    assert (yx == 0).all()
    joint = flow.encode_joint(y, x)
    torch.testing.assert_close(torch.linalg.slogdet(yy)[1], joint.y_log_det[0])
    torch.testing.assert_close(torch.linalg.slogdet(xx)[1], joint.x_log_det[0])
    assert (xy != 0).all()
    assert (xx != 0).all()


def coupling_jacobian(depth, channels=8):
    """That of the one HINT coupling of a lane, without its convolution."""
    lane = make("vectors", in_channels=channels, depth=depth, steps=1, hidden_channels=32).x_lane
    lane.requires_grad_(False)

    def couple(x):
        x = x[None, :, None, None]
        for layer in lane._couplings(0):
            x = layer.forward(x)[0]
        return x.flatten()

    return jacobian(
        couple, torch.randn(channels, generator=torch.Generator().manual_seed(0)).double()
    )


def test_a_hint_coupling_that_splits_to_the_end_is_a_full_triangle():
    full = coupling_jacobian(depth=3)
    assert (full.triu(1) == 0).all()
    assert (full.tril()[torch.ones(8, 8).tril() > 0] != 0).all()
    halves = coupling_jacobian(depth=1) != 0
    assert not halves[:4, :4].logical_xor(torch.eye(4).bool()).any()
    assert halves[4:, :4].all()


@pytest.mark.parametrize(("channels", "depth"), [(1, 3), (2, 1), (5, 9), (8, 2), (7, 2)])
def test_parts_split_to_the_depth(channels, depth):
    def slow(start, stop, left):
        if not left or stop - start < 2:
            return []
        middle = (start + stop) // 2
        inner = slow(start, middle, left - 1) + slow(middle, stop, left - 1)
        return [*inner, (start, middle, stop)]

    assert [p[:3] for p in parts(0, channels, depth)] == slow(0, channels, depth)


def test_shared_networks_are_one_for_each_level():
    count = {
        s: sum(p.numel() for p in make("shared", shared=s).parameters()) for s in (True, False)
    }
    assert count[True] < count[False]
    flow = make("shared", in_channels=2, depth=3)
    assert [len(nets) for nets in flow.x_lane.nets] == [3, 3]
    assert [len(nets) for nets in make("images", in_channels=2, depth=3).x_lane.nets] == [7, 7]


def test_the_density_of_x_given_y_integrates_to_one():
    flow = make("vectors", in_channels=2, condition_shape=(1,), steps=3).requires_grad_(False)
    side = torch.linspace(-14, 14, 561, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    for value in (-1.0, 2.0):
        density = flow.log_prob(x, torch.full((len(x), 1), value).double()).exp()
        assert (density.sum() * (side[1] - side[0]) ** 2).item() == pytest.approx(1, abs=1e-3)
    y = side[:, None]
    total = flow.condition_log_prob(y).exp().sum() * (side[1] - side[0])
    assert total.item() == pytest.approx(1, abs=1e-3)


def gradients(flow, method, memory_efficient):
    flow.memory_efficient = memory_efficient
    flow.zero_grad()
    x, y = (value.requires_grad_() for value in pairs(flow))
    out, log_det = getattr(flow, method)(x, y)
    weight = torch.linspace(-1, 1, out[0].numel()).double().view_as(out[0])
    ((weight * out + 0.5 * out.square()).sum() - 0.7 * log_det.square().sum()).backward()
    named = {name: p.grad for name, p in flow.named_parameters() if p.grad is not None}
    return {"x": x.grad, "y": y.grad, **{name: grad.clone() for name, grad in named.items()}}


@pytest.mark.parametrize("method", ["encode", "decode"])
@pytest.mark.parametrize("name", [*HINTS, *GLOWS])
def test_memory_flat_gradients_equal_autograd(name, method):
    flow = make(name, steps=3)
    plain, flat = (gradients(flow, method, efficient) for efficient in (False, True))
    assert plain.keys() == flat.keys()
    assert plain["y"].norm() > 0
    for key, expected in plain.items():
        assert (flat[key] - expected).norm() <= 1e-9 * max(expected.norm(), 1e-6), key


@pytest.mark.parametrize("name", ["images", "Glow, image"])
def test_saved_activations_do_not_grow_with_the_networks(name):
    peaks = {}
    for efficient in (True, False):
        for steps in (2, 8):
            flow = make(name, steps=steps, hidden_channels=64, memory_efficient=efficient)
            x, y = pairs(flow, 32)
            given = SimpleNamespace(parameters=flow.parameters, encode=lambda x: flow.encode(x, y))  # noqa: B023
            peaks[efficient, steps] = peak_saved_bytes(given, x, "encode")
    assert peaks[False, 8] > 3 * peaks[False, 2]
    assert peaks[True, 8] < 0.5 * peaks[False, 2]


def test_both_lanes_are_kept_or_rebuilt_as_a_whole():
    flow = make("images", steps=8, hidden_channels=64)
    x, y = pairs(flow, 32)
    given = SimpleNamespace(parameters=flow.parameters, encode=lambda x: flow.encode(x, y))
    rebuilt = peak_saved_bytes(given, x, "encode")
    flow.memory_efficient = False
    kept = peak_saved_bytes(given, x, "encode")
    flow.memory_efficient, flow.kept_bytes = True, kept // 4  # more than a step, less than a lane
    assert peak_saved_bytes(given, x, "encode") == rebuilt
    flow.kept_bytes = 2 * kept
    assert peak_saved_bytes(given, x, "encode") == kept


@pytest.mark.parametrize("name", ["vectors", "images", "Glow, image"])
def test_act_norms_are_set_by_the_first_training_batch(name):
    flow = make(name, scale=0)
    flow.initialized.fill_(False)
    flow._initialized = None
    x, y = pairs(flow, 64)
    x, y = 5 + 3 * x, 7 * y - 2
    y[:, :1] = 1.0  # a constant channel
    flow.train().encode(x, y)
    assert flow.initialized
    z, log_det = flow.eval().encode(x, y)
    assert z.mean().abs() < 1e-6
    assert (z.std() - 1).abs() < 0.05
    assert log_det.isfinite().all()


@pytest.mark.parametrize("count", [1, 5, 17, 33])
@pytest.mark.parametrize("name", ["vectors", "images", "Glow, vector"])
def test_rows_are_those_of_any_batch(name, count):
    flow = make(name).requires_grad_(False)
    x, y = pairs(flow, 33)
    whole, log_det = flow.encode(x, y)
    found, own = flow.encode(x[:count], y[:count])
    torch.testing.assert_close(found, whole[:count], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own, log_det[:count], rtol=1e-12, atol=1e-12)


def test_vectors_may_be_images_of_one_pixel():
    flow = make("vectors")
    x, y = pairs(flow)
    z, log_det = flow.encode(x, y)
    flat, same = flow.encode(x[..., 0, 0], y)
    assert flat.shape == (3, 5)
    assert torch.equal(flat, z[..., 0, 0])
    assert torch.equal(same, log_det)
    assert flow.decode(flat, y)[0].shape == (3, 5)
    assert flow.sample(3, condition=y).shape == (3, 5, 1, 1)


@pytest.mark.parametrize("name", [*HINTS, *GLOWS])
def test_weights_come_back(name, tmp_path):
    flow = make(name)
    loaded = flowprior.load(flowprior.save(flow, tmp_path))
    assert type(loaded) is type(flow)
    assert loaded.condition_shape == flow.condition_shape
    assert loaded.conditional
    x, y = pairs(flow)
    assert torch.equal(loaded.encode(x, y)[0], flow.encode(x, y)[0])


def test_weights_from_before_there_were_conditions_load():
    flow = flowprior.load("weights/glow_layers_32")
    assert (
        "condition_shape"
        not in flowprior.weights.read_config("weights/glow_layers_32")["arguments"]
    )
    assert not flow.conditional
    x = torch.rand(1, *flow.image_shape) - 0.5
    with pytest.raises(ValueError, match="Glow is not conditional: it takes no condition"):
        flow.encode(x, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_shape": (3, 1)}, r"condition_shape must be \(K,\)"),
        ({"condition_shape": (0,)}, "condition_shape must be"),
        ({"condition_shape": (3, 1, 1)}, r"condition_shape must be \(K,\) for vectors"),
        ({"condition_shape": (3,), "image_size": 4}, r"and \(K, 4, 4\) for images"),
        ({"condition_shape": (3, 4, 8), "image_size": 4}, r"\(K, 4, 4\) as the images"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"squeezes": -1}, "squeezes must be"),
        ({**IMAGES, "squeezes": 3}, "divisible by"),
        ({"shared": True}, "shared: networks of equal sizes need channels divisible by 2"),
        ({"log_scale_limit": 20.0}, "log_scale_limit must be"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ConditionalHint(**{**VECTORS, **options})


@pytest.mark.parametrize("name", ["vectors", "Glow, image"])
def test_wrong_conditions_are_named(name):
    flow = make(name)
    x, y = pairs(flow)
    with pytest.raises(ValueError, match="condition must be a tensor, got NoneType"):
        flow.encode(x)
    with pytest.raises(ValueError, match=r"condition must have shape \(B, "):
        flow.decode(x, y[:, :1])
    with pytest.raises(ValueError, match="condition must have 3 rows, one for each image, got 2"):
        flow.log_prob(x, y[:2])
    with pytest.raises(ValueError, match="condition must be floating point, got"):
        flow.generate(x, y.long())
