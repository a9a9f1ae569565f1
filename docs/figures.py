"""Make the pictures of the guides: ``make demo``, then ``python docs/figures.py``."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import flowprior
from datamodules import LayerModels

DOCS = Path(__file__).parent
DEMO = DOCS.parent / "runs" / "glow_layers_demo" / "weights"


def layer_models(path: Path, rows: int = 4, columns: int = 8) -> None:
    """The first training models, unquantised, at 128 x 128."""
    images = LayerModels(image_size=128).images("train")
    figure, axes = plt.subplots(rows, columns, figsize=(12, 6), layout="constrained")
    for index, axis in enumerate(axes.flat):
        picture = axis.imshow(images[index][0], vmin=0, vmax=1, cmap="viridis")
        axis.set_axis_off()
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    figure.colorbar(picture, ax=axes, label="value", aspect=40, pad=0.01)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def demo(path: Path, weights: Path, rows: int = 3, columns: int = 6) -> None:
    """Test models beside samples of the demo's flow."""
    flow = flowprior.load(weights)
    data = LayerModels(image_size=flow.image_shape[1], n_bits=5)
    truth = next(data.batches("test", rows * columns))[1]
    samples = flow.sample(rows * columns, generator=torch.Generator().manual_seed(0))
    figure = plt.figure(figsize=(12, 3.4), layout="constrained")
    parts = figure.subfigures(1, 2, wspace=0.03)
    titles = ("test images", "samples of the flow after two minutes of training")
    for part, title, images in zip(parts, titles, (truth, samples), strict=True):
        part.suptitle(title)
        for axis, image in zip(part.subplots(rows, columns).flat, images, strict=True):
            axis.imshow(flow.to_unit_range(image[0]), vmin=0, vmax=1, cmap="viridis")
            axis.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    demo(DOCS / "demo.png", DEMO)
    layer_models(DOCS / "layer_models.png")
