"""Figures that training and evaluations share. They touch no global state of matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 150
# Okabe and Ito's palette, told apart by colour-blind readers; lines and markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_COLOUR_MAP, _SPREAD_MAP = "gray", "viridis"
_MOST_TITLED = 10  # columns in a row whose titles can be read
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG, cut so that no text is clipped."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08)
    return data.getvalue()


def to_numpy(array: Any) -> np.ndarray:
    """Anything array-like, a tensor on any device included, as a NumPy array.

    bfloat16, which NumPy has not, becomes float32.
    """
    import numpy as np

    if not hasattr(array, "detach"):
        return np.asarray(array)
    array = array.detach().cpu()
    return (array.float() if "bfloat16" in str(array.dtype) else array).numpy()


def grey_range(images: Any) -> tuple[float, float]:
    """Values that are black and white where images in [0, 1] are shown: 0 and 1, as a rule.

    Of images with one channel of which 99 % of the pixels use less than a third of the range, as
    perturbations around ½ do, the ends of these.

    Args:
        images: those that others are compared with, shaped as in `image_grid`.
    """
    import numpy as np

    pixels = _pixels(images)
    finite = np.clip(pixels[np.isfinite(pixels)], 0, 1)
    if pixels.shape[-1] == 3 or not finite.size:
        return 0.0, 1.0
    low, high = map(float, np.quantile(finite, (0.005, 0.995)))
    return (low, high) if 0 < high - low < 1 / 3 else (0.0, 1.0)


def image_grid(
    images: Any,
    columns: int = 8,
    titles: Sequence[str] = (),
    value_range: tuple[float, float] | None = None,
    label: str = "",
    spreads: Sequence[int] = (),
) -> Figure:
    """Images in rows; those with one channel get a colour bar. NaN and inf are magenta.

    Standard deviations among them, means over three channels, have colours and a bar of their own,
    whose end at most one pixel in 200 exceeds. More than ten columns with titles go on below.

    Args:
        images: (N, C, H, W) or (N, H, W). Three channels are colours; of two, or more than three,
            the channels of an image are drawn side by side.
        columns: number of images in a row.
        titles: above the images: one for each, or one for each column.
        value_range: ends of the colours; by default [0, 1] for three channels, the range of the
            finite pixels for one.
        label: beside the colour bar, with its unit.
        spreads: columns that are standard deviations.

    Raises:
        ValueError: the images have another shape, or there are none.
    """
    pixels = _pixels(images)
    columns = min(columns, len(pixels))
    is_spread = [number % columns in spreads for number in range(len(pixels))]
    own, most = _ranges(pixels, is_spread)
    labels = {_COLOUR_MAP: label} if pixels.shape[-1] == 1 else {}
    labels |= {_SPREAD_MAP: "standard deviation"} if spreads else {}
    places = _places(len(pixels), columns, _MOST_TITLED if titles else columns)
    across = max(column for _, column in places) + 1
    titles = [_wrapped(title, _tile_width(across)) for title in titles[: len(pixels)]]
    lines = [0] * (max(row for row, _ in places) + 1)
    for (row, _), title in zip(places, titles, strict=False):
        lines[row] = max(lines[row], title.count("\n") + 1 if title else 0)
    aspect = pixels.shape[1] / pixels.shape[2]
    figure, tiles, bars = _tiles(across, aspect, lines, len(labels))
    axes = [tiles[row * across + column] for row, column in places]
    drawn = {}
    for axis, image, spread in zip(axes, pixels, is_spread, strict=True):
        shown = image.mean(-1, keepdims=True) if spread else image
        name = _SPREAD_MAP if spread else _COLOUR_MAP
        drawn[name] = _draw(axis, shown, *((0.0, most) if spread else value_range or own), name)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=9, pad=4)
    for bar, (name, text) in zip(bars, labels.items(), strict=True):
        extend = "max" if name == _SPREAD_MAP else "neither"
        _label_bar(figure.colorbar(drawn[name], cax=bar, extend=extend), text)
    return figure


def _places(count: int, columns: int, most: int) -> list[tuple[int, int]]:
    """Row and column of each tile of so many; no row has more than `most`, the rest is below."""
    blocks = -(-columns // most)
    across, rows = -(-columns // blocks), -(-count // columns)
    split = (divmod(number, columns) for number in range(count))
    return [(column // across * rows + row, column % across) for row, column in split]


def _ranges(pixels: np.ndarray, is_spread: Sequence[bool]) -> tuple[tuple[float, float], float]:
    """Ends of the colours of images, and the end of those of spreads, which few exceed."""
    import numpy as np

    spread = np.array(is_spread)
    spreads = pixels[spread].mean(-1)
    spreads = spreads[np.isfinite(spreads)]
    most = float(np.quantile(spreads, 0.995)) if spreads.size else 1.0
    return _value_range(pixels[~spread]), most or 1.0


def image_table(
    rows: Mapping[str, Any],
    ranges: Mapping[str, tuple[float, float]],
    captions: Mapping[str, Sequence[str]],
) -> Figure:
    """Named rows of images, one above the other, with a text above each image.

    Args:
        rows: name to images, shaped as in `image_grid`, equally many in each row.
        ranges: ends of the colours of a row, by name; [0, 1] for others.
        captions: texts of a row, by name; others have none.
    """
    from matplotlib.figure import Figure

    pixels = {name: _pixels(images) for name, images in rows.items()}
    count, height, width, _ = next(iter(pixels.values())).shape
    size = min(1.4, 11 / count)
    shape = size * count + 2.0, (size * height / width + 0.22) * len(rows)
    figure = Figure(figsize=shape, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(rows), count + 1, squeeze=False, width_ratios=[1] * count + [0.06])
    for (*line, bar), (name, images) in zip(axes, pixels.items(), strict=True):
        low, high = ranges.get(name, (0.0, 1.0))
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axis, image, text in zip(line, images, captions.get(name, [""] * count), strict=True):
            drawn = _draw(axis, image, low, high)
            axis.set_title(text, fontsize=8, pad=2)
        if images.shape[-1] == 1:
            _label_bar(figure.colorbar(drawn, cax=bar), "")
        else:
            bar.remove()
    return figure


def image_rows(
    rows: Mapping[str, Any],
    label: str = "",
) -> Figure:
    """Named rows of images of one shape, drawn as one picture: quicker than `image_grid`.

    Args:
        rows: name to images in [0, 1], shaped as in `image_grid`, equally many in each row.
        label: beside the colour bar, which images with one channel get.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    pixels = np.stack([_pixels(images) for images in rows.values()])
    count, columns, height, width, channels = pixels.shape
    gap = max(1, width // 24)
    room = ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0))
    colours = colormaps[_COLOUR_MAP].with_extremes(bad="magenta")
    scaled = np.clip(pixels, 0, 1)
    shown = colours(scaled[..., 0])[..., :3] if channels == 1 else scaled
    mosaic = np.pad(shown, room, constant_values=1.0).transpose(0, 2, 1, 3, 4)
    mosaic = mosaic.reshape(count * (height + gap), columns * (width + gap), 3)[:-gap, :-gap]
    size = min(1.4, 11 / columns)
    shape = size * columns + 1.9, size * height / width * count
    figure = Figure(figsize=shape, layout="compressed")
    axis = figure.add_subplot()
    axis.imshow(mosaic, interpolation="nearest")
    ticks = [row * (height + gap) + height / 2 for row in range(count)]
    axis.set_yticks(ticks, list(rows), fontsize=9)
    axis.set(xticks=[], frame_on=False)
    axis.tick_params(length=0)
    if channels == 1:
        _colour_bar(figure, axis, colours, label)
    return figure


def image_panels(
    images: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Named images in one row, each with a bar of its colours.

    Args:
        images: name to an image (C, H, W); three channels are colours, and of two, or more than
            three, the channels are drawn side by side. NaN and inf are magenta.
        ranges: by name, where the colours of an image begin and end; its own range by default.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(images), 2.4), layout="constrained")
    axes = figure.subplots(1, len(images), squeeze=False)[0]
    for axis, (name, image) in zip(axes, images.items(), strict=True):
        pixels = _pixels(to_numpy(image)[None])
        low, high = (ranges or {}).get(name) or _value_range(pixels)
        drawn = _draw(axis, pixels[0], low, high)
        axis.set_title(name, fontsize=9, pad=4)
        if pixels.shape[-1] == 1:
            _label_bar(figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.03), "")
    return figure


def _draw(
    axis: Axes, pixels: np.ndarray, low: float, high: float, colour_map: str = _COLOUR_MAP
) -> AxesImage:
    """Show pixels (H, W, 1 or 3), with colours from low to high."""
    from matplotlib import colormaps

    colours = colormaps[colour_map].with_extremes(bad="magenta")
    shown = pixels[..., 0] if pixels.shape[-1] == 1 else _rgb(pixels, low, high)
    axis.set(xticks=[], yticks=[], frame_on=False)
    return axis.imshow(shown, cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _colour_bar(figure: Figure, axis: Axes, colours: Any, label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, 1), colours)
    _label_bar(figure.colorbar(scale, ax=axis, fraction=0.04, pad=0.02), label)


def _label_bar(bar: Colorbar, label: str) -> None:
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _pixels(images: Any) -> np.ndarray:
    pixels = to_numpy(images)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or 0 in pixels.shape:
        raise ValueError(f"images must be (N, C, H, W) or (N, H, W), got {pixels.shape}")
    if pixels.shape[1] not in (1, 3):
        count, _, height, _ = pixels.shape
        pixels = pixels.transpose(0, 2, 1, 3).reshape(count, 1, height, -1)
    return pixels.transpose(0, 2, 3, 1).astype("float64")


def _value_range(pixels: np.ndarray) -> tuple[float, float]:
    import numpy as np

    finite = pixels[np.isfinite(pixels)]
    if pixels.shape[-1] == 3 or finite.size == 0:
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())


def _rgb(image: np.ndarray, low: float, high: float) -> np.ndarray:
    import numpy as np

    bad = ~np.isfinite(image).all(axis=-1, keepdims=True)
    return np.where(bad, (1.0, 0.0, 1.0), np.clip((image - low) / (high - low or 1), 0, 1))


def _tile_width(columns: int) -> float:
    """Inches of each of so many tiles in a row."""
    return min(2.2, max(1.1, 11 / columns))


def _wrapped(title: str, width: float) -> str:
    """A title of font size 9 in lines that a tile of this width (inches) has room for."""
    room = int(width / 0.075)
    return "\n".join(part for line in title.split("\n") for part in wrap(line, room) or [""])


def _tiles(
    columns: int, aspect: float, title_lines: Sequence[int], bars: int
) -> tuple[Figure, list[Axes], list[Axes]]:
    """Axes of equal size in rows, below titles, and narrow ones at their right for colour bars.

    Placed by hand: a layout engine gives every row beside a bar the room of the longest title.

    Args:
        columns: in a row.
        aspect: height over width of a tile.
        title_lines: of the titles of each row.
        bars: their number.
    """
    from matplotlib.figure import Figure

    across, gap, edge = _tile_width(columns), 0.06, 0.08
    down = across * aspect
    above = [0.155 * lines + (gap if lines else 0.0) for lines in title_lines]
    width = edge + (across + gap) * columns + 0.8 * bars
    height = 2 * edge + down * len(above) + sum(above) + gap * (len(above) - 1)
    figure = Figure(figsize=(width, height))

    def place(left: float, top: float, size: tuple[float, float]) -> Axes:
        box = left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height
        return figure.add_axes(box)

    axes, top = [], edge
    for room in above:
        top += room
        axes += [place(edge + (across + gap) * c, top, (across, down)) for c in range(columns)]
        top += down + gap
    for axis in axes:
        axis.set(xticks=[], yticks=[], frame_on=False)
    first, right = edge + above[0], edge + (across + gap) * columns
    long = height - first - edge
    return figure, axes, [place(right + 0.05 + 0.8 * b, first, (0.09, long)) for b in range(bars)]


def style_axis(axis: Axes) -> None:
    """No frame above and at the right, a pale grid behind the data."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9", lw=0.8)
    axis.set_axisbelow(True)
