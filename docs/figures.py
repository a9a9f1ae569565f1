"""Make the pictures of the guides: ``python docs/figures.py``."""

from pathlib import Path

import matplotlib.pyplot as plt

from datamodules import LayerModels

DOCS = Path(__file__).parent


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


if __name__ == "__main__":
    layer_models(DOCS / "layer_models.png")
