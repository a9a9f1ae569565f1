"""Curves and pictures of an inversion while it runs."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.extras import MissingExtra
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.solving import Run
from flowprior.inversion.timing import now
from flowprior.metrics import lpips, psnr, ssim, typicality


class Recording:
    """Curves and pictures of every image of a batch: an observer of `solve`.

    Args:
        truth: images (B, C, H, W) in [0, 1]; without them only the run's own values are recorded.
        pictures: number of images whose pictures are kept.
        last: final iteration, at which pictures are kept too.

    Attributes:
        iterations: numbers of the recorded iterations.
        snapshots: images (pictures, C, H, W) by iteration: 0, 1, 2, 5, 10, 20, 50, ...
        typicality: diagnostics of the latents z, (B,) each, at the same iterations.
        seconds: time of the run since this object was made, without that of recording.
    """

    def __init__(
        self, truth: Tensor | None = None, pictures: int = 0, last: int | None = None
    ) -> None:
        check_types(Recording.__init__, locals())
        self.truth = truth
        self.pictures = pictures
        self.last = last
        self.iterations: list[int] = []
        self.snapshots: dict[int, Tensor] = {}
        self.typicality: dict[int, dict[str, Tensor]] = {}
        self.seconds = 0.0
        self._last_call = now()
        self._rows: list[dict[str, Tensor]] = []

    def __call__(self, iteration: int, run: Run) -> None:
        """Record the values of the run, and at milestones its images."""
        self.seconds += now(run.x.device) - self._last_call
        row = {name: value.clone() for name, value in run.values.items()}
        if self.truth is not None:
            row |= by_rows(similarity, run.x, self.truth)
        self._rows.append(row)
        self.iterations.append(iteration)
        if is_milestone(iteration) or iteration == self.last:
            self._keep(iteration, run)
        self._last_call = now(run.x.device)

    @property
    def latest(self) -> dict[str, Tensor]:
        """The run's values and, with the truth, psnr, ssim and perhaps lpips; (B,) each."""
        return self._rows[-1]

    @property
    def curves(self) -> dict[str, Tensor]:
        """The same at all recorded iterations, (iterations, B) each, float64, on the CPU."""
        return _stacked(self._rows)

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """Typicality of the latents at the milestones, (milestones, B) each, on the CPU."""
        return _stacked(list(self.typicality.values()))

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded."""
        names = ("iterations", "snapshots", "typicality", "seconds", "_rows")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
        self.snapshots = {k: pictures.cpu() for k, pictures in self.snapshots.items()}
        self._last_call = now()

    def _keep(self, iteration: int, run: Run) -> None:
        self.snapshots[iteration] = run.x[: self.pictures].detach().cpu().clone()
        z = run.z
        if z is not None:
            self.typicality[iteration] = by_rows(typicality, z)


def _stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = rows[0] if rows else {}
    return {name: torch.stack([row[name].double().cpu() for row in rows]) for name in names}


def similarity(x: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """PSNR, SSIM (from 11×11 pixels) and, if its network is available, LPIPS; (B,) each.

    What takes a package that is not installed is left out.
    """
    found = {"psnr": psnr(x, truth)}
    with suppress(MissingExtra):
        if min(x.shape[2:]) >= 11:
            found["ssim"] = ssim(x, truth)
        distance = lpips(x, truth)
        found |= {} if distance is None else {"lpips": distance}
    return found


def is_milestone(iteration: int) -> bool:
    """Whether the number is 0, or 1, 2 or 5 times a power of ten.

    >>> [k for k in range(300) if is_milestone(k)]
    [0, 1, 2, 5, 10, 20, 50, 100, 200]
    """
    return iteration == 0 or str(iteration).rstrip("0") in ("1", "2", "5")
