"""Posteriors that are right are found to be, and others are not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from flowprior.figures import png_bytes
from flowprior.posterior import calibrate, coverage_figure, joined, rank_figure
from flowprior.posterior.calibration import LEVELS, WHOLE, uniform_p_value
from tests.exact_posterior import exact_posterior

SHAPE = (1, 4, 4)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(count, **wrong):
    """Truths and their posteriors."""
    matrix = normal(8, 16, seed=1) / math.sqrt(8)
    truth = 0.5 + 0.2 * normal(count, *SHAPE, seed=2)
    y = truth.flatten(1) @ matrix.T + 0.1 * normal(count, 8, seed=3)
    return exact_posterior(matrix, y, 0.1, SHAPE, **wrong), truth


def test_the_right_posterior_is_found_right():
    found = calibrate(*problem(1000))
    assert found.p_value > 0.05
    assert set(found.ranks) == {"mean", "projection 1", "projection 2", WHOLE}
    mean, interval = found.expected_coverage()
    assert ((mean - torch.tensor(LEVELS)).abs() < 1.5 * interval).all()
    assert interval.max() < 0.02


@pytest.mark.parametrize(
    ("wrong", "high"),
    [({"width": 0.7}, True), ({"width": 1.4}, False), ({"bias": 0.5}, True)],
)
def test_wrong_posteriors_are_found_wrong(wrong, high):
    found = calibrate(*problem(300, **wrong))
    assert found.p_value < 0.01
    outside = found.ranks[WHOLE].double().mean() / found.draws
    assert (outside > 0.55) if high else (outside < 0.45)
    middle = found.expected_coverage()[0][4]
    assert (middle < 0.47) if high else (middle > 0.55)


@pytest.mark.parametrize(
    "change", [lambda x: x[:10], lambda x: x[0], lambda x: x.repeat_interleave(2, 0)]
)
def test_another_number_of_draws_is_named(change):
    posterior, truth = problem(20)
    sample = posterior.sample

    class Changed:
        def sample(self, count, *, seed):
            return change(sample(count, seed=seed))

    with pytest.raises(ValueError, match="posterior must give 19 draws of images, got"):
        calibrate(Changed(), truth, 19)


def test_ranks_are_those_of_the_draws():
    posterior, truth = problem(20)
    found = calibrate(posterior, truth, 19, seed=4, statistics={"first": lambda x: x[..., 0, 0, 0]})
    draws = posterior.sample(19, seed=4)
    expected = (draws[:, :, 0, 0, 0] < truth[:, 0, 0, 0]).sum(0)
    assert torch.equal(found.ranks["first"], expected)
    expected = (draws.mean((2, 3, 4)) < truth.mean((1, 2, 3))).sum(0)
    assert torch.equal(found.ranks["mean"], expected)
    for row in range(20):
        images = torch.cat([truth[row][None], draws[:, row]]).flatten(1)
        distances = [sum((a - b).norm() for b in images) for a in images]
        assert found.ranks[WHOLE][row] == sum(d < distances[0] for d in distances[1:])
        low, high = draws[:, row].sort(0).values[[4, 14]]
        inside = ((truth[row] > low) & (truth[row] < high)).double().mean()
        assert found.coverage[row, 4] == pytest.approx(inside)


def test_ranks_among_equal_values_are_uniform():
    class Constant:
        def sample(self, count, *, seed):
            return torch.full((count, 500, *SHAPE), 0.5)

    found = calibrate(Constant(), torch.full((500, *SHAPE), 0.5))
    assert uniform_p_value(found.ranks["mean"], 99) > 0.01


def test_chi_square():
    ranks = torch.from_numpy(np.random.default_rng(0).integers(0, 100, 400))
    counts = np.histogram(ranks, np.arange(0, 101, 5) - 0.5)[0]
    assert uniform_p_value(ranks, 99) == pytest.approx(stats.chisquare(counts).pvalue)
    under = [uniform_p_value(torch.from_numpy(r), 30) for r in _uniform(31, 1000)]
    assert stats.kstest(under, "uniform").pvalue > 0.01  # bins of unequal width too
    with pytest.raises(ValueError, match="at least 10 images, got 9"):
        uniform_p_value(ranks[:9], 99)


def _uniform(values, times):
    return np.random.default_rng(1).integers(0, values, (times, 200))


def test_batches_are_joined():
    posterior, truth = problem(30)
    whole = calibrate(posterior, truth, 19)
    both = joined([whole, whole])
    assert len(both.coverage) == 60
    assert torch.equal(both.ranks["mean"][30:], whole.ranks["mean"])
    other_levels = replace(whole, levels=(0.5, 0.9), coverage=whole.coverage[:, [4, 8]])
    assert len(joined([other_levels, other_levels]).levels) == 2
    for parts in ([], [whole, calibrate(posterior, truth, 39)], [whole, other_levels]):
        with pytest.raises(ValueError, match=r"^calibrations must be"):
            joined(parts)


@pytest.mark.parametrize("draws", [19, 59, 99])
def test_intervals_hold_the_share_that_they_are_named_after(draws):
    ranks = torch.arange(draws + 1)  # a pixel of each rank that a truth can have

    class Sorted:
        def sample(self, count, *, seed):
            return torch.arange(count)[:, None, None, None, None].expand(-1, 2, 1, 1, draws + 1)

    truth = (ranks - 0.5).expand(2, 1, 1, -1)
    found = calibrate(Sorted(), truth, draws)
    torch.testing.assert_close(found.coverage, torch.tensor(LEVELS).double().expand(2, -1))


@pytest.mark.parametrize("draws", [-1, 0, 9, 10, 20, 30, 98, 19.0])
def test_draws_that_give_other_shares_are_refused(draws):
    with pytest.raises(ValueError, match=r"^draws must be"):
        calibrate(*problem(3), draws)


@pytest.mark.parametrize("wrong", [{"draws": 3}, {"seed": -1}, {"truth": torch.zeros(2, 1, 4, 4)}])
def test_wrong_arguments_are_named(wrong):
    posterior, truth = problem(3)
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}"):
        calibrate(posterior, **{"truth": truth, **wrong})


def test_a_border_that_is_known_is_inside_its_intervals():
    posterior, truth = problem(60)

    class Bordered:
        def sample(self, count, *, seed):
            return torch.nn.functional.pad(posterior.sample(count, seed=seed), (2, 2, 2, 2))

    bare = calibrate(posterior, truth, 99).coverage.mean(0)
    found = calibrate(Bordered(), torch.nn.functional.pad(truth, (2, 2, 2, 2)), 99).coverage.mean(0)
    torch.testing.assert_close(found, bare / 4 + 0.75 * torch.tensor(LEVELS), atol=0.03, rtol=0)


def test_truths_and_statistics_that_are_not_finite_are_named():
    posterior, truth = problem(3)
    with pytest.raises(ValueError, match=r"^statistics: odd of rows 0, 1, 2: not finite"):
        calibrate(posterior, truth, 19, statistics={"odd": lambda x: x.mean((-3, -2, -1)) / 0})
    truth[2, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"^truth of row 2: not finite"):
        calibrate(posterior, truth, 19)


def test_draws_that_are_not_finite_are_named():
    posterior, truth = problem(3)

    class Broken:
        def sample(self, count, *, seed):
            x = posterior.sample(count, seed=seed)
            x[2, 1, 0, 0, 0] = math.nan
            return x

    with pytest.raises(ValueError, match=r"^posterior: draws of row 1: not finite"):
        calibrate(Broken(), truth, 19)


def test_figures():
    good, narrow = (calibrate(*problem(60, width=width)) for width in (1.0, 0.5))
    figure = rank_figure({"good": good, "narrow": narrow})
    assert len(figure.axes) == 2 * len(good.ranks)
    assert png_bytes(figure)
    assert png_bytes(rank_figure({"good": good}))
    assert png_bytes(coverage_figure({"good": good, "narrow": narrow}))
    few = replace(good, levels=(0.5, 0.9), coverage=good.coverage[:, [4, 8]])
    lines = coverage_figure({"few": few}).axes[0].get_lines()
    assert [0.5, 0.9] in [list(line.get_xdata()) for line in lines]
