"""What a prior of the middle of a flow's images and one of images with a border share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from flowprior.latent import standard_normal_log_prob
from flowprior.priors.base import Prior, require


class Bordered(Prior):
    """A flow whose images are taken from another size, and given in it.

    It has `project` and `project_with_log_prob` if the flow does.

    Args:
        prior: a flow, or any prior with `decode` and `encode` that is not conditional.
        image_size: height and width of the images here, one number or (H, W).
        border: value of the border, in [0, 1].
        less: whether they are smaller than those of the flow.

    Raises:
        ValueError: names the option.
    """

    def __init__(
        self, prior: Prior, image_size: int | tuple[int, int], border: float, less: bool
    ) -> None:
        name = type(self).__name__
        require(prior, ("decode", "encode"), name)
        if prior.conditional:
            raise ValueError(f"prior of {name} must not be conditional")
        channels, *theirs = prior.image_shape
        size = height_and_width(image_size)
        margins = margins_between(size, theirs) if less else margins_between(theirs, size)
        if margins is None:
            raise ValueError(
                f"image_size must be an even number of pixels {'less' if less else 'more'} than "
                f"{tuple(theirs)}, got {size}"
            )
        if not 0 <= border <= 1:
            raise ValueError(f"border must be in [0, 1], got {border}")
        super().__init__((channels, *size), prior.latent, prior.data_range)
        self.prior = prior
        self.border = border
        self._margins = margins
        self.train(prior.training)

    @abstractmethod
    def _given(self, x: Tensor) -> Tensor:
        """Images of this size, of images of the flow's."""

    @abstractmethod
    def _taken(self, x: Tensor) -> Tensor:
        """Images of the flow's size, of images of this one."""

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        r"""Images (B, C, H, W) of latents z (B, \*latent.shape)."""
        return self._given(self.prior.generate(z))

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Map latents z (B, \*latent.shape) to (x, log_det of the flow)."""
        x, log_det = self.prior.decode(z)
        return self._given(x), log_det

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of images x (B, C, H, W), and log_det of the flow."""
        return self.prior.encode(self._taken(x))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of images x (B, C, H, W) as the flow sees them, in nats, (B,)."""
        z, log_det = self.encode(x)
        return standard_normal_log_prob(z) + log_det

    def __getattr__(self, name: str) -> Any:
        own = {"project": self._project, "project_with_log_prob": self._project_with_log_prob}
        return own[name] if name in own and hasattr(self.prior, name) else super().__getattr__(name)

    def _project(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of what the flow projects x onto."""
        return self._given(self.prior.project(self._taken(x)))

    def _project_with_log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`project`, with the log density (B,) that the flow gives."""
        projected, log_prob = self.prior.project_with_log_prob(self._taken(x))
        return self._given(projected), log_prob

    def _middle(self, x: Tensor) -> Tensor:
        rows, columns = self._margins
        return x[..., rows : x.shape[-2] - rows, columns : x.shape[-1] - columns]

    def _around(self, x: Tensor) -> Tensor:
        rows, columns = self._margins
        low, high = self.data_range
        value = low + (high - low) * self.border
        return F.pad(x, (columns, columns, rows, rows), value=value)


def height_and_width(image_size: object) -> tuple[int, int]:
    """(H, W) of one or two whole numbers."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    whole = isinstance(size, Sequence) and all(isinstance(side, int) for side in size)
    if not whole or len(size) != 2:
        raise ValueError(f"image_size must be one or two whole numbers, got {image_size!r}")
    return tuple(size)


def margins_between(small: Sequence[int], large: Sequence[int]) -> list[int] | None:
    """Pixels above and below, left and right; None if small images do not fit, or not evenly."""
    margins = [(outer - inner) // 2 for inner, outer in zip(small, large, strict=True)]
    fits = [inner + 2 * m for inner, m in zip(small, margins, strict=True)] == list(large)
    return margins if fits and min(margins) >= 0 and min(small) >= 1 else None
