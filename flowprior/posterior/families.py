"""Families of distributions of a latent, one member for each image of a batch."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer
from flowprior.posterior.likelihood import log_normal

Shapes = dict[str, tuple[int, ...]]
_BOUND = 2.0
"""Of the log-scales of a coupling."""
_NEAR = 0.01
"""Deviation of parameters that are tried from those of the beginning."""


class Family(ABC):
    r"""Invertible maps z = u(t) of t ~ N(0, I), each with parameters of its own.

    All end in z = m + d ∘ s(t) with a centre m and scales d > 0. A map is told from others by a
    vector of P numbers, so that a batch of them is a matrix (B, P) whose rows know nothing of each
    other.
    """

    @abstractmethod
    def shapes(self, size: int) -> Shapes:
        """Shapes of the parameters of s by name, for latents of `size` numbers."""

    @abstractmethod
    def shape(self, t: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """s(t) (k, m, n) of t (k, m, n), and log|det ds/dt| (k, m) or (k, 1)."""

    @abstractmethod
    def unshape(self, s: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of `shape`: t, and again log|det ds/dt|."""

    def initial(self, size: int) -> dict[str, Tensor]:
        """Parameters of s = identity that are not 0, by name, with fixed random numbers."""
        return {}

    def check(self, size: int) -> None:  # noqa: B027
        """Raise ValueError unless latents of `size` numbers suit the family."""

    def begin(self, centre: Tensor, scale: float) -> Tensor:
        """Parameters (B, P) of z = centre + scale · t, for centres (B, n)."""
        size = centre.shape[1]
        initial = self.initial(size)
        rest = [
            initial.get(name, torch.zeros(shape)).flatten().to(centre)
            for name, shape in self.shapes(size).items()
        ]
        scales = torch.full_like(centre, math.log(scale))
        return torch.cat([centre, scales, *(r.expand(len(centre), -1) for r in rest)], 1)

    def __call__(self, parameters: Tensor, t: Tensor) -> Tensor:
        """Latents (k, m, n) of t (k, m, n) by parameters (k, P)."""
        centre, scale, rest = self._split(parameters, t.shape[-1])
        return centre + scale.exp() * self.shape(t, rest)[0]

    def log_prob(self, parameters: Tensor, z: Tensor) -> Tensor:
        """Log density, nats, of latents z (k, m, n) by parameters (k, P), (k, m) float64."""
        centre, scale, rest = self._split(parameters, z.shape[-1])
        t, log_det = self.unshape((z - centre) * (-scale).exp(), rest)
        return log_normal(t) - (log_det + scale.sum(-1)).double()

    def try_out(self, parameters: Tensor, size: int) -> None:
        """Go there and back near parameters (B, P) of latents of `size` numbers.

        Raises:
            ValueError: `unshape` is not the inverse of `shape`, or shapes or log-dets are wrong.
        """
        step = _NEAR * _normal(1, parameters.shape[1]).to(parameters)
        near = torch.cat([parameters[:1] + step, parameters[:1] - step])
        rest, t = self._split(near, size)[2], _normal(2, 3, size, seed=1).to(near)
        with torch.no_grad():
            s, log_det = self._tried("shape", t, rest)
            back, again = self._tried("unshape", s, rest)
        slack = torch.finfo(t.dtype).eps ** 0.5
        who = f"family: {type(self).__name__}.unshape"
        if not torch.allclose(back, t, rtol=slack, atol=slack):
            off = (back - t).abs().max()
            raise ValueError(f"{who} is not the inverse of shape: t comes back {off:.2g} away")
        if not torch.allclose(again, log_det, rtol=slack, atol=slack):
            off = (again - log_det).abs().max()
            raise ValueError(f"{who} must give log|det ds/dt| as shape does, it is {off:.2g} off")

    def _tried(self, name: str, t: Tensor, rest: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = getattr(self, name)(t, rest)
        shapes = [tuple(getattr(part, "shape", ())) for part in found]
        log_dets = tuple(t.shape[:2]), (len(t), 1)
        if len(shapes) != 2 or shapes[0] != t.shape or shapes[1] not in log_dets:
            raise ValueError(
                f"family: {type(self).__name__}.{name} must give shapes {tuple(t.shape)} and "
                f"{log_dets[0]} or {log_dets[1]}, got {' and '.join(map(str, shapes))}"
            )
        return found

    def _split(self, parameters: Tensor, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Centre and logarithms of the scales, (k, 1, n), and the parameters of s by name."""
        shapes = {"centre": (1, size), "scale": (1, size), **self.shapes(size)}
        pieces = parameters.split([math.prod(shape) for shape in shapes.values()], 1)
        named = zip(shapes.items(), pieces, strict=True)
        values = {name: piece.unflatten(1, shape) for (name, shape), piece in named}
        return values.pop("centre"), values.pop("scale"), values


@dataclass(frozen=True)
class FullGaussian(Family):
    """All normal distributions: n² numbers for latents of n, so for small ones.

    The map is m + d ∘ (I + 2 L/√n) t, with L (n, n) strictly lower triangular. Because of √n, a
    step of Adam changes draws by as much for all sizes, and its noise costs as many nats a latent.
    """

    def shapes(self, size: int) -> Shapes:
        """L, of which the part below the diagonal is used."""
        return {"lower": (size, size)}

    def shape(self, t: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(I + 2 L/√n) t."""
        return t + t @ _below(parameters["lower"]).mT, t.new_zeros(len(t), 1)

    def unshape(self, s: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """By substitution."""
        upper = _below(parameters["lower"]).mT
        t = torch.linalg.solve_triangular(upper, s, upper=True, left=False, unitriangular=True)
        return t, s.new_zeros(len(s), 1)


def _below(lower: Tensor) -> Tensor:
    """2 L/√n."""
    return 2 / lower.shape[-1] ** 0.5 * lower.tril(-1)


@dataclass(frozen=True)
class LowRank(Family):
    """Normal distributions, wider or narrower than a diagonal one in a few directions.

    The map is m + d ∘ (I + W Cᵀ) t, with W and C (n, rank). The parameters are √rank W and √n C, so
    that a step of Adam changes draws by as much for all sizes.

    Args:
        rank: number of directions, at least 1: of those that the data tell something about.
    """

    rank: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("rank", self.rank, least=1)

    def shapes(self, size: int) -> Shapes:
        """W and C."""
        return {"outer": (size, self.rank), "inner": (size, self.rank)}

    def initial(self, size: int) -> dict[str, Tensor]:
        """Orthonormal columns of C; with W = 0 and C = 0 neither would ever move."""
        return {"inner": size**0.5 * torch.linalg.qr(_normal(size, self.rank)).Q}

    def check(self, size: int) -> None:
        """The rank is at most the size."""
        check_integer("family: rank", self.rank, least=1, most=size)

    def shape(self, t: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(I + W Cᵀ) t, whose determinant is that of I + Cᵀ W."""
        outer, inner = self._matrices(parameters)
        small = self._small(outer, inner)
        return t + (t @ inner) @ outer.mT, torch.linalg.slogdet(small)[1][:, None]

    def unshape(self, s: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """By the formula of Sherman, Morrison and Woodbury."""
        outer, inner = self._matrices(parameters)
        small = self._small(outer, inner)
        part = torch.linalg.solve(small.mT, s @ inner, left=False)
        t = s - part @ outer.mT
        return t, torch.linalg.slogdet(small)[1][:, None]

    def _matrices(self, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """W and C."""
        outer, inner = parameters["outer"], parameters["inner"]
        return outer / self.rank**0.5, inner / inner.shape[1] ** 0.5

    def _small(self, outer: Tensor, inner: Tensor) -> Tensor:
        """I + Cᵀ W."""
        product = inner.mT @ outer
        return product + torch.eye(self.rank, dtype=product.dtype, device=product.device)


@dataclass(frozen=True)
class Coupling(Family):
    """A small flow: affine couplings of the two halves of the latent in turn.

    Each takes log-scales in (−2, 2) and shifts of one half from the other, by a network with one
    hidden layer and a linear path beside it of the same width.

    Reference: Dinh et al., Density estimation using real NVP (2017).

    Args:
        depth: number of couplings, at least 2.
        hidden: width of their networks.
    """

    depth: int = 4
    hidden: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        check_integer("depth", self.depth, least=2)
        check_integer("hidden", self.hidden, least=1)

    def check(self, size: int) -> None:
        """Couplings need two halves."""
        if size < 2:
            raise ValueError("family: Coupling needs latents of at least 2 numbers, got 1")

    def shapes(self, size: int) -> Shapes:
        """Two layers for each coupling."""
        shapes: Shapes = {}
        for k in range(self.depth):
            given, moved = self._halves(size, k)
            shapes[f"first_{k}"] = (given + 1, 2 * self.hidden)
            shapes[f"second_{k}"] = (2 * self.hidden, 2 * moved)
        return shapes

    def initial(self, size: int) -> dict[str, Tensor]:
        """First layers; the second ones are 0, so that the flow is the identity."""
        found = {}
        for k in range(self.depth):
            first = _normal(self._halves(size, k)[0] + 1, 2 * self.hidden, seed=k)
            first[-1] = 0
            found[f"first_{k}"] = first
        return found

    def shape(self, t: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """All couplings one after another."""
        log_det = t.new_zeros(t.shape[:2])
        for k in range(self.depth):
            given, moved = t.split(list(self._halves(t.shape[-1], k)), -1)
            log_scale, shift = self._network(given, parameters, k)
            t = torch.cat([moved * log_scale.exp() + shift, given], -1)
            log_det = log_det + log_scale.sum(-1)
        return t.roll(self._turn(t), -1), log_det

    def unshape(self, s: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """All couplings undone, the last one first."""
        log_det, t = s.new_zeros(s.shape[:2]), s.roll(-self._turn(s), -1)
        for k in reversed(range(self.depth)):
            size = self._halves(t.shape[-1], k)
            moved, given = t.split([size[1], size[0]], -1)
            log_scale, shift = self._network(given, parameters, k)
            t = torch.cat([given, (moved - shift) * (-log_scale).exp()], -1)
            log_det = log_det + log_scale.sum(-1)
        return t, log_det

    def _network(
        self, given: Tensor, parameters: dict[str, Tensor], k: int
    ) -> tuple[Tensor, Tensor]:
        """Log-scales and shifts. Weights are of about 1: one learning rate suits all widths."""
        first, second = parameters[f"first_{k}"], parameters[f"second_{k}"]
        hidden = given @ first[:, :-1] / math.sqrt(given.shape[-1]) + first[:, -1:]
        straight, bent = hidden.chunk(2, -1)
        hidden = torch.cat([straight, F.silu(bent)], -1)
        raw, shift = (hidden @ second / math.sqrt(self.hidden)).chunk(2, -1)
        return _BOUND * torch.tanh(raw / _BOUND), shift

    def _halves(self, size: int, k: int) -> tuple[int, int]:
        """Numbers that coupling k takes as they are, and that it moves: these go to the front."""
        small, large = size // 2, size - size // 2
        return (small, large) if k % 2 == 0 else (large, small)

    def _turn(self, t: Tensor) -> int:
        """How far the numbers have to be rolled to be in their places again."""
        return 0 if self.depth % 2 == 0 else t.shape[-1] // 2


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
