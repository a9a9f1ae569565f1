"""How sure is where a reflector lies? Horizons of posterior samples, and a picture of them.

    PYTHONPATH=. python docs/seismic_horizons.py WEIGHTS docs/seismic_horizons.png

An interpreter's tools run on each draw of a posterior as on any other image. Here one follows the
strongest reflector from a point; the spread of what it finds says how sure the depth is.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

import flowprior
from datamodules import Reflectivities
from flowprior.inversion import invert
from flowprior.physics import Gaussian, linearized_born
from flowprior.posterior import Amortised

SURVEY = {"sources": 8, "simultaneous": 2, "receivers": 64, "spacing": 12.5}
SURVEY |= {"water_depth": 125.0, "frequency": 12.0, "grey": 0.5}
NOISE = Gaussian(2e-4)
IMAGES, DRAWS, SHOWN = 8, 200, (1, 4)
WATER = 12
"""Rows of the water, and of its floor."""
NEAR = 2
"""Rows by which the horizons of draws may miss the point that they start from."""
METRES = 12.5


def track(images: Tensor, row: int, column: int, near: int = 0) -> Tensor:
    """Rows (m, W) of the strongest reflector of images (m, H, W) through a point.

    The path of the largest sum of amplitudes whose row changes by at most one from column to
    column, and which passes within `near` rows of the point; by dynamic programming.
    """
    far = (torch.arange(images.shape[1]) - row).abs() > near
    start = images[:, :, column].masked_fill(far, -torch.inf).argmax(1)
    left, right = images[:, :, : column + 1].flip(2), images[:, :, column:]
    return torch.cat([_followed(left, start).flip(1)[:, :-1], _followed(right, start)], 1)


def _followed(images: Tensor, start: Tensor) -> Tensor:
    """Rows (m, W) of the path of the largest sum that begins in rows `start` (m,)."""
    begun = torch.full_like(images[:, :, 0], -torch.inf)
    best = [begun.scatter(1, start[:, None], 0.0)]
    for amplitude in images.unbind(2)[1:]:
        best.append(max_pool1d(best[-1][:, None], 3, 1, 1)[:, 0] + amplitude)
    rows = [best[-1].argmax(1)]
    for column in reversed(best[:-1]):
        offsets = torch.arange(-1, 2)
        beside = (rows[-1][:, None] + offsets).clamp(0, images.shape[1] - 1)
        rows.append(beside.gather(1, column.gather(1, beside).argmax(1, keepdim=True))[:, 0])
    return torch.stack(rows[::-1], 1)


def main(weights: str, picture: str) -> None:
    """Print how well the spread tells the error, and draw two images."""
    flow = flowprior.load(weights)
    truth = torch.stack([Reflectivities(image_size=64).images("test")[i] for i in range(IMAGES)])
    physics = linearized_born(flow.image_shape, **SURVEY)
    clean = linearized_born(flow.image_shape, **SURVEY, refine=4).A(truth)
    data = NOISE.add(clean, seed=0, indices=range(IMAGES))
    found = invert(flow, physics, data, noise=NOISE, solver=Amortised(), iterations=0)
    draws = found.posterior.sample(DRAWS, seed=0)[:, :, 0, WATER:]
    mean, true = draws.mean(0), truth[:, 0, WATER:]
    horizons, others = [], []
    for image in range(IMAGES):
        row, column = divmod(mean[image].argmax().item(), 64)
        of_truth = track(true[image, None], row, column, NEAR)[0]
        of_mean = track(mean[image, None], row, column)[0]
        for found, of in ((horizons, image), (others, (image + 1) % IMAGES)):
            found.append((of_truth, of_mean, track(draws[:, of], row, column, NEAR), column))
    report(horizons)
    print("the same with draws for the next image in their place:")
    report(others)
    figure(horizons, mean).savefig(Path(picture), dpi=90, bbox_inches="tight")


def report(horizons: list[tuple[Tensor, Tensor, Tensor, int]]) -> None:
    """Errors of the mean's horizon in metres, and how well the draws' tell them."""
    errors, spreads, inside = [], [], []
    for of_truth, of_mean, of_draws, _ in horizons:
        errors.append(METRES * (of_mean - of_truth).abs().float())
        spreads.append(METRES * of_draws.float().std(0))
        low, high = of_draws.float().quantile(torch.tensor([0.05, 0.95]), 0)
        inside.append(((of_truth >= low - 0.5) & (of_truth <= high + 0.5)).float())
    error, spread, covered = (torch.stack(one) for one in (errors, spreads, inside))
    print(f"error of the horizon of the mean, metres: {of_images(error)}")
    print(f"standard deviation of those of {DRAWS} draws: {of_images(spread)}")
    print(f"columns whose 90 % interval has the true one: {of_images(covered)}")
    columns = torch.arange(error.shape[1])
    distance = torch.stack([(columns - column).abs() for *_, column in horizons])
    for name, by in (("the draws agree", spread), ("it is near the start", distance)):
        half = (by <= by.median(1, keepdim=True).values).float()
        inner, outer = (weight / weight.sum(1, keepdim=True) for weight in (half, 1 - half))
        sizes = (of_images(64 * weight * error) for weight in (inner, outer))
        print(f"error in the half of the columns where {name}, and in the other: ", end="")
        print(", ".join(sizes))


def of_images(values: Tensor) -> str:
    """Mean of images (B, W) ± its standard error over images."""
    means = values.mean(1)
    return f"{means.mean():.2f} ± {means.std() / len(means) ** 0.5:.2f}"


def figure(horizons: list[tuple[Tensor, Tensor, Tensor, int]], mean: Tensor) -> plt.Figure:
    """Posterior means with the horizons of draws, of the mean and of the truth, and the spread."""
    made, axes = plt.subplots(1, len(SHOWN), figsize=(5.4 * len(SHOWN), 4.8), layout="constrained")
    for axis, image in zip(axes, SHOWN, strict=True):
        of_truth, of_mean, of_draws, column = horizons[image]
        axis.imshow(mean[image], cmap="gray", vmin=0.4, vmax=0.6)
        for one in of_draws[:40]:
            axis.plot(one, color="C1", alpha=0.3, lw=0.8, label="of 40 draws")
        low, high = of_draws.float().quantile(torch.tensor([0.05, 0.95]), 0)
        axis.plot(low, color="C1", lw=0.8, ls="--", label="90 % of the draws")
        axis.plot(high, color="C1", lw=0.8, ls="--")
        axis.plot(of_mean, color="C0", lw=1.5, label="of the mean")
        axis.plot(of_truth, color="C2", lw=1.5, label="of the truth")
        axis.plot(column, of_mean[column], "o", color="white", mec="k", ms=5, label="start")
        axis.set_title(f"test image {image}", fontsize=10)
        axis.set_xlabel(f"column, {METRES} m each", fontsize=9)
        axis.set_ylabel("row below the water", fontsize=9)
    handles, names = axes[0].get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    axes[0].legend(once.values(), once.keys(), fontsize=8, loc="lower left")
    return made


if __name__ == "__main__":
    main(*sys.argv[1:])
