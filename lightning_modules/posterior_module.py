"""A posterior of a batch of images under a Trainer."""

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from flowprior.inversion import Posterior
from lightning_modules.inversion_module import InversionModule


class PosteriorModule(InversionModule):
    """An `InversionModule` of a solver with a posterior, such as `Langevin()` or `Variational()`.

    At the end of the fit, what is wrong with the chains or the fit is a warning.

    Raises:
        ValueError: names the argument that is wrong or does not fit; when the fit begins, also if
            the solver has no posterior.
    """

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """See `InversionModule`."""
        optimizer = super().configure_optimizers()
        if not hasattr(self.run, "posterior"):
            raise ValueError(
                f"solver {type(self.solver).__name__} has no posterior: take one of "
                "flowprior.posterior, such as Langevin()"
            )
        return optimizer

    def on_train_end(self) -> None:
        """Give the run's warnings."""
        for warning in getattr(self.run, "warnings", tuple)():
            rank_zero_warn(warning)

    @property
    def posterior(self) -> Posterior:
        """What to draw images from, as far as the fit has come.

        Raises:
            RuntimeError: there are no draws yet.
        """
        found = None if self.run is None else self.run.posterior()
        if found is None:
            raise RuntimeError(
                "there is no posterior before Trainer.fit, or before the warm-up has ended"
            )
        return found
