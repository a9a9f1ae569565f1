from dataclasses import dataclass

import pytest
import torch

import flowprior
from flowprior.figures import COLORS, grey_range, png_bytes
from flowprior.inversion import Estimate, TotalVariation, invert
from flowprior.metrics import psnr
from flowprior.panels import point_panels


def estimate(x, posterior=None):
    finite = torch.ones(len(x), dtype=torch.bool)
    return Estimate(x, None, finite, {}, posterior=posterior)


@dataclass
class TwoImages:
    """A posterior whose draws are one of two images, by turns."""

    low: torch.Tensor
    high: torch.Tensor

    def sample(self, count, *, seed):
        return torch.stack([(self.low, self.high)[i % 2] for i in range(count)])


@pytest.fixture
def truth():
    return torch.rand(7, 1, 12, 10, generator=torch.Generator().manual_seed(0))


def rows_of(figure):
    """Name of each row with its texts and pixels."""
    found, axes = {}, [axis for axis in figure.axes if axis.images]
    for axis in axes:
        if axis.get_ylabel():
            row = found[axis.get_ylabel()] = []
        row.append((axis.get_title(), torch.tensor(axis.images[0].get_array().filled())))
    return found


def test_rows_and_scores_are_those_of_the_images(truth):
    y = truth + 0.1
    found = invert(None, lambda x: x, y, sigma=0.1, solver=TotalVariation(1.0), start=y.clamp(0, 1))
    rows = rows_of(flowprior.plot(found, truth, y, images=3))
    assert list(rows) == ["truth", "data", "recovered", "error"]
    assert {len(row) for row in rows.values()} == {3}
    for name, images in (("data", y), ("recovered", found.x)):
        scores = [f"{score:.1f} dB" for score in psnr(images, truth)[:3].tolist()]
        assert [text for text, _ in rows[name]] == scores
    for (text, pixels), x, true in zip(rows["error"], found.x, truth, strict=False):
        assert torch.allclose(pixels.float(), (x - true)[0].abs())
        assert text == f"rms {(x - true).square().mean().sqrt():.2g}"
    assert torch.allclose(rows["truth"][2][1].float(), truth[2, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_all_precisions_are_shown(truth, dtype):
    assert png_bytes(flowprior.plot(truth.to(dtype), truth.to(dtype)))


def test_a_posterior_gets_a_row(truth):
    found = estimate(truth, TwoImages(truth - 0.25, truth + 0.25))
    rows = rows_of(flowprior.plot(found, images=2))
    text, pixels = rows["standard\ndeviation"][1]
    assert torch.allclose(pixels, torch.full_like(pixels, 0.252), atol=1e-3)  # of 64 draws
    assert text == "mean 0.25"


def test_images_of_small_contrast_are_shown_with_more(truth):
    small = 0.45 + 0.1 * truth
    figure = flowprior.plot(small + 0.01, small, images=2)
    ranges = {axis.images[0].get_clim() for axis in figure.axes if axis.images}
    low, high = min(ranges, key=lambda ends: -ends[0])
    assert low == pytest.approx(0.45, abs=0.01)
    assert high == pytest.approx(0.55, abs=0.01)
    assert len(ranges) == 2  # and that of the errors
    reflector = torch.full((1, 1, 40, 40), 0.5)
    reflector[..., 3] = 0.9
    assert grey_range(reflector) == (0.0, 1.0)
    assert grey_range(0.1 * truth - 0.001)[0] == 0.0  # an overshoot
    both = flowprior.plot({"small": small, "sharp": truth}, images=2)
    assert {axis.images[0].get_clim() for axis in both.axes if axis.images} == {(0.0, 1.0)}
    for images in (truth, small.expand(-1, 3, -1, -1), torch.full_like(truth, 0.5)):
        assert grey_range(images) == (0.0, 1.0)


def test_a_few_bright_pixels_do_not_take_the_contrast(truth):
    faint = 0.4 + 0.2 * truth
    faint[0, 0, 0, 0] = 1.0
    low, high = grey_range(faint)
    assert 0.4 <= low < 0.41
    assert 0.59 < high <= 0.6
    assert grey_range(truth) == (0.0, 1.0)


def test_several_results_colours_and_data_of_another_size(truth):
    colours = truth.repeat(1, 3, 1, 1)
    found = {"a": estimate(colours), "b": colours.clone()}
    figure = flowprior.plot(found, colours, y=5 * torch.rand(7, 1, 4, 20), images=2)
    assert list(rows_of(figure)) == ["truth", "data", "a", "a,\nerror", "b", "b,\nerror"]
    figure.canvas.draw()
    other = rows_of(flowprior.plot(colours, y=5 + truth))  # of another shape, without a truth
    assert other["data"][0][1].min() >= 5
    times = torch.rand(7, 8, 32)  # travel times are no images
    assert list(rows_of(flowprior.plot(colours, y=times))) == ["recovered"]


@pytest.mark.parametrize(
    ("start", "arguments"),
    [
        ("truth", {"truth": torch.rand(6, 1, 12, 10)}),
        ("std", {"std": torch.rand(7, 12, 10)}),
        ("y", {"y": torch.rand(6, 3)}),
        ("images", {"images": 0}),
        ("truth", {"truth": 255 * torch.rand(7, 1, 12, 10)}),
    ],
)
def test_errors_name_the_argument(truth, start, arguments):
    with pytest.raises(ValueError, match=f"^{start} "):
        flowprior.plot(truth, **arguments)


def test_errors_about_results(truth):
    with pytest.raises(ValueError, match=r"^found must"):
        flowprior.plot({})
    with pytest.raises(ValueError, match=r"^b must be images \(B, C, H, W\).*\(3, 1, 12, 10\)"):
        flowprior.plot({"a": truth, "b": truth[:3]})
    with pytest.raises(ValueError, match=r"^std is of a single result"):
        flowprior.plot({"a": truth, "b": truth}, std=truth)


def test_points_stand_at_their_times_and_more_names_than_colours_differ():
    points = {f"method {i}": (10.0**i, float(i), 0.5) for i in range(9)}
    figure = point_panels({"one": {"data": (None, 3.0, 0.0), **points}}, "s", "dB")
    (axis,) = figure.axes
    level, *lines = axis.lines[:1] + [bars.lines[0] for bars in axis.containers]
    assert (level.get_color(), lines[0].get_color()) == ("black", COLORS[0])
    assert list(level.get_ydata()) == [3.0, 3.0]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines] == [
        (x, y) for x, y, _ in points.values()
    ]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines)


# Matplotlib's own limits for each of these alone are a distance of rounding apart.
@pytest.mark.parametrize("seconds", [0.034184101089156406, 0.1442494145520167, 1.0])
def test_a_single_place_has_an_axis_of_some_length(seconds):
    panels = {"one": {"data": (None, 3.0, 0.0), "method": (seconds, 4.0, 0.5)}}
    low, high = point_panels(panels, "s", "dB").axes[0].get_xlim()
    assert low < 0.9 * seconds
    assert high > 1.1 * seconds
