"""Posteriors of seismic images: python docs/seismic_posterior.py WEIGHTS PICTURE.

WEIGHTS are those of `python train.py --config conditional_glow_seismic_64`: a flow that has learned
p(x | y) of reflectivities x given migrated images y. Draws from it are compared with the truth of
test images: how near their mean is, and how often the truth is inside of their bands, ± standard
error over images. The picture has one image, and traces of it with the bands.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from scipy.signal import hilbert
from torch import Tensor

import flowprior
from datamodules import Reflectivities
from flowprior.inversion import invert
from flowprior.metrics import snr
from flowprior.physics import Gaussian, linearized_born
from flowprior.posterior import Amortised, calibrate, summarise
from flowprior.posterior.calibration import WHOLE

SURVEY = {"sources": 8, "simultaneous": 2, "receivers": 64, "spacing": 12.5}
SURVEY |= {"water_depth": 125.0, "frequency": 12.0, "grey": 0.5}
NOISE = Gaussian(2e-4)
IMAGES, DRAWS, SHOWN = 8, 100, 1
LEVELS = (0.5, 0.9)
WIDTH = 0.8
"""Of an image, in kilometres."""
COLUMNS = (16, 32, 48)
"""Of the traces."""
REFLECTION = 0.06
"""Difference from grey of what is a reflection, and no background."""


def band(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Ends of the interval of each pixel in which this share of the draws (m, ...) is."""
    ends = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=draws.dtype)
    low, high = draws.quantile(ends, 0)
    return low, high


def main(weights: str, picture: str) -> None:
    """Print how good the posteriors are, and draw one."""
    flow = flowprior.load(weights).requires_grad_(False)
    shape = flow.image_shape
    truth = torch.stack([Reflectivities(image_size=64).images("test")[i] for i in range(IMAGES)])
    physics = linearized_born(shape, **SURVEY)
    clean = linearized_born(shape, **SURVEY, refine=4).A(truth)
    data = NOISE.add(clean, seed=0, indices=range(IMAGES))
    y = flow.conditioning(physics, data, torch.empty(1, *shape))
    found = invert(flow, physics, data, noise=NOISE, solver=Amortised(), iterations=0)
    draws = found.posterior.sample(DRAWS, seed=0)
    mean = draws.mean(0)
    print(f"mean of {DRAWS} draws: SNR {spread(snr(mean, truth))} dB, ", end="")
    print(f"one draw: {spread(snr(draws[0], truth))} dB, {IMAGES} test images")
    for level in LEVELS:
        low, high = band(draws, level)
        inside = ((truth >= low) & (truth <= high)).float()[:, :, 10:].flatten(1).mean(1)
        print(f"truth in the {100 * level:.0f} % bands, below the water: {spread(inside)}")
    strong = ((truth - 0.5).abs() > REFLECTION).float()[:, :, 10:].flatten(1)
    within = ((truth >= low) & (truth <= high)).float()[:, :, 10:].flatten(1)
    held = (within * strong).sum(1) / strong.sum(1)
    print(f"in the 90 % bands where x differs from grey by more than {REFLECTION}: {spread(held)}")
    whole = calibrate(found.posterior, truth, 99, indices=range(IMAGES)).ranks[WHOLE]
    print(f"ranks of the whole image among 99 draws: {sorted(whole.tolist())}")
    deviation = summarise(found.posterior, DRAWS).deviation
    error = (mean - truth).abs()
    print(f"correlation of deviation and error: {spread(correlation(deviation, error))}")
    shown = {"truth": truth, "migrated": y, "mean": mean, "deviation": deviation}
    shown |= {"deviation / envelope": deviation / envelope(mean - 0.5)}
    shown |= {f"draw {k + 1}": draws[k] for k in range(5)}
    figure({name: images[SHOWN, 0] for name, images in shown.items()}, draws[:, SHOWN, 0]).savefig(
        Path(picture), dpi=90, bbox_inches="tight"
    )


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of the entries below the water, of each image, (B,)."""
    pairs = zip(a[:, :, 10:].flatten(1), b[:, :, 10:].flatten(1), strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


def envelope(traces: Tensor) -> Tensor:
    """Sizes of the analytic signals of columns (B, 1, H, W), and a tenth of the image's largest.

    What a deviation is divided by, so that it does not only show where reflections are strong.
    """
    size = torch.from_numpy(abs(hilbert(traces.numpy(), axis=2)))
    return size + 0.1 * size.amax((2, 3), keepdim=True)


def spread(values: Tensor) -> str:
    """Mean of images (B,) ± its standard error."""
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"


def figure(images: dict[str, Tensor], draws: Tensor) -> Figure:
    """Images (H, W) in two rows, and traces of the truth in the bands of draws (m, H, W)."""
    made, axes = plt.subplots(2, 7, figsize=(20, 5.2), layout="constrained")
    for number, (axis, (name, image)) in enumerate(
        zip(axes[:, :5].flat, images.items(), strict=True)
    ):
        signed = "deviation" not in name
        colours = {"cmap": "gray", "vmin": 0.35, "vmax": 0.65} if signed else {"cmap": "magma"}
        colours = {"cmap": "gray", "vmin": -2, "vmax": 2} if name == "migrated" else colours
        shown = axis.imshow(image, extent=(0, WIDTH, WIDTH, 0), **colours)
        made.colorbar(shown, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=7)
        if number % 5 == 0:
            axis.set_ylabel("depth (km)", fontsize=8)
        if number >= 5:
            axis.set_xlabel("distance (km)", fontsize=8)
    traces = [axes[0, 5], axes[0, 6], axes[1, 5]]
    for axis, column in zip(traces, COLUMNS, strict=True):
        of_draws = draws[:, :, column]
        depth = torch.linspace(0, WIDTH, of_draws.shape[1])
        for level, shade in zip(reversed(LEVELS), (0.25, 0.45), strict=True):
            low, high = band(of_draws, level)
            label = f"{100 * level:.0f} % of the draws"
            axis.fill_between(depth, low, high, alpha=shade, color="C0", lw=0, label=label)
        axis.plot(depth, of_draws.mean(0), color="C0", lw=1, label="mean")
        axis.plot(depth, images["truth"][:, column], color="k", lw=1, label="truth")
        axis.set_title(f"at {WIDTH * column / (len(depth) - 1):.2f} km", fontsize=10)
        axis.set_xlabel("depth (km)", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[1, 6].set_axis_off()
    axes[1, 6].legend(*traces[0].get_legend_handles_labels(), loc="center", fontsize=9)
    return made


if __name__ == "__main__":
    main(*sys.argv[1:])
