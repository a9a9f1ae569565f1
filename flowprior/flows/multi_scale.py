"""What multi-scale flows share: squeezes, variables that leave early, the canvas of latents."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.flows.initialized import InitializedFlow
from flowprior.flows.memory_flat import ChainLayer
from flowprior.flows.split_gaussian import SplitGaussian

Runner = Callable[[Sequence[ChainLayer], Tensor], tuple[Tensor, Tensor]]


class Level(Protocol):
    """The flow steps of one level, on (B, C, H, W) at a fixed resolution."""

    def encode(self, x: Tensor, run: Runner, *condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y, log_det) with the layers applied by `run`, given a condition if there is one.

        A condition is (B, K, H, W), at the resolution of the level.
        """

    def decode(self, y: Tensor, run: Runner, *condition: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `encode`, with the log-determinant of the inverse."""

    def initialize(self, x: Tensor, *condition: Tensor) -> Tensor:
        """Initialise the ActNorms one after another on x; returns the level's output."""


class MultiScaleFlow(InitializedFlow):
    """A flow of levels, each of which first squeezes 2×2 pixels into channels.

    After some levels half of the channels leave, and so do all of them after the last. What leaves
    is standardised by a Gaussian, given what stays, so that the public latent is N(0, I). The
    latents of all levels are arranged as one *canvas* of the image's shape by undoing splits and
    squeezes: each of its 2^levels × 2^levels blocks holds entries of all levels.

    ActNorms are initialised by the first batch encoded in training mode, over all processes at
    once.

    Args:
        image_shape: (C, H, W), H and W divisible by 2**(number of levels).
        data_range: (low, high) of the images.
        arguments: those of the subclass's constructor.
        levels: from the finest to the coarsest.
        gaussians: of what leaves after each level; None where nothing leaves. All leave after the
            last.
        memory_efficient: rebuild activations by inversion in the backward pass where they would
            take more than `kept_bytes`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        data_range: tuple[float, float],
        arguments: dict[str, Any],
        levels: Iterable[Level],
        gaussians: Iterable[SplitGaussian | None],
        memory_efficient: bool,
    ) -> None:
        super().__init__(image_shape, data_range, arguments, memory_efficient)
        self.levels = nn.ModuleList(levels)
        self.priors = nn.ModuleList(gaussians)

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) to (z (B, C, H, W), log|det dz/dx| (B,))."""
        self.check_shape(x, self.image_shape, "x")
        given = self.given(condition, x)
        if self.training and not self.is_initialized():
            self.initialize(x, given)
        log_det = x.new_zeros(len(x))
        left: list[Tensor | None] = []
        for level, gaussian, own in zip(self.levels, self.priors, given, strict=True):
            x, level_log_det = level.encode(F.pixel_unshuffle(x, 2), self.run, *own)
            log_det = log_det + level_log_det
            if gaussian is None:
                left.append(None)
                continue
            z, x = (x, None) if level is self.levels[-1] else x.chunk(2, 1)
            epsilon, gaussian_log_det = gaussian.standardize(z, x)
            left.append(epsilon)
            log_det = log_det + gaussian_log_det
        return _to_canvas(left), log_det

    def decode(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latents z (B, C, H, W) to (x (B, C, H, W), log|det dx/dz| (B,))."""
        self.check_shape(z, self.latent.shape, "z")
        log_det = z.new_zeros(len(z))
        x: Tensor | None = None
        left = _from_canvas(z, [gaussian is not None for gaussian in self.priors])
        given = self.given(condition, z)
        for level, gaussian, epsilon, own in zip(
            reversed(self.levels),
            reversed(self.priors),
            reversed(left),
            reversed(given),
            strict=True,
        ):
            if gaussian is not None:
                out, gaussian_log_det = gaussian.restore(epsilon, x)
                x = out if x is None else torch.cat([out, x], 1)
                log_det = log_det + gaussian_log_det
            x, level_log_det = level.decode(x, self.run, *own)
            x = F.pixel_shuffle(x, 2)
            log_det = log_det + level_log_det
        return x, log_det

    def given(self, condition: Tensor | None, x: Tensor) -> list[tuple[Tensor, ...]]:
        """What the couplings of each level are given besides x: nothing.

        Raises:
            ValueError: there is a condition.
        """
        if condition is not None:
            raise ValueError(f"{type(self).__name__} is not conditional: it takes no condition")
        return [()] * len(self.levels)

    @torch.no_grad()
    def initialize(self, x: Tensor, given: Sequence[tuple[Tensor, ...]]) -> None:
        """Set every ActNorm from the batch x (B, C, H, W), over all processes at once."""
        for level, gaussian, own in zip(self.levels, self.priors, given, strict=True):
            x = level.initialize(F.pixel_unshuffle(x, 2), *own)
            x = x if gaussian is None else x.chunk(2, 1)[1]
        self.end_initialization()


def image_size_of(image_size: int | tuple[int, int], levels: int) -> tuple[int, int]:
    """(H, W) of an option that may be one number.

    Raises:
        ValueError: a side is not divisible by 2**levels.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if any(side < 1 or side % 2**levels for side in (height, width)):
        raise ValueError(
            f"image_size must be divisible by 2**levels = {2**levels}, got {height}x{width}"
        )
    return height, width


def check_counts(**counts: int) -> None:
    """Raise ValueError unless every number is at least 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def check_limits(log_scale_limit: float | None, shift_limit: float | None) -> None:
    """Raise ValueError unless each is None or such that a coupling is of use."""
    for name, limit, low, high in (
        ("log_scale_limit", log_scale_limit, 0.001, 10),
        ("shift_limit", shift_limit, 0.1, 1000),
    ):
        if limit is not None and not low <= limit <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], or null, got {limit}")


def _to_canvas(left: list[Tensor | None]) -> Tensor:
    """Join the latents of the levels, finest first, into one tensor of the image's shape."""
    canvas = F.pixel_shuffle(left[-1], 2)
    for epsilon in reversed(left[:-1]):
        joined = canvas if epsilon is None else torch.cat([epsilon, canvas], 1)
        canvas = F.pixel_shuffle(joined, 2)
    return canvas


def _from_canvas(canvas: Tensor, leaves: Sequence[bool]) -> list[Tensor | None]:
    left: list[Tensor | None] = []
    for some_leave in leaves[:-1]:
        canvas, epsilon = F.pixel_unshuffle(canvas, 2), None
        if some_leave:
            epsilon, canvas = canvas.chunk(2, 1)
        left.append(epsilon)
    return [*left, F.pixel_unshuffle(canvas, 2)]
