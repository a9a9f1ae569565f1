"""One batch of inverse problems: data, operator, noise, prior and starts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import by_rows
from flowprior.physics.noise import Gaussian, Noise
from flowprior.priors import Prior

Cache = Callable[[str, Tensor, Callable[[], Tensor]], Tensor]
"""Called with a name, rows (B, ...) and a function: rows (B, ...), computed or looked up."""


class Forward:
    """A forward operator without its noise: anything that has A, or a function of images.

    Args:
        physics: deepinv `Physics`, whose noise model is not used, or a function.
        images: B if the operator has parameters, such as masks, of its own for each of B images.
    """

    def __init__(self, physics: object, images: int | None = None) -> None:
        self.physics = physics
        self.images = images
        self._apply = getattr(physics, "A", physics)
        self.name = getattr(physics, "__name__", type(physics).__name__)
        if not callable(self._apply):
            raise ValueError(f"physics must be a deepinv Physics or a function, got {self.name}")

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Noiseless data of images x (B, C, H, W) in [0, 1], of all images or of `rows`."""
        if self.images is None or rows is None:
            return self._apply(x)
        every = x.new_zeros(self.images, *x.shape[1:]).index_copy(0, rows, x)
        return self._apply(every)[rows]


@dataclass(frozen=True)
class Problem:
    """Data of B images, and all that a solver may know of them. The truth is not part of it.

    Args:
        forward: the operator A, on images (B, C, H, W) in [0, 1].
        y: data (B, ...).
        image_shape: (C, H, W).
        noise: of the data; None if it is not known.
        prior: None for solvers that need none.
        start: images (B, C, H, W) in [0, 1] to start from.
        latents: free latents v (B, n) to start from; a `Parameter` is moved in place.
        condition: one row per image, for a conditional prior.
        seed: of everything random.
        indices: numbers of the images: what is random for an image depends on (seed, index) alone.
        cache: keeps what other problems with these images need too; None computes it anew.
    """

    forward: Forward
    y: Tensor
    image_shape: tuple[int, int, int]
    noise: Noise | None = None
    prior: Prior | None = None
    start: Tensor | None = None
    latents: Tensor | None = None
    condition: Tensor | None = None
    seed: int = 0
    indices: Sequence[int] = ()
    cache: Cache | None = None

    @property
    def like(self) -> Tensor:
        """A tensor of the precision and on the device to compute with."""
        return self.y if self.prior is None else self.prior.like

    @property
    def rows(self) -> Tensor:
        """0 to B − 1."""
        return torch.arange(len(self.y), device=self.y.device)

    @torch.no_grad()
    def residual(self, x: Tensor) -> Tensor:
        """Rms of A(x) − y of images x (B, C, H, W) in units of the noise, (B,)."""

        def one(x: Tensor, rows: Tensor) -> Tensor:
            return self.noise.residual(self.forward(x, rows), self.y[rows])

        return by_rows(one, x, self.rows)

    def misfit(self, explicit: Noise | None, who: str) -> Noise:
        """The noise model to fit the data by: the solver's own, or that of the data.

        Raises:
            ValueError: there is neither.
        """
        noise = explicit or self.noise
        if noise is None:
            raise ValueError(
                f"{who} needs the noise level: give sigma= (standard deviation of the noise in the "
                "units of the data) or noise=, or the solver a misfit="
            )
        return noise


def make_problem(
    prior: Prior | None,
    physics: object,
    y: Tensor,
    *,
    sigma: float | None = None,
    noise: Noise | None = None,
    image_shape: tuple[int, int, int] | None = None,
    start: Tensor | None = None,
    latents: Tensor | None = None,
    condition: Tensor | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    cache: Cache | None = None,
) -> Problem:
    """Check that everything fits together, and put it into a `Problem`. Arguments as `invert`.

    Raises:
        ValueError: names the argument and what was expected.
    """
    _check_tensor("y", y)
    if noise is not None and not isinstance(noise, Noise):
        raise ValueError(f"noise must be a flowprior.physics.Noise, got {type(noise).__name__}")
    if sigma is not None and noise is not None:
        raise ValueError("sigma and noise: give one of them")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    forward = Forward(physics)
    shape = _image_shape(prior, start, image_shape)
    like = y if prior is None else _checked_prior(prior, y).like
    check_observations(forward, y, like.new_zeros(shape))
    if start is not None:
        _check_rows("start", start, (len(y), *shape))
    if latents is not None and prior is not None:
        _check_rows("latents", latents, (len(y), prior.latent.size))
    if (condition is None) == bool(prior is not None and prior.conditional):
        raise ValueError("condition must be given for a conditional prior, and for no other")
    indices = range(len(y)) if indices is None else indices
    if len(indices) != len(y):
        raise ValueError(f"indices must be {len(y)} numbers, one for each image")
    noise = Gaussian(sigma) if sigma is not None else noise
    return Problem(forward, y, shape, noise, prior, start, latents, condition, seed, indices, cache)


def check_observations(forward: Forward, y: Tensor, like: Tensor) -> None:
    """Raise ValueError unless A takes an image like this one (C, H, W) and gives data like y.

    y must also be finite and A differentiable. Finds out whether A has parameters for each image.
    """
    finite = y.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(f"y must be finite; rows {bad[:10]} have NaN or infinite entries")
    shape = tuple(like.shape)
    reason = ""
    for count in (1, len(y)):  # alike for all images, or with parameters for each of them
        forward.images = None if count == 1 else count
        try:
            predicted = _predicted(forward, like, count)
            break
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            reason = reason or " ".join(str(error).split())
    else:
        raise ValueError(f"physics: {forward.name} does not take images of {shape}: {reason}")
    if predicted.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"y must have shape (B, {', '.join(map(str, predicted.shape[1:]))}), which "
            f"{forward.name} makes of images of shape {shape}, got {tuple(y.shape)}"
        )
    if not predicted.requires_grad:
        raise ValueError(f"physics: {forward.name} has no gradient: A(x) does not require grad")


def _predicted(forward: Forward, like: Tensor, count: int) -> Tensor:
    """Data of grey images."""
    x = torch.full_like(like, 0.5).expand(count, *like.shape).clone().requires_grad_()
    with torch.enable_grad():
        predicted = forward(x)
    if not isinstance(predicted, Tensor):
        raise TypeError(f"it gives {type(predicted).__name__}, expected one tensor")
    if len(predicted) != count:
        raise ValueError(f"it makes {len(predicted)} rows of data of {count} images")
    if predicted[0].numel() == 0:
        raise ValueError("it makes no data at all")
    return predicted


def _image_shape(
    prior: Prior | None, start: Tensor | None, given: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    if prior is not None:
        return prior.image_shape
    if given is not None:
        return tuple(given)
    if isinstance(start, Tensor) and start.ndim == 4:
        return tuple(start.shape[1:])
    raise ValueError("image_shape or start must be given where there is no prior")


def _checked_prior(prior: Prior, y: Tensor) -> Prior:
    if not isinstance(prior, Prior):
        raise ValueError(
            f"prior must be a flowprior.priors.Prior, got {type(prior).__name__}; "
            "flowprior.priors.Module makes one of any torch decoder"
        )
    if any(p.requires_grad for p in prior.parameters()):
        raise ValueError("prior must be frozen: call prior.eval().requires_grad_(False)")
    if y.device != prior.like.device:
        raise ValueError(f"y is on {y.device} but the prior is on {prior.like.device}")
    return prior


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor) or value.ndim < 2 or math.prod(value.shape) == 0:
        kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor of data (B, ...), not empty, got {kind}")
    if not (value.is_floating_point() or value.is_complex()):
        raise ValueError(f"{name} must be floating point or complex, got {value.dtype}")


def _check_rows(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    _check_tensor(name, value)
    if value.shape != shape or not value.isfinite().all():
        raise ValueError(f"{name} must be finite, of shape {shape}, got {tuple(value.shape)}")
