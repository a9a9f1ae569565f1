"""Untrained networks as priors."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_fields
from flowprior.checks import check_integer, check_positive
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.images import ImageRun, row_seed
from flowprior.inversion.problem import Problem
from flowprior.inversion.solving import Solver

GRID = 4
"""Side of the network's input in pixels."""


@dataclass(frozen=True)
class DeepImagePrior(Solver):
    r"""Minimise misfit(A(G_θ(z)), y) over the parameters θ of an untrained network, by Adam.

    z ~ N(0, I) is fixed. Each image has its own network, deepinv's `ConvDecoder`, with its own
    random parameters. What regularises is the network and the end: with many iterations it fits the
    noise, so choose their number on validation images. Starting images are not used.

    References: Ulyanov, Vedaldi & Lempitsky, Deep image prior (2018); the network is that of
    Darestani & Heckel, Accelerated MRI with un-trained neural networks (2021).

    Args:
        learning_rate: of Adam.
        channels: of each layer.
        layers: number of layers, at least 2.

    Raises:
        ValueError: names the option.
    """

    learning_rate: float = 0.01
    channels: int = 64
    layers: int = 5
    uses_start: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive("learning_rate", self.learning_rate)
        check_integer("channels", self.channels, least=1)
        check_integer("layers", self.layers, least=2)

    def begin(self, problem: Problem) -> "DeepImagePriorRun":
        """Start from random networks."""
        problem.misfit(None, "DeepImagePrior")
        return DeepImagePriorRun(self, problem)


class DeepImagePriorRun(ImageRun):
    """The batch of a `DeepImagePrior`."""

    def __init__(self, solver: DeepImagePrior, problem: Problem) -> None:
        super().__init__(problem)
        self.fits = [_Fit(solver, problem, row) for row in range(len(self.x))]
        self._evaluate()

    def step(self) -> None:
        """Make one step of Adam for every finite image."""
        for row in self.finite.nonzero()[:, 0].tolist():
            self.fits[row].optimizer.step()
        self._evaluate()

    def _evaluate(self) -> None:
        """Update images and gradients."""
        self.x = by_rows(self._images, self.problem.rows)
        self.measure()

    def _images(self, rows: Tensor) -> Tensor:
        """Images of the networks, whose gradients are set."""
        return torch.cat([self._image(row) for row in rows.split(1)])

    def _image(self, row: Tensor) -> Tensor:
        fit = self.fits[int(row)]
        fit.optimizer.zero_grad()
        with torch.enable_grad():
            x = fit.network(fit.z)
            self._misfit(x, row).sum().backward()
        return x.detach()

    def state_dict(self) -> dict[str, Any]:
        """Images, values, networks and optimisers."""
        return {**super().state_dict(), "fits": [fit.state_dict() for fit in self.fits]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from such a state; the gradients are computed again."""
        super().load_state_dict(state)
        for fit, saved in zip(self.fits, state["fits"], strict=True):
            fit.load_state_dict(saved)
        by_rows(self._images, self.problem.rows)


class _Fit:
    """The network of one image, its input and its optimiser."""

    def __init__(self, solver: DeepImagePrior, problem: Problem, row: int) -> None:
        from deepinv.models import ConvDecoder

        shape = problem.image_shape
        with torch.random.fork_rng():
            torch.manual_seed(row_seed(problem, row))
            network = ConvDecoder(shape, (GRID, GRID), solver.layers, solver.channels)
            z = torch.randn(1, solver.channels, GRID, GRID)
        self.network: nn.Module = network.to(problem.like)
        self.z = z.to(problem.like)
        self.optimizer = torch.optim.Adam(self.network.parameters(), solver.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
