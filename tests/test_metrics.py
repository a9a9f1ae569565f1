import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.flows import Glow
from flowprior.metrics import (
    bits_per_dim,
    largest_patch_correlation,
    patches,
    typicality,
    unusual_images,
    unusual_round_trips,
    worst_round_trip,
)
from tests.conftest import make_perturbed_glow


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class TestBitsPerDim:
    @pytest.mark.parametrize("data_range", [(-0.5, 0.5), (0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
    @pytest.mark.parametrize("n_bits", [None, 0, 5, 8])
    def test_uniform_density_costs_all_bits(self, n_bits, data_range):
        log_prob = torch.full((2,), -12 * math.log(data_range[1] - data_range[0])).double()
        found = bits_per_dim(log_prob, 12, n_bits, data_range)
        torch.testing.assert_close(found, torch.full((2,), float(n_bits or 0)).double())

    def test_density_on_half_the_range_saves_one_bit(self):
        found = bits_per_dim(torch.tensor([0.0, 10 * math.log(2)]), 10, 8)
        torch.testing.assert_close(found, torch.tensor([8.0, 7.0]))

    def test_does_not_depend_on_the_units(self):
        log_prob = normal(4)
        scaled = log_prob - 20 * math.log(2)  # The same density on a range twice as long.
        expected = bits_per_dim(log_prob, 20, 8)
        torch.testing.assert_close(bits_per_dim(scaled, 20, 8, (-1, 1)), expected)

    def test_standard_normal(self):
        entropy = 0.5 * math.log(2 * math.pi * math.e)
        found = bits_per_dim(torch.tensor([-3 * entropy]), 3, None)
        torch.testing.assert_close(found, torch.tensor([0.5 * math.log2(2 * math.pi * math.e)]))


def numpy_patches(z, side):
    channels, height, width = z.shape
    found = [
        z[:, row : row + side, column : column + side].ravel()
        for row in range(0, height, side)
        for column in range(0, width, side)
    ]
    assert len(found) * side**2 * channels == z.size
    return np.stack(found)


def numpy_typicality(z, side):
    flat = z.ravel()
    radius = np.linalg.norm(flat) / math.sqrt(flat.size)
    centred = flat - flat.mean()
    energies = (numpy_patches(z, side) ** 2).sum(1)
    count = len(energies)
    ratio = math.gamma(count / 2) / math.gamma((count - 1) / 2)
    return {
        "radius": radius,
        "skewness": (centred**3).mean() / flat.std() ** 3,
        "kurtosis": (centred**4).mean() / flat.std() ** 4,
        "patch_energy_spread": energies.std()
        / energies.mean()
        * math.sqrt(z.size + 2)
        / (2 * ratio),
    }


@pytest.mark.parametrize(
    ("size", "patch_size", "side"),
    [((16, 16), 8, 8), ((12, 8), 8, 4), ((6, 10), 8, 2), ((7, 5), 8, 1), ((4, 4), 8, 2)],
)
@pytest.mark.parametrize("kind", ["normal", "scaled", "skewed", "blocks", "constant"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_typicality_equals_numpy(kind, size, patch_size, side):
    z = normal(3, 2, *size)
    if kind == "scaled":
        z = z * torch.tensor([0.5, 2.0, 7.0]).double().view(3, 1, 1, 1)
    elif kind == "skewed":
        z = z.exp()
    elif kind == "blocks":
        z[..., : size[1] // 2] *= 3
    elif kind == "constant":
        z = torch.full_like(z, 2.0)
    found = typicality(z, patch_size)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = [numpy_typicality(image.numpy(), side) for image in z]
    assert set(found) == set(expected[0])
    for name, values in found.items():
        assert values.shape == (3,)
        reference = [image[name] for image in expected]
        np.testing.assert_allclose(values, reference, rtol=1e-10, atol=1e-12, err_msg=name)


def test_typicality_of_a_gaussian_latent():
    found = typicality(normal(1, 3, 128, 128))
    n = 3 * 128 * 128
    assert abs(found["radius"] - 1) < 5 / math.sqrt(2 * n)
    assert abs(found["skewness"]) < 5 * math.sqrt(6 / n)
    assert abs(found["kurtosis"] - 3) < 5 * math.sqrt(24 / n)
    assert abs(found["patch_energy_spread"] - 1) < 5 / math.sqrt(2 * 256)


@pytest.mark.parametrize(("size", "patch_size"), [(8, 4), (16, 4), (16, 8), (64, 8)])
def test_patch_energies_of_gaussian_latents_spread_by_one_on_average(size, patch_size):
    found = typicality(normal(2000, 1, size, size), patch_size)["patch_energy_spread"]
    error = found.std() / math.sqrt(2000)
    assert abs(found.mean() - 1) < 4 * error + 0.005


def test_patch_energy_of_a_single_patch_has_no_spread():
    assert typicality(normal(2, 3, 1, 1))["patch_energy_spread"].isnan().all()


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_only_the_radius_depends_on_the_scale(factor, seed):
    z = normal(2, 1, 8, 8, seed=seed)
    plain, scaled = typicality(z, 4), typicality(factor * z, 4)
    torch.testing.assert_close(scaled.pop("radius"), factor * plain.pop("radius"))
    torch.testing.assert_close(scaled, plain)


@pytest.mark.parametrize(
    ("size", "patch_size", "side"),
    [((8, 12), 8, 4), ((6, 6), 3, 3), ((6, 6), 8, 3), ((5, 7), 8, 1)],
)
def test_patches_are_columns(size, patch_size, side):
    z = normal(2, 3, *size)
    found = patches(z, patch_size)
    for row in range(2):
        np.testing.assert_array_equal(found[row].T, numpy_patches(z[row].numpy(), side))


class TestLargestPatchCorrelation:
    def test_equals_numpy(self):
        z = normal(3, 2, 8, 8)
        vectors = np.concatenate([numpy_patches(image, 4) for image in z.numpy()])
        correlation = np.abs(np.corrcoef(vectors.T))
        np.fill_diagonal(correlation, 0)
        largest, _ = largest_patch_correlation(z, 4)
        assert vectors.shape == (12, 32)
        np.testing.assert_allclose(largest, correlation.max(), rtol=1e-10)

    @pytest.mark.parametrize(("images", "size"), [(2, 8), (8, 16), (1, 32)])
    def test_of_independent_entries_is_what_to_expect(self, images, size):
        found = [
            largest_patch_correlation(normal(images, 3, size, size, seed=seed), 4)
            for seed in range(60)
        ]
        largest, expected = (torch.stack(values) for values in zip(*found, strict=True))
        torch.testing.assert_close(largest.median(), expected[0], rtol=0.05, atol=0)

    @pytest.mark.parametrize("sign", [1, -1])
    def test_of_duplicated_entries_is_one(self, sign):
        z = normal(64, 1, 32, 32)
        z[..., 1::4, 2::4] = sign * z[..., ::4, ::4]
        largest, _ = largest_patch_correlation(z, 4)
        torch.testing.assert_close(largest, torch.ones_like(largest))

    def test_of_one_patch_is_missing(self):
        largest, expected = largest_patch_correlation(normal(1, 3, 1, 1), 4)
        assert largest.isnan()
        assert expected.isnan()


class TestRoundTrip:
    def test_unusual_images_are_images_and_differ(self):
        kinds = unusual_images((2, 12, 16), 8)
        for kind, images in kinds.items():
            assert images.shape == (8, 2, 12, 16), kind
            assert images.min() >= 0, kind
            assert images.max() <= 1, kind
            assert len(images.flatten(1).unique(dim=0)) == 8, kind
        assert torch.equal(kinds["salt noise"], unusual_images((2, 12, 16), 8)["salt noise"])
        board = kinds["checkerboards"][0, 0]
        assert torch.equal(board[0, :4], torch.tensor([0.0, 1, 0, 1]))

    @pytest.mark.parametrize("data_range", [(-0.5, 0.5), (-1.0, 3.0)])
    def test_worst_round_trip_is_the_largest_difference(self, data_range):
        flow = make_perturbed_glow(1, 8, levels=2, steps=2, data_range=data_range)
        images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert worst_round_trip(flow, images) < 1e-9
        low, high = data_range
        decode = flow.decode
        flow.decode = lambda z: (decode(z)[0] + 0.25 * (high - low), None)
        assert worst_round_trip(flow, images) == pytest.approx(0.25)
        flow.decode = lambda z: (decode(z)[0] / 0, None)
        assert worst_round_trip(flow, images) == 1e30

    @pytest.mark.parametrize("coupling", ["additive", "affine"])
    def test_limited_shifts_do_not_grow_with_the_state(self, coupling):
        """Free shifts grow from step to step, until single precision holds nothing else."""
        worst = {}
        for limit in (None, 8.0):
            torch.manual_seed(0)
            options = {"hidden_channels": 16, "coupling": coupling, "shift_limit": limit}
            flow = Glow(1, 16, levels=2, steps=8, **options).eval().requires_grad_(False)
            for parameter in flow.levels.get_submodule("0.nets").parameters():
                parameter.add_(0.4 * torch.randn_like(parameter))
            worst[limit] = max(unusual_round_trips(flow).values())
        assert worst[8.0] < 1
        assert worst[None] > 1e3 * worst[8.0]

    def test_every_kind_is_tried(self):
        flow = make_perturbed_glow(1, 8, levels=2, steps=2)
        trips = unusual_round_trips(flow)
        assert trips.keys() == unusual_images((1, 8, 8)).keys()
        assert max(trips.values()) < 1e-9
