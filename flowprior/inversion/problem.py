"""One batch of inverse problems: data, operator, noise, prior and starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.checks import check_integer
from flowprior.inversion.batch_invariant import by_rows
from flowprior.inversion.forward import Forward, forward_for
from flowprior.inversion.timing import now
from flowprior.physics.calls import Calls
from flowprior.physics.condition import Condition
from flowprior.physics.noise import Gaussian, Noise
from flowprior.priors import Prior, require


@dataclass(frozen=True, eq=False)
class Cost:
    """Calls of the operator, for each image, and seconds for all of them."""

    calls: Calls
    seconds: float


@dataclass(frozen=True, repr=False)
class Problem:
    """Data of B images and everything else a solver may know, which does not include the truth.

    Args:
        forward: the operator A, on images (B, C, H, W) in [0, 1].
        y: data (B, ...).
        image_shape: (C, H, W).
        noise: noise model of the data; None if it is not known.
        prior: None for solvers that need none.
        start: images (B, C, H, W) in [0, 1] to start from.
        latents: free latents v (B, n) to start from; a `Parameter` is moved in place.
        condition: one row per image, for a conditional prior.
        seed: of all random numbers.
        indices: numbers of the images; random numbers of an image depend on (seed, index) alone.
        condition_cost: what making the condition took, if it was made of the data here.
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
    condition_cost: Cost | None = None

    def __repr__(self) -> str:
        data, shape = ("×".join(map(str, sizes)) for sizes in (self.y.shape[1:], self.image_shape))
        prior = "no prior" if self.prior is None else type(self.prior).__name__
        known = self.noise if self.noise is not None else "unknown noise"
        return f"Problem({len(self.y)} data {data} of images {shape}, {known}, {prior})"

    @property
    def like(self) -> Tensor:
        """A tensor with the precision and device to compute with."""
        return _like(self.prior, self.y)

    @property
    def rows(self) -> Tensor:
        """Row numbers 0 to B − 1."""
        return torch.arange(len(self.y), device=self.y.device)

    @torch.no_grad()
    def residual(self, x: Tensor) -> Tensor:
        """Rms of A(x) − y in units of the noise, (B,), for images x (B, C, H, W)."""

        def one(x: Tensor, rows: Tensor) -> Tensor:
            return self.noise.residual(self.forward(x, rows), self.y[rows])

        return by_rows(one, x, self.rows)

    def misfit(self, explicit: Noise | None, who: str) -> Noise:
        """The noise model whose misfit is used: the solver's own, or that of the data.

        Raises:
            ValueError: there is neither.
        """
        noise = explicit or self.noise
        if noise is None:
            raise ValueError(
                f"{who} needs the noise level: give sigma= (standard deviation of the noise in the "
                "units of the data) or noise="
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
) -> Problem:
    """Check that everything fits together, and put it into a `Problem`. Arguments as `invert`.

    Raises:
        ValueError: names the argument and what was expected.
    """
    check_types(make_problem, locals())
    _check_data(y)
    check_integer("seed", seed, least=0)
    seed = int(seed)
    noise = _noise(sigma, noise)
    if prior is not None:
        _check_prior(prior, y)
    shape = _image_shape(prior, start, image_shape)
    forward, y = _fitting(prior, physics, y.detach(), shape, noise)
    like = _like(prior, y)
    if start is not None:
        _check_rows("start", start, (len(y), *shape))
        start = start.detach().to(like)
        if start.min() < -5 or start.max() > 6:  # no noise takes images so far from their range
            raise ValueError(
                f"start must be images in [0, 1], got {start.min():.3g} to {start.max():.3g}"
            )
    if latents is not None:
        require(prior, ("generate",), "latents")
        # Some solvers have several rows of latents for each image, and count them.
        rows = len(latents) if isinstance(latents, Tensor) and latents.ndim else len(y)
        latents = _flat(latents, prior.latent.shape)
        _check_rows("latents", latents, (rows, prior.latent.size))
        if start is not None:
            raise ValueError("start and latents: give one of them")
    known = prior is not None and prior.conditional and prior.conditioning is not None
    cost = None
    if condition is None and known:
        images = like.new_zeros(forward.images or 1, *shape)
        condition, cost = _condition_of(prior.conditioning, physics, y, images)
    _check_condition(condition, prior, len(y))
    indices = range(len(y)) if indices is None else _indices(indices, len(y))
    given = start, latents, condition, seed, indices, cost
    return Problem(forward, y, shape, noise, prior, *given)


def _condition_of(
    conditioning: Condition, physics: object, y: Tensor, like: Tensor
) -> tuple[Tensor, Cost]:
    calls = Calls.none(len(y), y.device)
    begun = now(y.device)
    condition = conditioning(physics, y, like, calls)
    return condition, Cost(calls, now(y.device) - begun)


def check_noise(option: str, value: object) -> None:
    """Raise ValueError unless the value is a noise model or None."""
    if value is not None and not isinstance(value, Noise):
        raise ValueError(f"{option} must be a flowprior.physics.Noise, got {value!r}")


def _noise(sigma: float | None, noise: Noise | None) -> Noise | None:
    check_noise("noise", noise)
    if sigma is not None and noise is not None:
        raise ValueError("sigma and noise: give one of them")
    return noise if sigma is None else Gaussian(sigma)


def _image_shape(
    prior: Prior | None, start: Tensor | None, given: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    if prior is not None:
        if given is not None and tuple(given) != tuple(prior.image_shape):
            raise ValueError(f"image_shape is {given}, but the prior's is {prior.image_shape}")
        return prior.image_shape
    if given is None and isinstance(start, Tensor) and start.ndim == 4:
        return tuple(start.shape[1:])
    if given is None:
        raise ValueError("image_shape or start must be given where there is no prior")
    sizes = tuple(given) if isinstance(given, Sequence) else ()
    if len(sizes) != 3 or any(not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"image_shape must be (C, H, W), got {given!r}")
    return sizes


def _check_prior(prior: Prior, y: Tensor) -> None:
    if not isinstance(prior, Prior):
        raise ValueError(
            f"prior must be a flowprior.priors.Prior, got {type(prior).__name__}; "
            "flowprior.priors.Module makes one of any torch decoder"
        )
    # In training mode dropout and batch normalisation would mix or randomise the images.
    if prior.training or any(p.requires_grad for p in prior.parameters()):
        raise ValueError("prior must be frozen: call prior.eval().requires_grad_(False)")
    if y.device != prior.like.device:
        raise ValueError(f"y is on {y.device} but the prior is on {prior.like.device}")


def _flat(latents: Any, shape: tuple[int, ...]) -> Any:
    """Latents (B, *shape), as an `Estimate` has them, as (B, n); others as they are."""
    if len(shape) == 1 or not isinstance(latents, Tensor) or latents.shape[1:] != shape:
        return latents
    flat = latents.detach().flatten(1)  # on the same memory, so that a Parameter moves too
    return nn.Parameter(flat) if isinstance(latents, nn.Parameter) else flat


def _indices(given: Any, count: int) -> list[int]:
    known = given.tolist() if hasattr(given, "tolist") else given
    whole = isinstance(known, Sequence) and all(
        isinstance(index, Integral) and not isinstance(index, bool) and index >= 0
        for index in known
    )
    if not whole or len(known) != count or len(set(known)) < count:
        raise ValueError(
            f"indices must be {count} different whole numbers from 0, one for each image, got "
            f"{given}"
        )
    return [int(index) for index in known]


def _check_condition(condition: Tensor | None, prior: Prior | None, count: int) -> None:
    conditional = prior is not None and prior.conditional
    if conditional and condition is None:
        raise ValueError(
            f"condition must be given: {type(prior).__name__} is conditional, and does not know "
            "what it is given of data; or set its `conditioning`, as to ScaledData(), and save it"
        )
    if condition is not None and not conditional:
        raise ValueError("condition must be left out: the prior is not conditional")
    if condition is not None and (not isinstance(condition, Tensor) or len(condition) != count):
        raise ValueError(f"condition must be a tensor with {count} rows, one for each image")


def _check_data(y: object) -> None:
    if not isinstance(y, Tensor) or y.ndim < 2 or y.numel() == 0:
        kind = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        remedy = ": torch.from_numpy(y)" if kind == "ndarray" else ""
        if isinstance(y, Tensor) and y.ndim == 1 and y.numel():
            remedy = ": one number for each image is (B, 1), y[:, None]"
        raise ValueError(f"y must be a tensor of data (B, ...), not empty, got {kind}{remedy}")
    if not (y.is_floating_point() or y.is_complex()):
        raise ValueError(f"y must be floating point or complex, got {y.dtype}: give y.float()")


def _check_rows(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless it is a real, finite tensor of this shape."""
    if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
        kind = f"{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a floating-point tensor of shape {shape}, got {kind}")
    if not value.isfinite().all():
        raise ValueError(f"{name} must be finite")


def _fitting(
    prior: Prior | None,
    physics: object,
    y: Tensor,
    shape: tuple[int, int, int],
    noise: Noise | None,
) -> tuple[Forward, Tensor]:
    """The operator, and the data in the precision to compute with.

    This is the prior's. Without a prior it is that of the data, or of the operator's tensors if the
    operator does not take the first.
    """
    if prior is not None:
        y = _in_precision(y, prior.like.dtype)
        return forward_for(physics, y, prior.like.new_zeros(shape), noise), y
    try:
        return forward_for(physics, y, _like(None, y).new_zeros(shape), noise), y
    except ValueError:
        known = _precisions(physics)
        if not known or y.real.dtype in known:
            raise
    y = _in_precision(y, known[0])
    return forward_for(physics, y, _like(None, y).new_zeros(shape), noise), y


def _precisions(physics: object) -> list[torch.dtype]:
    """Those of the tensors of an operator."""
    if not isinstance(physics, nn.Module):
        return []
    # What deepinv registers to know the device says nothing of the precision.
    buffers = [b for name, b in physics.named_buffers() if not name.endswith("_device_holder")]
    parts = [*physics.parameters(), *buffers]
    return [part.real.dtype for part in parts if part.is_floating_point() or part.is_complex()]


def _in_precision(y: Tensor, real: torch.dtype) -> Tensor:
    return y.to(real.to_complex() if y.is_complex() else real)


def _like(prior: Prior | None, y: Tensor) -> Tensor:
    """A real tensor of the precision and on the device to compute with."""
    if prior is not None:
        return prior.like
    return y.real if y.is_complex() else y
