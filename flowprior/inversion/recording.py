"""What can be seen of an inversion while it runs."""

import torch
from torch import Tensor

from flowprior.inversion.solvers import CURVES, Solver
from flowprior.metrics import lpips, psnr, ssim, typicality


class Recording:
    """Curves and pictures of every image of a batch; an `on_iteration` of `invert`.

    Args:
        truth: images (B, C, H, W) in [0, 1]; without them there is nothing but the objective.
        pictures: how many images to keep pictures of, the first of them.
        patch_size: of the typicality.
        last: the iteration after which no other comes, when pictures are kept too.

    Attributes:
        iterations: those recorded.
        snapshots: images (pictures, C, H, W) by iteration, 0, 1, 2, 5, 10, 20, 50, ...
        typicality: diagnostics of the latents z, (B,) each, by iteration, the same ones.
    """

    def __init__(
        self,
        truth: Tensor | None = None,
        pictures: int = 0,
        patch_size: int = 8,
        last: int | None = None,
    ) -> None:
        self.last = last
        self.truth = truth
        self.pictures = pictures
        self.patch_size = patch_size
        self.typicality: dict[int, dict[str, Tensor]] = {}
        self.iterations: list[int] = []
        self.snapshots: dict[int, Tensor] = {}
        self._rows: list[dict[str, Tensor]] = []

    def __call__(self, iteration: int, solver: Solver) -> None:
        """Note where the solver is."""
        row = dict(zip(CURVES, solver.values.clone(), strict=True))
        if self.truth is not None:
            row |= similarity(solver.x, self.truth)
        self._rows.append(row)
        self.iterations.append(iteration)
        if is_milestone(iteration) or iteration == self.last:
            self._keep(iteration, solver)

    @property
    def latest(self) -> dict[str, Tensor]:
        """Loss, misfit, log_prior and, with the truth, psnr, ssim and perhaps lpips; (B,) each."""
        return self._rows[-1]

    @property
    def curves(self) -> dict[str, Tensor]:
        """The same at all iterations recorded, (iterations, B) each, float64, on the CPU."""
        return {
            name: torch.stack([row[name] for row in self._rows]).double().cpu()
            for name in self._rows[0]
        }

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """Typicality of the latents where pictures were kept, (pictures, B) each, on the CPU."""
        kept = list(self.typicality.values())
        names = kept[0] if kept else {}
        return {name: torch.stack([row[name] for row in kept]).double().cpu() for name in names}

    def _keep(self, iteration: int, solver: Solver) -> None:
        self.snapshots[iteration] = solver.x[: self.pictures].detach().cpu().clone()
        z = solver.problem.latents(solver.v.detach())
        if z is not None and z.ndim == 4:
            self.typicality[iteration] = typicality(z, self.patch_size)


def similarity(x: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """PSNR, SSIM (of images of at least 11×11) and, if its network is there, LPIPS; (B,) each."""
    found = {"psnr": psnr(x, truth)}
    if min(x.shape[2:]) >= 11:
        found["ssim"] = ssim(x, truth)
    distance = lpips(x, truth)
    return found if distance is None else {**found, "lpips": distance}


def is_milestone(iteration: int) -> bool:
    """Whether it is 0 or 1, 2 or 5 times a power of ten.

    >>> [k for k in range(300) if is_milestone(k)]
    [0, 1, 2, 5, 10, 20, 50, 100, 200]
    """
    return iteration == 0 or str(iteration).rstrip("0") in ("1", "2", "5")
