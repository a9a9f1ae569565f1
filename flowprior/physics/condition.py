"""What conditional priors are given of data."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_number, check_positive, check_unit_images
from flowprior.linear_algebra import ROUNDING, conjugate_gradients, cosines
from flowprior.physics.calls import Calls, count_calls, counting, uncounted
from flowprior.registry import registered_name

_PLAIN = "options must be numbers, strings, booleans or lists, which a file keeps"


class UnknownCondition(ValueError):
    """There is no condition of that name among those that are imported."""


class Condition(ABC):
    """What a conditional prior is given of data y, the same in training and in use.

    A subclass is a frozen dataclass whose options are numbers, strings, booleans or lists of these.
    Training keeps it beside the weights, so that a loaded flow has it (`Prior.conditioning`).

    Attributes:
        gives_images: whether it gives images, of the shape of those that are sought.
    """

    gives_images: ClassVar[bool] = False
    registry: ClassVar[dict[str, type["Condition"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Condition.registry[registered_name(cls)] = cls

    def described(self) -> dict[str, Any]:
        """Its name and options, as JSON has them.

        Raises:
            ValueError: it is no dataclass, or an option is nothing that JSON has.
        """
        name = registered_name(type(self))
        if not is_dataclass(self):
            raise ValueError(f"condition {name} must be a frozen dataclass")
        described = {"condition": name, "options": asdict(self)}
        try:
            again = Condition.restored(json.loads(json.dumps(described, allow_nan=False)))
            same = bool(again == self)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"condition {name}: {_PLAIN}: {error}") from error
        if not same:
            raise ValueError(f"condition {name}: {_PLAIN}: it comes back as {again}")
        return described

    @staticmethod
    def restored(described: Any) -> "Condition":
        """The condition of such a name and options.

        Raises:
            UnknownCondition: none of that name is imported.
            ValueError: it is nothing that `described` gives.
        """
        name = described.get("condition") if isinstance(described, dict) else None
        known = ", ".join(sorted(Condition.registry))
        if not isinstance(name, str):
            raise ValueError(f"condition must be one of {known}, got {described}")
        if name not in Condition.registry:
            raise UnknownCondition(f"condition must be one of {known}, got {name}")
        kind, options = Condition.registry[name], described.get("options")
        names = {field.name for field in fields(kind)}
        if not isinstance(options, dict) or options.keys() != names:
            raise ValueError(f"options of {name} must be {', '.join(sorted(names))}, got {options}")
        return kind(**options)

    @torch.no_grad()
    def __call__(
        self, physics: nn.Module, y: Tensor, like: Tensor, calls: Calls | None = None
    ) -> Tensor:
        """Conditions (B, ...) of data y (B, ...), each row by itself; arguments as `of`.

        Calls of the operator for each row, as `count_calls` is told of them, are added to `calls`;
        by default to those of a condition that calls this one.
        """
        with uncounted():
            of_data = self.of(physics, like)
        made = []
        for rows in torch.arange(len(y), device=y.device).split(len(like)):
            with counting(calls, rows):
                made.append(of_data(y[rows]))
        return torch.cat(made)

    @abstractmethod
    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of data y of an operator to conditions; what all data share is computed here.

        The data are those of one image, (1, ...), and so are the conditions: a result must not
        depend on its batch. Of an operator with parameters for each image they are of all images.
        The function says by `count_calls` how often it applies the operator.

        Args:
            physics: the operator.
            like: an image (1, C, H, W) of the shape, precision and device of those sought; B of
                them if the operator has parameters, such as masks, for each of B images.

        Raises:
            ValueError: the operator lacks what is needed.
        """


@dataclass(frozen=True)
class ScaledData(Condition):
    """The data themselves, s·y.

    Args:
        scale: s > 0; flows are best given numbers of about 1.

    Raises:
        ValueError: names the option.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("scale", self.scale)

    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Condition.of`."""
        return lambda y: self.scale * y


@dataclass(frozen=True)
class MigratedData(Condition):
    """A migrated image, s·W Aᵀ(y − A(½)), of what grey does not explain of the data.

    The operator must be linear, or affine with the adjoint of its linear part (`AboutGrey`).

    Reference: Siahkoohi & Herrmann, Learning by example: fast reliability-aware seismic imaging
    with normalizing flows (2021).

    Args:
        scale: s > 0; flows are best given numbers of about 1.
        depth_power: p ≥ 0; W multiplies row i of H by ((i + ½)/H)^p, where waves from the first row
            get weaker on their way. 0 for none.

    Raises:
        ValueError: names the option.
    """

    scale: float = 1.0
    depth_power: float = 0.0

    gives_images = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("scale", self.scale)
        check_number("depth_power", self.depth_power, least=0)

    @torch.no_grad()
    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Condition.of`."""
        adjoint = _adjoint(physics, self)
        height = like.shape[2]
        depth = (torch.arange(height, device=like.device) + 0.5) / height
        weight = self.scale * depth.to(like)[:, None] ** self.depth_power
        of_grey = adjoint(physics.A(torch.full_like(like, 0.5)))

        return lambda y: weight * (adjoint(y) - of_grey)


@dataclass(frozen=True)
class GaussianEstimate(Condition):
    """The linear estimate of an image, s·(E[x given y] − ½) under a stationary normal prior.

    The mean of the prior is grey; its covariance is diagonal in the cosine transform (DCT), with
    the power of a grid of frequencies. E is found by conjugate gradients, which take one A and one
    Aᵀ each. Where enough of them are taken, it tells all of x that is linear in y, and errors stay
    where they are: a network that sees it need not learn the operator. The operator must be linear
    or affine, with an `A_adjoint`.

    Args:
        sigma: standard deviation σ > 0 of the noise.
        power: positive numbers, mean squares of the entries of the orthonormal cosine transform of
            x − ½, at rows of vertical and columns of horizontal frequencies, each from 0 to ½ cycle
            per pixel in equal steps; their logarithms are interpolated. `power_of` finds them.
        iterations: of conjugate gradients.
        scale: s > 0; flows are best given numbers of about 1.

    Raises:
        ValueError: names the option.
    """

    sigma: float
    power: list[list[float]]
    iterations: int = 20
    scale: float = 1.0

    gives_images = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("sigma", self.sigma)
        check_positive("scale", self.scale)
        check_integer("iterations", self.iterations, least=1)
        if len({len(row) for row in self.power}) != 1 or min(len(self.power), self._columns) < 2:
            raise ValueError(
                "power must have at least two rows and columns, all rows equally long, got rows of "
                f"{', '.join(str(len(row)) for row in self.power) or 'no'} numbers"
            )
        for number in (number for row in self.power for number in row):
            check_positive("power", number)

    @property
    def _columns(self) -> int:
        return len(self.power[0])

    @staticmethod
    def power_of(images: Tensor, bands: int = 8) -> list[list[float]]:
        """The `power` of images (N, C, H, W) in [0, 1], at bands × bands frequencies.

        Logarithms are fitted to those of the mean over images and channels, by least squares.
        Power below that of the rounding of 8-bit images counts as that.

        Raises:
            ValueError: names the argument.

        >>> images = 0.5 + 0.1 * torch.randn(500, 1, 16, 16)
        >>> power = GaussianEstimate.power_of(images, bands=3)
        >>> len(power), abs(power[1][1] - 0.01) < 0.001
        (3, True)
        """
        check_unit_images("images", images)
        check_integer("bands", bands, least=2, most=min(images.shape[2:]))
        rows, columns = (cosines(size).to(images.device) for size in images.shape[2:])
        power = (rows @ (images.double() - 0.5) @ columns.mT).square().mean((0, 1))
        down, across = (_shares(size, bands).pinverse().to(power) for size in images.shape[2:])
        return (down @ power.clamp(min=ROUNDING**2).log() @ across.mT).exp().tolist()

    @torch.no_grad()
    def of(self, physics: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Condition.of`."""
        adjoint = _adjoint(physics, self)
        grey = torch.full_like(like, 0.5)
        of_grey = physics.A(grey)
        _check_affine(physics, adjoint, grey, of_grey)
        root, enough = self._root(like), 100 * torch.finfo(like.dtype).eps

        def bend(w: Tensor) -> Tensor:
            count_calls(forward=1)
            return w + root(adjoint(physics.A(grey + root(w)) - of_grey)) / self.sigma**2

        def of_data(y: Tensor) -> Tensor:
            residual = root(adjoint(y - of_grey)) / self.sigma**2
            return self.scale * root(conjugate_gradients(bend, residual, self.iterations, enough))

        return of_data

    def _root(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """The symmetric root of the covariance, of images of the shape of `like`."""
        rows, columns = (cosines(size).to(like) for size in like.shape[2:])
        log_power = torch.tensor(self.power, dtype=torch.float64).log()
        by_row = _shares(like.shape[2], len(self.power)) @ log_power
        deviation = (by_row @ _shares(like.shape[3], self._columns).mT / 2).exp().to(like)
        return lambda x: rows.mT @ (deviation * (rows @ x @ columns.mT)) @ columns


def _shares(size: int, nodes: int) -> Tensor:
    """What each of `nodes` in [0, 1] counts at each of `size` frequencies by linear interpolation.

    (size, nodes); frequencies are those of the cosine transform, i/size.
    """
    at = torch.arange(size, dtype=torch.float64)[:, None] / size * (nodes - 1)
    return (1 - (at - torch.arange(nodes)).abs()).clamp(min=0)


def _adjoint(physics: nn.Module, condition: Condition) -> Callable[[Tensor], Tensor]:
    adjoint = getattr(physics, "A_adjoint", None)
    if adjoint is None:
        raise ValueError(
            f"{type(physics).__name__} has no A_adjoint, which {type(condition).__name__} needs: "
            "expected a linear operator, such as a deepinv LinearPhysics"
        )

    def counted(y: Tensor) -> Tensor:
        count_calls(adjoint=1)
        return adjoint(y)

    return counted


def _check_affine(
    physics: nn.Module, adjoint: Callable[[Tensor], Tensor], grey: Tensor, of_grey: Tensor
) -> None:
    """Raise ValueError unless A(½ + x) − A(½) is linear in x, with that adjoint."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(grey.shape, generator=generator).to(grey) / 8
    once, twice = physics.A(grey + x) - of_grey, physics.A(grey + 2 * x) - of_grey
    size = once.abs().square().sum()
    product = (adjoint(once) * x).sum()
    is_linear = (twice - 2 * once).abs().square().sum() <= 1e-4 * size
    if not (is_linear and (product - size).abs() <= 1e-2 * size):
        raise ValueError(
            f"GaussianEstimate needs a linear or affine operator whose A_adjoint is its adjoint, "
            f"which {type(physics).__name__} is not"
        )
