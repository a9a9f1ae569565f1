"""The forward operator, and whether data and noise model fit it."""

import torch
from torch import Tensor

from flowprior.inversion.batch_invariant import is_trial
from flowprior.physics.calls import Calls
from flowprior.physics.noise import Noise


class Forward:
    """A forward operator without noise: anything with a method A, or a function of images.

    Attributes:
        calls: how often it was applied to each image.

    Args:
        physics: deepinv `Physics`, whose noise model is not used, or a function.
        images: B if the operator has parameters, such as masks, of its own for each of B images.
        differentiable: whether data have a gradient with respect to the images.
        calls: to count on; by default nothing is counted.
    """

    def __init__(
        self,
        physics: object,
        images: int | None = None,
        differentiable: bool = True,
        calls: Calls | None = None,
    ) -> None:
        self.physics = physics
        self.images = images
        self.differentiable = differentiable
        self.calls = Calls.none(0) if calls is None else calls
        self._apply = getattr(physics, "A", physics)
        self.name = getattr(physics, "__name__", type(physics).__name__)
        if not callable(self._apply):
            raise ValueError(f"physics must be a deepinv Physics or a function, got {self.name}")

    def __call__(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Noiseless data of images x (B, C, H, W) in [0, 1], of all images or of `rows`."""
        return self._counted(self._data(x, rows), rows, len(x))

    def several(self, x: Tensor, rows: Tensor) -> Tensor:
        """Noiseless data (k, m, ...) of m images x (k, m, C, H, W) for each of `rows` (k,)."""
        if self.images is None:
            made = self._data(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        else:
            made = torch.stack([self._data(one, rows) for one in x.unbind(1)], 1)
        return self._counted(made, rows, len(x), x.shape[1])

    def _data(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        if self.images is None or rows is None:
            return self._apply(x)
        every = x.new_zeros(self.images, *x.shape[1:]).index_copy(0, rows, x)
        data = self._apply(every)[rows]
        # The last row must not have the gradients of those that repeat it to fill up a call.
        filling = _fills_up(rows).view(-1, *[1] * (data.ndim - 1))
        return torch.where(filling, data.detach(), data)

    def _counted(self, data: Tensor, rows: Tensor | None, count: int, times: int = 1) -> Tensor:
        known = len(self.calls.forward)
        if not known or is_trial() or (rows is None and count != known):
            return data
        rows = torch.arange(known, device=self.calls.forward.device) if rows is None else rows
        counted = torch.where(_fills_up(rows), 0, times)
        images = self._images_of(rows)
        self.calls.add("forward", images, counted)
        if data.requires_grad:
            data.register_hook(lambda _: self.calls.add("adjoint", images, counted))
        return data

    def _images_of(self, rows: Tensor) -> Tensor:
        """The images that rows belong to."""
        return rows


def _fills_up(rows: Tensor) -> Tensor:
    """Which of the row numbers (k,) repeat the last one at the end, to fill up a call, (k,)."""
    at_end = (rows == rows[-1:]).flip(0).cumprod(0).flip(0).bool()
    return torch.cat([torch.zeros_like(at_end[:1]), at_end[:-1]])


def forward_for(physics: object, y: Tensor, like: Tensor, noise: Noise | None) -> Forward:
    """The operator of data y (B, ...) of images like this one (C, H, W).

    Tries it on grey images, to find out whether it has a gradient, and parameters for each image.

    Raises:
        ValueError: the operator does not make such data of such images, or y is not finite or does
            not fit the noise model.
    """
    forward = Forward(physics)
    finite = y.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(f"y must be finite; rows {bad[:10]} have NaN or infinite entries")
    images, predicted = _predicted(forward, y, like)
    if predicted.shape[1:] != y.shape[1:]:
        expected = ", ".join(map(str, ["B", *predicted.shape[1:]]))
        remedy = _missing_axis(y.shape, predicted.shape)
        raise ValueError(
            f"y must have shape ({expected}), which {forward.name} makes of images of shape "
            f"{tuple(like.shape)}, got {tuple(y.shape)}{remedy}"
        )
    if y.is_complex() and not predicted.is_complex():
        raise ValueError(f"y is complex, but {forward.name} makes real data")
    if noise is not None:
        _check_residual(noise, predicted.detach().expand_as(y), y)
    return Forward(physics, images, predicted.requires_grad, Calls.none(len(y), y.device))


def _missing_axis(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What to do where data of this shape lack an axis."""
    remedies = []
    if expected[1:] == (1, *shape[1:]):
        remedies.append("add a channel axis: y[:, None]")
    if shape == expected[1:]:
        remedies.append("add an axis for the one image: y[None]")
    return f": {' or '.join(remedies)}" if remedies else ""


def _check_residual(noise: Noise, predicted: Tensor, y: Tensor) -> None:
    name = type(noise).__name__
    standardised = noise.standardised(predicted[:1], y[:1])
    found = getattr(standardised, "shape", type(standardised).__name__)
    if found != y[:1].shape:
        raise ValueError(
            f"noise: standardised of {name} must be of the shape of y, (B, ...), here "
            f"{tuple(y[:1].shape)}, got {found if isinstance(found, str) else tuple(found)}"
        )
    if noise.residual(predicted, y).shape != (len(y),):
        raise ValueError(f"noise: residual of {name} must be (B,)")


def _predicted(forward: Forward, y: Tensor, like: Tensor) -> tuple[int | None, Tensor]:
    """Data of one grey image, or of B of them if A has parameters for each; and None, or B."""
    shape, reason = tuple(like.shape), ""
    for count in (1, len(y)):
        try:
            return None if count == 1 else count, _data_of_grey(forward, like, count)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            reason = reason or " ".join(str(error).split())
    raise ValueError(f"physics: {forward.name} does not take images of {shape}: {reason}")


def _data_of_grey(forward: Forward, like: Tensor, count: int) -> Tensor:
    x = torch.full_like(like, 0.5).expand(count, *like.shape).clone().requires_grad_()
    with torch.enable_grad():
        predicted = forward(x)
    if not isinstance(predicted, Tensor):
        raise TypeError(f"it gives {type(predicted).__name__}, expected one tensor")
    if predicted.ndim < 2:
        raise ValueError(f"it gives data of shape {tuple(predicted.shape)}, expected (B, ...)")
    if len(predicted) != count:
        raise ValueError(f"it makes {len(predicted)} rows of data of {count} images")
    if predicted.numel() == 0:
        raise ValueError("it makes no data at all")
    return predicted
