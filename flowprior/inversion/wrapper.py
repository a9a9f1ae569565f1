"""A solver that runs another one."""

from flowprior.inversion.solving import Solver
from flowprior.priors import Prior


class Wrapper(Solver):
    """Base of solvers with an option `solver`, which need and use what this one does."""

    solver: Solver

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of the solver."""
        return self.solver.needs

    @property
    def differentiates(self) -> bool:
        """Whether the solver uses gradients."""
        return self.solver.differentiates

    @property
    def through(self) -> bool:
        """Whether the solver uses gradients of projections."""
        return self.solver.through

    @property
    def uses_start(self) -> bool:
        """Whether the images of the solver depend on a start."""
        return self.solver.uses_start

    def check(self, prior: Prior | None, who: str = "") -> None:
        """See `Solver.check`."""
        self.solver.check(prior, f"{who}{type(self).__name__} of ")
