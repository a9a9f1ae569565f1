"""Latents of named parts."""

import math

import pytest
import torch
from torch import nn

from flowprior.gaussianization import Gaussianization
from flowprior.latent import Latent, standard_normal_log_prob

TWO = Latent({"style": (2, 4), "noise": (1, 3, 3)})


def test_join_is_the_inverse_of_split():
    z = torch.arange(34.0).view(2, 17)
    parts = TWO.split(z)
    assert {name: part.shape for name, part in parts.items()} == {
        "style": (2, 2, 4),
        "noise": (2, 1, 3, 3),
    }
    assert torch.equal(TWO.join(parts), z)
    assert torch.equal(TWO.join(dict(reversed(parts.items()))), z)


def test_shapes_of_one_part_and_of_several():
    one = Latent({"z": [1, 2, 3]})
    assert (one.size, one.shape) == (6, (1, 2, 3))
    assert one.shaped(torch.zeros(5, 6)).shape == (5, 1, 2, 3)
    assert (TWO.size, TWO.shape) == (17, (17,))
    assert TWO.shaped(torch.zeros(5, 17)).shape == (5, 17)


def test_each_part_has_its_own_map():
    v = torch.ones(3, 17)

    class Tripled(nn.Module):
        def forward(self, part):
            assert part.shape == (3, 1, 3, 3)
            return 3 * part

    z = TWO.split(TWO.map({"noise": Tripled()}, v))
    assert (z["style"] == 1).all()
    assert (z["noise"] == 3).all()
    assert TWO.map({}, v) is v


def test_a_draw_is_the_same_for_all_rows_and_repeats_with_the_seed():
    like = torch.zeros((), dtype=torch.float64)
    first = TWO.draw(3, seed=1, like=like)
    assert first.shape == (3, 17)
    assert first.dtype == torch.float64
    assert (first == first[0]).all()
    assert torch.equal(first, TWO.draw(3, seed=1, like=like))
    assert not torch.equal(first, TWO.draw(3, seed=2, like=like))


def test_log_density_of_the_standard_normal():
    z = torch.randn(4, 2, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    torch.testing.assert_close(standard_normal_log_prob(z), expected)
    origin = standard_normal_log_prob(torch.zeros(1, 2))
    assert origin.item() == pytest.approx(-math.log(2 * math.pi))


@pytest.mark.parametrize("parts", [{}, {"z": ()}, {"z": (2, 0)}, {"z": (-1,)}])
def test_parts_must_have_positive_shapes(parts):
    with pytest.raises(ValueError, match="parts"):
        Latent(parts)


def test_wrong_names_of_parts_are_told_with_the_known_ones():
    z = torch.zeros(1, 17)
    with pytest.raises(ValueError, match=r"gloss.*style, noise"):
        TWO.map({"gloss": nn.Identity()}, z)
    with pytest.raises(ValueError, match=r"missing noise.*style, noise"):
        TWO.join({"style": z})


def test_a_part_that_a_layer_refuses_is_named():
    layer = Gaussianization(patch_size=4, rotation="none")
    with pytest.raises(ValueError, match=r"latent part noise: patch_size=4 .* got \(1, 3, 3\)"):
        TWO.map({"noise": layer}, torch.randn(2, 17, generator=torch.Generator().manual_seed(0)))
