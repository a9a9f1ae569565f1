"""Priors and what they can do; flows of other libraries."""

import copy
import math
import pickle

import normflows
import pytest
import torch
import zuko
from torch import nn

from flowprior.inversion import IFlow, invert
from flowprior.priors import Cropped, Module, Padded, from_normflows, from_zuko, require
from flowprior.priors.base import Prior
from tests.conftest import make_perturbed_glow
from tests.inversion_problems import LinearGaussian, blur, small_decoder, two_part_decoder
from tests.test_trumpet import SIZE as SIDE
from tests.test_trumpet import trumpet

SHAPE = (1, 2, 3)
SIZE = math.prod(SHAPE)


def zuko_flow(kind, **options):
    torch.manual_seed(0)
    return getattr(zuko.flows, kind)(SIZE, transforms=2, hidden_features=[8], **options).double()


def normflows_flow(base=None):
    torch.manual_seed(0)
    layers = []
    for _ in range(2):
        layers.append(normflows.flows.MaskedAffineAutoregressive(SIZE, 8))
        layers.append(normflows.flows.LULinearPermute(SIZE))
    base = normflows.distributions.DiagGaussian(SIZE) if base is None else base
    flow = normflows.NormalizingFlow(base, layers).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


FOREIGN = {
    "zuko NSF": lambda: from_zuko(zuko_flow("NSF"), SHAPE),
    "zuko MAF": lambda: from_zuko(zuko_flow("MAF"), SHAPE),
    "normflows": lambda: from_normflows(normflows_flow(), SHAPE),
}


@pytest.fixture(params=FOREIGN)
def foreign(request):
    return FOREIGN[request.param]().eval().requires_grad_(False)


def test_encode_is_the_inverse_of_decode(foreign):
    z = torch.randn(5, *foreign.latent.shape, dtype=torch.float64)
    x, decoding = foreign.decode(z)
    assert x.shape == (5, *SHAPE)
    assert torch.equal(foreign.generate(z), x)
    again, encoding = foreign.encode(x)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoding, -decoding, rtol=0, atol=1e-5)


def test_log_determinant_is_that_of_the_jacobian(foreign):
    z = torch.randn(3, SIZE, dtype=torch.float64)
    for row, found in zip(z, foreign.decode(z)[1], strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda row: foreign.decode(row[None])[0].flatten(), row
        )
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_log_prob_is_the_library_s_own(foreign):
    x = 0.3 * torch.randn(4, *SHAPE, dtype=torch.float64)
    own = foreign.flow() if isinstance(foreign.flow, zuko.lazy.LazyDistribution) else foreign.flow
    torch.testing.assert_close(foreign.log_prob(x), own.log_prob(x.flatten(1)))


def test_bases_that_are_not_standard_normal_are_refused():
    with pytest.raises(ValueError, match=r"base .* N\(0, I\) of 6"):
        from_zuko(
            zuko.flows.Flow(
                zuko_flow("MAF").transform,
                zuko.lazy.UnconditionalDistribution(
                    zuko.distributions.DiagNormal, torch.zeros(SIZE), 2 * torch.ones(SIZE)
                ),
            ),
            SHAPE,
        )
    mixture = normflows.NormalizingFlow(normflows.distributions.GaussianMixture(2, SIZE), [])
    with pytest.raises(ValueError, match="from_normflows"):
        from_normflows(mixture.double(), SHAPE)


@pytest.mark.parametrize(
    ("make", "flow"),
    [
        (from_zuko, lambda: zuko.flows.MAF(7, transforms=1, hidden_features=[4])),
        (from_zuko, lambda: zuko_flow("MAF", context=2)),
        (from_zuko, lambda: nn.Linear(SIZE, SIZE)),
        (from_normflows, lambda: normflows_flow(normflows.distributions.DiagGaussian(7))),
        (from_normflows, lambda: nn.Linear(SIZE, SIZE)),
    ],
)
def test_flows_that_do_not_fit_are_one_clear_line(make, flow):
    with pytest.raises(ValueError, match=make.__name__) as caught:
        make(flow(), SHAPE)
    assert "\n" not in str(caught.value)


def test_any_decoder_is_a_prior():
    prior = small_decoder()
    z = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(prior.generate(z), prior.module(z))
    assert not hasattr(prior, "decode")


def test_decoder_of_several_parts_gets_them_by_name():
    prior = two_part_decoder()
    z = torch.randn(2, 19, dtype=torch.float64)
    expected = prior.module(style=z[:, :3], picture=z[:, 3:].unflatten(1, (1, 4, 4)))
    assert torch.equal(prior.generate(z), expected)


def test_samples_repeat_with_the_generator_and_have_the_temperature():
    prior = LinearGaussian(mean=0.0, scale=1.0)
    first, again = (
        prior.sample(500, 0.5, generator=torch.Generator().manual_seed(0)) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert first.dtype == torch.float64
    assert first.std().item() == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="n >= 1"):
        prior.sample(0)


def test_ranges():
    prior = Module(nn.Identity(), (1, 1, 2), [2], data_range=(-1, 3))
    x = torch.tensor([-1.0, 0.0, 3.0])
    assert prior.to_unit_range(x).tolist() == [0.0, 0.25, 1.0]
    assert torch.equal(prior.from_unit_range(prior.to_unit_range(x)), x)


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"data_range": (1.0, 0.0)}, "data_range"),
        ({"data_range": (-math.inf, 1.0)}, "data_range"),
        ({"data_range": (0.0, math.nan)}, "data_range"),
        ({"image_shape": (8, 8)}, "image_shape"),
        ({"image_shape": (1, 0, 8)}, "image_shape"),
        ({"latent": [0]}, "latent"),
    ],
)
def test_wrong_options_are_named(change, option):
    given = {"module": nn.Identity(), "image_shape": (1, 8, 8), "latent": [64], **change}
    with pytest.raises(ValueError, match=option):
        Module(**given)


def test_what_is_missing_is_told_with_the_remedy():
    require(LinearGaussian(), ["generate", "decode"], "solver")
    with pytest.raises(ValueError, match=r"solver needs a log-determinant .* Module .*: do that"):
        require(small_decoder(), ["generate", "decode"], "solver", "do that")
    with pytest.raises(ValueError, match=r"there is no prior$"):
        require(None, ["generate"], "solver", "do that")


def test_a_prior_needs_a_generator():
    with pytest.raises(TypeError, match="generate"):
        type("Empty", (Prior,), {})((1, 2, 2), small_decoder().latent)


class TestCropped:
    @pytest.fixture
    def flow(self):
        return make_perturbed_glow(2, (8, 16), levels=2, steps=2, coupling="affine")

    def test_the_middle_of_what_the_flow_decodes(self, flow):
        prior = Cropped(flow, (6, 12))
        assert prior.image_shape == (2, 6, 12)
        assert prior.latent == flow.latent
        z = torch.randn(3, 2, 8, 16, dtype=torch.float64)
        whole, log_det = flow.decode(z)
        x, found = prior.decode(z)
        assert torch.equal(x, whole[:, :, 1:7, 2:14])
        assert torch.equal(found, log_det)
        assert torch.equal(prior.generate(z), x)

    def test_encoded_images_come_back_and_have_a_constant_border(self, flow):
        prior = Cropped(flow, (6, 12), border=0.25)
        x = torch.rand(3, 2, 6, 12, dtype=torch.float64) - 0.5
        z, log_det = prior.encode(x)
        whole, back_log_det = flow.decode(z)
        torch.testing.assert_close(prior.generate(z), x)
        torch.testing.assert_close(whole[..., 0], torch.full_like(whole[..., 0], -0.25))
        torch.testing.assert_close(log_det, -back_log_det)
        torch.testing.assert_close(prior.log_prob(x), flow.log_prob(whole))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_size": 10}, "image_size"),
            ({"image_size": (7, 12)}, "image_size"),
            ({"image_size": (6, 18)}, "image_size"),
            ({"image_size": (6, 12), "border": 2.0}, "border"),
        ],
    )
    def test_wrong_options(self, flow, options, message):
        with pytest.raises(ValueError, match=message):
            Cropped(flow, **options)

    def test_a_conditional_prior_is_refused(self, flow):
        flow.conditional = True
        with pytest.raises(ValueError, match="conditional"):
            Cropped(flow, (6, 12))

    def test_needs_a_flow(self):
        decoder = Module(nn.Identity(), (1, 2, 2), [1, 2, 2])
        with pytest.raises(ValueError, match="Cropped needs a log-determinant"):
            Cropped(decoder, 2)


class TestPadded:
    @pytest.fixture
    def flow(self):
        return make_perturbed_glow(2, (8, 16), levels=2, steps=2, coupling="affine")

    def test_images_of_the_flow_within_a_border(self, flow):
        prior = Padded(flow, (10, 16), border=0.25)
        assert prior.image_shape == (2, 10, 16)
        assert prior.latent == flow.latent
        z = torch.randn(3, 2, 8, 16, dtype=torch.float64)
        middle, log_det = flow.decode(z)
        x, found = prior.decode(z)
        assert torch.equal(x[:, :, 1:9], middle)
        assert torch.equal(found, log_det)
        assert torch.equal(prior.generate(z), x)
        unit = prior.to_unit_range(x)
        torch.testing.assert_close(unit[:, :, ::9], torch.full_like(unit[:, :, ::9], 0.25))

    def test_encode_is_the_left_inverse_and_its_density_that_of_the_surface(self, flow):
        prior = Padded(flow, (10, 20))
        z = torch.randn(1, 2, 8, 16, dtype=torch.float64)
        x, log_det = prior.decode(z)
        again, back = prior.encode(x)
        torch.testing.assert_close(again, z)
        torch.testing.assert_close(back, -log_det)
        jacobian = torch.autograd.functional.jacobian(prior.generate, z).reshape(400, 256)
        torch.testing.assert_close(torch.linalg.svdvals(jacobian).log().sum()[None], log_det)
        torch.testing.assert_close(prior.log_prob(x), flow.log_prob(flow.decode(z)[0]))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_size": 10}, "image_size"),
            ({"image_size": (9, 16)}, "image_size"),
            ({"image_size": (6, 16)}, "image_size"),
            ({"image_size": 1.5}, "image_size must be an integer or two integers"),
            ({"image_size": (10, 16), "border": -1.0}, "border"),
        ],
    )
    def test_wrong_options(self, flow, options, message):
        with pytest.raises(ValueError, match=message):
            Padded(flow, **options)

    def test_needs_a_flow_that_is_not_conditional(self, flow):
        with pytest.raises(ValueError, match="Padded needs a log-determinant"):
            Padded(Module(nn.Identity(), (1, 2, 2), [1, 2, 2]), 4)
        flow.conditional = True
        with pytest.raises(ValueError, match="conditional"):
            Padded(flow, (10, 16))


class TestProjectionsOfAnInnerFlow:
    """Another size, and the projections of an injective flow."""

    @pytest.fixture
    def flow(self):
        return trumpet()

    def test_of_images_with_a_border(self, flow):
        prior = Padded(flow, SIDE + 4, border=0.25)
        x = torch.rand(3, 1, SIDE + 4, SIDE + 4, dtype=torch.float64)
        found = prior.project(x)
        torch.testing.assert_close(found[..., 2:-2, 2:-2], flow.project(x[..., 2:-2, 2:-2]))
        unit = prior.to_unit_range(found)
        torch.testing.assert_close(unit[..., :2], torch.full_like(unit[..., :2], 0.25))
        torch.testing.assert_close(prior.project(found), found, rtol=0, atol=2e-5)
        images, log_prob = prior.project_with_log_prob(x)
        torch.testing.assert_close(images, found)
        expected = flow.project_with_log_prob(x[..., 2:-2, 2:-2])[1]
        torch.testing.assert_close(log_prob, expected)

    def test_of_middles(self, flow):
        prior = Cropped(flow, SIDE - 2, border=0.25)
        x = 2 * torch.rand(3, 1, SIDE - 2, SIDE - 2, dtype=torch.float64) - 1
        whole = nn.functional.pad(x, (1, 1, 1, 1), value=-0.5)
        expected, expected_log_prob = flow.project_with_log_prob(whole)
        torch.testing.assert_close(prior.project(x), expected[..., 1:-1, 1:-1])
        images, log_prob = prior.project_with_log_prob(x)
        torch.testing.assert_close(images, expected[..., 1:-1, 1:-1])
        torch.testing.assert_close(log_prob, expected_log_prob)

    @pytest.mark.parametrize("solver", [IFlow(), IFlow(beta=0.1)])
    def test_a_solver_by_projections_takes_it(self, flow, solver):
        prior = Padded(flow, SIDE + 2).eval().requires_grad_(False)
        y = prior.to_unit_range(prior.sample(2, generator=torch.Generator().manual_seed(0)))
        found = invert(prior, blur, y, sigma=0.1, solver=solver, iterations=3)
        assert found.finite.all()
        assert (found.history["loss"][-1] < found.history["loss"][0]).all()

    def test_a_flow_without_projections_has_none_in_another_size_either(self):
        bijective = make_perturbed_glow(1, 8, levels=1, steps=1)
        for prior in (Padded(bijective, 10), Cropped(bijective, 6)):
            assert not hasattr(prior, "project")
            assert not hasattr(prior, "project_with_log_prob")
            with pytest.raises(ValueError, match="does not have it"):
                require(prior, ["project"], "IFlow")

    def test_a_copy_and_a_pickle_of_it_project_too(self, flow):
        prior = Padded(flow, SIDE + 2)
        x = torch.rand(1, 1, SIDE + 2, SIDE + 2, dtype=torch.float64)
        for other in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
            torch.testing.assert_close(other.project(x), prior.project(x))
