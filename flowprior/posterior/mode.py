"""The most probable latent of each image, by Levenberg and Marquardt's method."""

from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.inversion.descent import chosen
from flowprior.posterior.likelihood import Likelihood, images

_COOLING = 0.7
_TRIES = 8
_SUFFICIENT = 1e-3
"""Of the fall that a step promises: one that gives less is not taken."""
_POOR, _GOOD = 0.25, 0.75
_LEAST_DAMPING = 1e-3
FIRST, REACH = 0.02, 0.25
"""Distances of central differences: at the start, and in standard deviations afterwards."""
_PER_CALL = 32


class Mode(NamedTuple):
    """Where the search of k rows ended.

    Args:
        z: latents (k, n).
        root: lower S (k, n, n), with S Sᵀ = (I + Jᵀ J)⁻¹ and J the derivative of the data there.
        energy: misfit + ½‖z‖², (k,) float64.
    """

    z: Tensor
    root: Tensor
    energy: Tensor

    @property
    def surprisal(self) -> Tensor:
        """−log of the evidence by Laplace's approximation, up to a constant, (k,) float64."""
        return self.energy - log_det(self.root)


class Search:
    r"""Levenberg and Marquardt's method for misfit(A(G(z)), y) + ½‖z‖², from latents v (k, n).

    Each row has a damping, a temperature and an end of its own. The misfit is divided by T², where
    T falls from the residual at the start, in units of the noise, to 1: at first only what most
    data agree on moves the latent, and fewer rows end at a local minimum. J is by central
    differences, so that any operator will do, over a quarter of the standard deviations of the
    normal distribution at the last latent: the curvature counts over the distance that the data
    leave open, and kinks of networks within it do not matter.

    References: Nocedal & Wright, Numerical optimization (2006), section 10.3; Marquardt, An
    algorithm for least-squares estimation of nonlinear parameters (1963), for the damping.

    Args:
        likelihood: of the batch.
        v: latents (k, n) to start from.
        rows: of which images they are.
    """

    def __init__(self, likelihood: Likelihood, v: Tensor, rows: Tensor) -> None:
        self.likelihood, self.rows = likelihood, rows
        self.z, count, size = v.detach(), len(v), v.shape[1]
        self.eye = torch.eye(size, dtype=torch.float64, device=v.device)
        self.root = FIRST * self.eye.expand(count, size, size)
        self.reach = 1.0
        self.misfit, self.residual = self._misfit(self.z)
        self.heat = self.residual.clamp(min=1)
        self.damping = torch.zeros_like(self.residual)
        self.ended = ~self.misfit.isfinite()

    def run(self, iterations: int, tolerance: float) -> Mode:
        """Make up to so many steps; one that promises less than so many nats is a row's last."""
        for _ in range(iterations):
            if self.ended.all():
                break
            self._step(tolerance)
        if not self.ended.all():
            self._linearised()
        energy = self.misfit + _half_square(self.z)
        return Mode(self.z, self.root.to(self.z), energy)

    def _step(self, tolerance: float) -> None:
        hessian, cold = self._linearised(), self.heat <= 1
        gradient = self._gradient()
        newton = torch.linalg.solve(hessian, gradient)
        promise = 0.5 * (gradient * newton).sum(1)
        pending, last = ~self.ended, cold & ~(promise > tolerance)
        for _ in range(_TRIES):
            if not pending.any():
                break
            pending = pending & ~self._tried(hessian, gradient, pending)
        self.ended = self.ended | last | (pending & cold)
        cooler = torch.minimum(self.residual, _COOLING * self.heat).clamp(min=1)
        self.heat = torch.where(self.ended, self.heat, cooler)

    def _tried(self, hessian: Tensor, gradient: Tensor, pending: Tensor) -> Tensor:
        """Try a step of the pending rows with their damping; returns the rows that took it."""
        extra = torch.diag_embed(hessian.diagonal(dim1=1, dim2=2))
        damped = hessian + self.damping[:, None, None] * extra
        step = -torch.linalg.solve(damped, gradient)
        bent = (step[:, None] @ hessian @ step[..., None])[:, 0, 0]
        promise = -(gradient * step).sum(1) - 0.5 * bent
        z = (self.z.double() + step).to(self.z)
        misfit, residual = self._misfit(z)
        change = (self.misfit - misfit) / self.heat.square()
        ratio = (change + _half_square(self.z) - _half_square(z)) / promise
        ratio = ratio.nan_to_num(nan=-torch.inf)
        taken = pending & (ratio > _SUFFICIENT)
        self.z = torch.where(taken[:, None], z, self.z)
        self.misfit = torch.where(taken, misfit, self.misfit)
        self.residual = torch.where(taken, residual, self.residual)
        more = (4 * self.damping).clamp(min=_LEAST_DAMPING)
        less = torch.where(self.damping > _LEAST_DAMPING, self.damping / 4, 0)
        next_one = torch.where(ratio > _GOOD, less, self.damping)
        next_one = torch.where(ratio < _POOR, more, next_one)
        self.damping = torch.where(pending, next_one, self.damping)
        return taken

    @torch.no_grad()
    def _misfit(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Misfits and rms residuals in units of the noise, (k,) float64."""
        problem, noise = self.likelihood.problem, self.likelihood.noise
        predicted = problem.forward.several(images(problem, z[:, None], self.rows), self.rows)[:, 0]
        y = problem.y[self.rows]
        return noise.misfit(predicted, y).double(), noise.residual(predicted, y).double()

    def _gradient(self) -> Tensor:
        gradient = misfit_gradient(self.likelihood, self.z[:, None], self.rows)[:, 0]
        return gradient / self.heat.square()[:, None] + self.z.double()

    def _linearised(self) -> Tensor:
        """Take derivatives; returns the matrix JᵀJ/T² + I of the model, (k, n, n) float64."""
        gram = gram_matrix(self.likelihood, self.z, self.reach * self.root, self.rows)
        sound = gram.isfinite().flatten(1).all(1)
        self.ended, gram = self.ended | ~sound, chosen(sound, gram, torch.zeros_like(gram))
        root = root_of(gram + self.eye)
        self.root = torch.where(self.ended[:, None, None], self.root, root)
        self.reach = REACH
        return gram / self.heat.square()[:, None, None] + self.eye


def misfit_gradient(likelihood: Likelihood, z: Tensor, rows: Tensor) -> Tensor:
    """Gradients of the misfit, float64, at latents z (k, m, n) of the images `rows`."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(likelihood(z, rows)[1].sum(), z)
    return gradient.double()


def gram_matrix(likelihood: Likelihood, v: Tensor, steps: Tensor, rows: Tensor) -> Tensor:
    """JᵀJ (k, n, n) float64 of data in units of the noise, by latents v (k, n) of `rows`.

    By central differences along the columns of steps (k, n, n), lower triangular float64, with 2·n
    images; or by derivatives of each of the data, if these are fewer than half of the latents.
    """
    if real_data(likelihood.problem.y) < v.shape[1] / 2:
        jacobian = _by_data(likelihood, v, rows).double()
        return jacobian.mT @ jacobian
    along = _differences(likelihood, v, steps.mT.to(v), rows).double()
    jacobian = torch.linalg.solve_triangular(steps.mT, along, upper=True)
    return jacobian @ jacobian.mT


def real_data(y: Tensor) -> int:
    """Real numbers in the data of an image."""
    return y[0].numel() * (2 if y.is_complex() else 1)


@torch.no_grad()
def _differences(likelihood: Likelihood, v: Tensor, steps: Tensor, rows: Tensor) -> Tensor:
    """Half of what data (k, l, m) at v + steps are more than those at v − steps (k, l, n)."""
    found = []
    for part in steps.split(_PER_CALL, 1):
        sides = torch.cat([v[:, None] + part, v[:, None] - part], 1)
        above, below = _standardised(likelihood, sides, rows).chunk(2, 1)
        found.append((above - below) / 2)
    return torch.cat(found, 1)


def _by_data(likelihood: Likelihood, v: Tensor, rows: Tensor) -> Tensor:
    """Derivatives (k, m, n) at latents v (k, n)."""
    found = []
    for numbers in torch.arange(real_data(likelihood.problem.y), device=v.device).split(_PER_CALL):
        z = v[:, None].expand(-1, len(numbers), -1).detach().clone().requires_grad_()
        with torch.enable_grad():
            data = _standardised(likelihood, z, rows)
            chosen_ones = data[:, torch.arange(len(numbers), device=v.device), numbers]
            found.append(torch.autograd.grad(chosen_ones.sum(), z)[0])
    return torch.cat(found, 1)


def _standardised(likelihood: Likelihood, z: Tensor, rows: Tensor) -> Tensor:
    """Residuals (k, l, m) in units of the noise, real, of latents z (k, l, n)."""
    problem, noise = likelihood.problem, likelihood.noise
    predicted = problem.forward.several(images(problem, z, rows), rows)
    y = problem.y[rows].repeat_interleave(z.shape[1], 0)
    standard = noise.standardised(predicted.flatten(0, 1), y).unflatten(0, z.shape[:2])
    standard = torch.view_as_real(standard) if standard.is_complex() else standard
    return standard.flatten(2)


def root_of(precision: Tensor) -> Tensor:
    """The lower S with S Sᵀ the inverse of matrices (k, n, n)."""
    return torch.linalg.cholesky(torch.linalg.inv(precision))


def log_det(root: Tensor) -> Tensor:
    """log|det| of triangular matrices (k, n, n), (k,) float64."""
    return root.diagonal(dim1=1, dim2=2).double().log().sum(1)


def _half_square(z: Tensor) -> Tensor:
    return 0.5 * z.double().square().sum(1)
