"""The chain of Gaussianization layers."""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.gaussianization.heavy_tails import lambert_w_gaussianize
from flowprior.gaussianization.ica import ica
from flowprior.gaussianization.patches import from_patches, to_patches
from flowprior.gaussianization.reparameterization import Reparameterization
from flowprior.gaussianization.standardization import scale_and_constancy, standardize
from flowprior.gaussianization.whitening import whiten
from flowprior.gaussianization.yeo_johnson import yeo_johnson

Rotation = Literal["ica", "none"]


class Gaussianization(Reparameterization):
    r"""z = h(v): whiten and rotate the patches of v, then give its entries the shape of N(0, γ²).

    Patches → whitening → ICA, `passes` times; then Yeo–Johnson → Lambert W → standardisation over
    all entries of a latent. Every row of the batch is independent of the others. h(v) has mean 0
    and standard deviation γ exactly. The scale of v matters only through η and the transforms of
    single entries.

    A row with NaN or infinite entries becomes NaN, with gradient 0; other rows are not affected. A
    constant row becomes 0.

    Reference: Li & Denli, Traversing within the Gaussian typical set: differentiable
    Gaussianization layers for inverse problems augmented by normalizing flows (2021), section 3.

    Args:
        patch_size: w; patches are C×w×w, or w entries of a vector.
        whiten: decorrelate the entries of a patch.
        rotation: "ica", after whitening, or "none".
        ica_iterations: number of fixed-point iterations; all of them are made.
        yeo_johnson: remove skewness.
        lambert_w: remove heavy tails.
        standardize: to mean 0 and standard deviation `temperature`.
        temperature: γ > 0.
        passes: number of times to whiten and rotate. Between two passes the latent is rolled by
            half a patch, and back at the end.
        eta: η > 0, which whitening adds to the variances.
        damping: α of the ICA iteration.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        patch_size: int = 8,
        whiten: bool = True,
        rotation: Rotation = "ica",
        ica_iterations: int = 10,
        yeo_johnson: bool = True,
        lambert_w: bool = True,
        standardize: bool = True,
        temperature: float = 1.0,
        passes: int = 1,
        eta: float = 1e-3,
        damping: float = 0.8,
    ) -> None:
        check_types(Gaussianization.__init__, locals())
        super().__init__()
        if patch_size < 1 or passes < 1 or ica_iterations < 0:
            raise ValueError(
                "patch_size and passes must be at least 1 and ica_iterations at least 0, got "
                f"{patch_size}, {passes} and {ica_iterations}"
            )
        if rotation not in ("ica", "none"):
            raise ValueError(f'rotation must be "ica" or "none", got {rotation!r}')
        if rotation == "ica" and not whiten:
            raise ValueError('rotation="ica" needs whiten=True')
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if temperature != 1 and not standardize:
            raise ValueError(f"temperature={temperature} has no effect with standardize=False")
        self.patch_size = patch_size
        self.whiten = whiten
        self.rotation = rotation
        self.ica_iterations = ica_iterations
        self.yeo_johnson = yeo_johnson
        self.lambert_w = lambert_w
        self.standardize = standardize
        self.temperature = temperature
        self.passes = passes
        self.eta = eta
        self.damping = damping

    @classmethod
    def paper(cls, temperature: float = 1.0) -> "Gaussianization":
        """As published: 8×8 patches, whitening, ten iterations of ICA, both 1-D layers."""
        return cls(temperature=temperature)

    @classmethod
    def robust(cls, temperature: float = 1.0) -> "Gaussianization":
        """4×4 patches, whitening in two passes without rotation, both 1-D layers.

        A typical latent stays nearly as it is, unlike with ICA on few patches; as much correlation
        is removed from others. docs/gaussianization.md has the measurements.
        """
        return cls(patch_size=4, rotation="none", passes=2, temperature=temperature)

    def forward(self, v: Tensor) -> Tensor:
        """Map v, floating point, to z of the same shape.

        v is (B, C, H, W), or (B, ...) of another number of dimensions, which counts as (B, n).
        """
        if not v.is_floating_point() or v.ndim < 2:
            raise ValueError(
                f"Gaussianization: v must be floating point (B, ...), got {v.dtype} "
                f"{tuple(v.shape)}"
            )
        if v.ndim not in (2, 4):
            return self.forward(v.flatten(1)).view_as(v)
        # Autocast is too imprecise for solvers and eigendecompositions.
        with torch.autocast(v.device.type, enabled=False):
            finite = v.isfinite().flatten(1).all(1, keepdim=True)
            # A constant minus its mean is a rounding error, which must not be scaled up.
            usable = finite & ~scale_and_constancy(v.flatten(1))[1]
            x = torch.where(usable, v.flatten(1), 0).view_as(v)
            rows = self._decorrelated(x).flatten(1) if self.whiten else x.flatten(1)
            rows = self._shaped(rows)
            return torch.where(finite, rows, torch.nan).view_as(v)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def extra_repr(self) -> str:
        """The settings."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())

    def _decorrelated(self, x: Tensor) -> Tensor:
        half = self.patch_size // 2
        dims = tuple(range(x.ndim))[-2:] if x.ndim == 4 else (1,)
        for index in range(self.passes):
            if index:
                x = x.roll([-half] * len(dims), dims)
            patches = whiten(to_patches(x, self.patch_size), self.eta)
            if self.rotation == "ica":
                patches = ica(patches, self.ica_iterations, self.damping)
            x = from_patches(patches, x.shape, self.patch_size)
        shift = half * (self.passes - 1)
        return x.roll([shift] * len(dims), dims) if shift else x

    def _shaped(self, rows: Tensor) -> Tensor:
        if self.yeo_johnson:
            rows = yeo_johnson(rows)
        if self.lambert_w:
            rows = lambert_w_gaussianize(rows)
        return standardize(rows, self.temperature) if self.standardize else rows
