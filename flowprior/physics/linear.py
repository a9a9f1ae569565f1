"""Linear and affine operators that deepinv lacks, or whose adjoint or precision is wrong there."""

from typing import Any

import torch
from deepinv.physics import MRI, LinearPhysics, Physics, Tomography, adjoint_function
from torch import Tensor
from torch.nn import functional

from flowprior.argument_types import check_types
from flowprior.checks import check_number


class TightFrame(LinearPhysics):
    """A with A Aᵀ = s I, so that pseudo-inverse and proximal map have closed forms.

    deepinv's `Decolorize.prox_l2` is wrong: it assumes a square matrix V.
    """

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Aᵀ y/s, the solution of least norm."""
        return self.A_adjoint(y) / self.gain

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: Any, **kwargs: Any) -> Tensor:
        """Minimise γ/2 ‖A x − y‖² + ½‖x − z‖² over x."""
        w = gamma * self.A_adjoint(y) + (0 if z is None else z)
        return w - self.A_adjoint(self.A(w)) * gamma / (1 + gamma * self.gain)


class AboutGrey(Physics):
    """A linear operator J on what differs from grey, A(x) = J(x − grey), which is affine.

    Args:
        linear: J.
        grey: value of x whose data are 0.

    Raises:
        ValueError: names the option.
    """

    def __init__(self, linear: LinearPhysics, grey: float = 0.5) -> None:
        check_types(AboutGrey.__init__, locals())
        check_number("grey", grey)
        super().__init__()
        self.linear, self.grey = linear, grey

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """J(x − grey)."""
        return self.linear.A(x - self.grey, **kwargs)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Jᵀy: the adjoint of J, and of the derivative of A."""
        return self.linear.A_adjoint(y, **kwargs)

    def A_vjp(self, x: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        """Jᵀv, whatever x is."""
        return self.linear.A_adjoint(v, **kwargs)

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        """The solution of least squares that is nearest to grey."""
        return self.grey + self.linear.A_dagger(y, **kwargs)


class BoxDownsampling(TightFrame):
    """Means of factor×factor blocks: (B, C, H, W) → (B, C, H/factor, W/factor), s = 1/factor²."""

    def __init__(self, factor: int) -> None:
        super().__init__(factor**-2)
        self.factor = factor

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Mean of every block."""
        return functional.avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Every entry divided by factor² and copied to its block."""
        rows = y.repeat_interleave(self.factor, -2)
        return rows.repeat_interleave(self.factor, -1) * self.gain


class BilinearDownsampling(LinearPhysics):
    """Antialiased bilinear resizing: (B, C, H, W) → (B, C, H/factor, W/factor).

    Every entry is a mean of 2·factor × 2·factor pixels, whose weights fall linearly from its
    centre; those of pixels beyond the border go to the others, as in torchvision and TensorFlow.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The small image."""
        size = [side // self.factor for side in x.shape[2:]]
        return functional.interpolate(x, size=size, mode="bilinear", antialias=True)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Exact adjoint, by automatic differentiation; differentiable itself."""
        shape = (*y.shape[:2], *(side * self.factor for side in y.shape[2:]))
        return adjoint_function(self.A, shape, y.device, y.dtype)(y)


class ChannelMean(TightFrame):
    """Mean of the channels: (B, C, H, W) → (B, 1, H, W), s = 1/C."""

    def __init__(self, channels: int) -> None:
        super().__init__(1 / channels)
        self.channels = channels

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The mean of the channels."""
        if x.shape[1] != self.channels:
            raise ValueError(f"ChannelMean takes {self.channels} channels, got {tuple(x.shape)}")
        return x.mean(1, keepdim=True)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """The grey image divided by C, in every channel."""
        return y.expand(-1, self.channels, -1, -1) * self.gain


class GaussianMeasurements(LinearPhysics):
    """Product with a stored matrix: (B, C, H, W) → (B, m).

    deepinv's `CompressedSensing` stores the matrix twice and also its pseudo-inverse, draws
    another one on another device, and cannot change its precision.
    """

    def __init__(self, image_shape: tuple[int, int, int], matrix: Tensor) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        self.register_buffer("matrix", matrix)

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The measurements (B, m) of images (B, C, H, W)."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"GaussianMeasurements takes (B, {', '.join(map(str, self.image_shape))}), got "
                f"{tuple(x.shape)}"
            )
        return _rows_times(x.flatten(1), self.matrix.mT)

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Product of the transposed matrix and measurements (B, m), as images (B, C, H, W)."""
        return _rows_times(y, self.matrix).unflatten(1, self.image_shape)


def _rows_times(x: Tensor, matrix: Tensor) -> Tensor:
    """X M; on a CPU row by row, because the last digits of a product depend on the batch size."""
    if x.device.type != "cpu" or not len(x):
        return x @ matrix
    return torch.stack([row @ matrix for row in x])


class RealMRI(LinearPhysics):
    """`deepinv.physics.MRI` of real images: (B, 1, H, W) → (B, 2, H, W), real and imaginary."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.complex = MRI(mask=mask)

    @property
    def mask(self) -> Tensor:
        """1 where k-space is measured, (1, 2, H, W)."""
        return self.complex.mask

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The measured part of k-space."""
        if x.shape[1] != 1:
            raise ValueError(f"RealMRI takes one channel, got {tuple(x.shape)}")
        return self.complex.A(torch.cat([x, torch.zeros_like(x)], 1))

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Real part of the zero-filled inverse DFT."""
        return self.complex.A_adjoint(y)[:, :1]


class ParallelBeam(Tomography):
    """`deepinv.physics.Tomography` that can change device and precision after its first adjoint.

    deepinv caches the adjoint of the first call by its shape alone, and then returns float32.
    """

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        """Exact adjoint, by automatic differentiation; differentiable itself."""
        shape = (*y.shape[:2], self.img_width, self.img_width)
        return adjoint_function(self.A, shape, y.device, y.dtype)(y)
