"""Rows that need no inversion."""

from dataclasses import dataclass
from typing import ClassVar

from flowprior.inversion import ImageRun, Problem, Run, Solver


@dataclass(frozen=True)
class Data(Solver):
    """The data themselves as images; for data of the images' shape."""

    differentiates: ClassVar[bool] = False

    def begin(self, problem: Problem) -> Run:
        """Take the data."""
        return ImageRun(problem, problem.y)
