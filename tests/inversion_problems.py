"""Small problems and priors that tests of inversions share."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from flowprior.latent import Latent
from flowprior.priors import Module, Prior
from tests.conftest import make_perturbed_glow

SIZE = 16


def identity(x):
    return x


def blur(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1)


def mask(x):
    return x * (torch.arange(x.shape[-1]) % 2)


def small_glow(size=SIZE):
    flow = make_perturbed_glow(1, size, levels=2, steps=2, coupling="affine", scale=0.05)
    return flow.eval().requires_grad_(False)


def images_of(prior, count=4, scale=0.7, seed=1):
    """Images (count, C, H, W) in [0, 1] that the prior can make."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, *prior.latent.shape, generator=generator).double()
    return prior.to_unit_range(prior.generate(scale * z))


def small_decoder():
    """A decoder without a density."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4))).double()
    return Module(layers, (1, 4, 4), [5]).eval().requires_grad_(False)


class TwoParts(nn.Module):
    """A decoder of a style (3,) and a picture (1, 4, 4)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.linspace(-1, 1, 3, dtype=torch.float64))

    def forward(self, style, picture):
        return 0.5 + 0.1 * picture + (self.weight * style).sum(1).view(-1, 1, 1, 1)


def two_part_decoder():
    return Module(TwoParts(), (1, 4, 4), {"style": [3], "picture": [1, 4, 4]}).eval()


class LinearGaussian(Prior):
    """x = mean + scale · z: for a linear operator the posterior is known."""

    def __init__(self, mean=0.5, scale=0.2, size=4):
        super().__init__((1, size, size), Latent({"z": (1, size, size)}))
        self.mean = mean
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.eval()

    def decode(self, z):
        log_det = (z[0].numel() * math.log(float(self.scale))) * torch.ones_like(z.flatten(1)[:, 0])
        return self.mean + self.scale * z, log_det

    def generate(self, z, condition=None):
        return self.decode(z)[0]


class Shifted(LinearGaussian):
    """x = condition + scale · z."""

    conditional = True

    def decode(self, z, condition):
        x, log_det = super().decode(z)
        return x - self.mean + condition, log_det

    def generate(self, z, condition):
        return self.decode(z, condition)[0]


class Interrupted(Exception):
    """Stands for a kill."""


def interrupt_at(last):
    """An observer that raises at an iteration."""

    def observe(iteration, run):
        if iteration == last:
            raise Interrupted

    return observe
