"""A picture of what was recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowprior.argument_types import check_types
from flowprior.checks import check_integer, shown
from flowprior.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flowprior.inversion import Estimate

DRAWS, SEED = 64, 0
"""Of a posterior, for its standard deviation."""


def plot(
    found: Estimate | Tensor | Mapping[str, Estimate | Tensor],
    truth: Tensor | None = None,
    y: Tensor | None = None,
    *,
    std: Tensor | None = None,
    images: int = 6,
) -> Figure:
    """Truth, data, what was recovered, its error and its standard deviation, a row each.

    Above data and images stands their PSNR, above errors their root mean square, above standard
    deviations their mean. Errors and standard deviations, means over the channels, share their
    colours. Images of small contrast, most of which uses less than a third of [0, 1], are shown
    with more.
    Save it by ``figure.savefig("found.png")``. Needs the extra `figures`.

    Args:
        found: result of `invert`, or images (B, C, H, W) in [0, 1]; several by name. A result that
            has a posterior gets a row of its standard deviation, of 64 draws.
        truth: images (B, C, H, W) in [0, 1], if they are known.
        y: data (B, ...), shown if they are images (B, 1 or 3, H, W) of any size.
        std: standard deviation (B, C, H, W) of a single result.
        images: how many to show, from the first.

    Raises:
        ValueError: names the argument whose shape or range is wrong.
        MissingExtra: matplotlib is not installed.
    """
    check_types(plot, locals())
    with extra("figures"):
        import matplotlib  # noqa: F401

    from flowprior.figures import grey_range, image_table

    check_integer("images", images, least=1)
    results = dict(found) if isinstance(found, Mapping) else {"recovered": found}
    x = {name: getattr(result, "x", result) for name, result in results.items()}
    _check(x, truth, y, std)
    like = torch.cat([one[:images] for one in (x.values() if truth is None else [truth])])
    table = _Table(truth, images, grey_range(like))
    if truth is not None:
        table.add_images("truth", truth)
    if y is not None and y.ndim == 4 and y.shape[1] in (1, 3) and not y.is_complex():
        table.add_data(y, like.shape[1:])
    for name, result in results.items():
        several = f"{name},\n" if len(results) > 1 else ""
        table.add_scored(name, x[name])
        if truth is not None:
            table.add_spread(f"{several}error", x[name] - truth, "rms")
        spread = std if std is not None else _std(result)
        if spread is not None:
            table.add_spread(f"{several}standard\ndeviation", spread, "mean")
    return image_table(table.rows, table.ranges(), table.captions)


@dataclass
class _Table:
    """Rows of a picture, as `image_table` takes them."""

    truth: Tensor | None
    images: int
    greys: tuple[float, float]
    rows: dict[str, Tensor] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    spreads: list[str] = field(default_factory=list)
    own: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add_data(self, y: Tensor, shape: Sequence[int]) -> None:
        """Data: as images if they have the shape of these, else with colours of their own."""
        if y.shape[1:] == tuple(shape):
            self.add_scored("data", y)
        else:
            self.rows["data"] = shown = y[: self.images]
            self.own["data"] = shown.min().item(), shown.max().item()

    def add_images(self, name: str, x: Tensor) -> None:
        """Images, with the colours of all of them."""
        self.rows[name], self.own[name] = x[: self.images], self.greys

    def add_scored(self, name: str, x: Tensor) -> None:
        """Images, with their PSNR if the truth is known."""
        from flowprior.metrics import psnr

        self.add_images(name, x)
        if self.truth is not None:
            scores = psnr(x[: self.images], self.truth[: self.images])
            self.captions[name] = [f"{score:.1f} dB" for score in scores.tolist()]

    def add_spread(self, name: str, values: Tensor, kind: str) -> None:
        """Sizes of deviations from images, with their root mean square or mean."""
        values = values[: self.images].double().abs()
        squares = kind == "rms"
        sizes = (values.square() if squares else values).flatten(1).mean(1)
        sizes = sizes.sqrt() if squares else sizes
        self.rows[name] = values.mean(1, keepdim=True)
        self.captions[name] = [f"{kind} {size:.2g}" for size in sizes.tolist()]
        self.spreads.append(name)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Ends of the colours of what is no image."""
        largest = max((self.rows[name].max().item() for name in self.spreads), default=0.0)
        return {**self.own, **dict.fromkeys(self.spreads, (0.0, largest or 1.0))}


def _std(result: Any) -> Tensor | None:
    posterior = getattr(result, "posterior", None)
    return None if posterior is None else posterior.sample(DRAWS, seed=SEED).std(0)


def _check(
    x: Mapping[str, Tensor], truth: Tensor | None, y: Tensor | None, std: Tensor | None
) -> None:
    if not x:
        raise ValueError("found must have at least one result")
    for value in x.values():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"found must be an Estimate, or a tensor of images, got {shown(value)}"
            )
    first = next(iter(x.values()))
    for name, value in {**x, "truth": truth, "std": std}.items():
        shape = None if value is None else tuple(getattr(value, "shape", ()))
        if shape is not None and (len(shape) != 4 or shape != tuple(first.shape)):
            name = "found" if name == "recovered" else name
            raise ValueError(f"{name} must be images (B, C, H, W), as all others, got {shape}")
    if y is not None and len(y) != len(first):
        raise ValueError(f"y must have {len(first)} rows, one for each image, got {len(y)}")
    if std is not None and len(x) > 1:
        raise ValueError("std is of a single result: plot each by itself")
