"""Linearised Born modelling against plain calls of deepwave: `python -m benchmarks.born`."""

import argparse
import time
import warnings
from collections.abc import Callable

import deepwave
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import MIB, allocation_peak, alternate, wall_clock
from flowprior.physics import LinearizedBorn, linearized_born
from flowprior.physics.survey import ABSORBING, COURANT, ROUNDING

Calls = dict[str, Callable[[], object]]


class Plain:
    """What a user of deepwave would write for the survey of a `LinearizedBorn`, on its grid.

    One call for all shots of all models, with the gradient of deepwave itself.
    """

    def __init__(self, physics: LinearizedBorn, models: int, like: Tensor) -> None:
        survey = physics.survey
        self.every, self.spacing = survey.every, list(survey.spacing)
        self.shots, rows = survey.data_shape[0], models * survey.data_shape[0]
        self.step = survey.interval / survey.every
        self.c = physics.background.to(like).expand(rows, -1, -1).contiguous()
        wavelet = -survey.wavelet().to(like) / (self.spacing[0] * self.spacing[1])
        self.options = {
            "source_amplitudes": wavelet.expand(rows, 1, -1).contiguous(),
            "source_locations": survey.sources.to(like.device).repeat(models, 1, 1),
            "pml_width": ABSORBING,
            "pml_freq": survey.frequency,
            "max_vel": survey.fastest * ROUNDING,
            "courant_number": COURANT,
            "check_output_finite": False,
        }
        self.receivers = survey.receivers.to(like.device).expand(rows, -1, -1)

    def born(self, dc: Tensor) -> Tensor:
        """Scattered waves of dc (models, H, W)."""
        dc = dc.repeat_interleave(self.shots, 0)
        options = {**self.options, "dv": dc, "sc_receiver_locations": self.receivers}
        found = deepwave.scalar_born(self.c, self.spacing, self.step, **options)
        return found.sc_receiver_amplitudes[..., :: self.every].unflatten(0, (-1, self.shots))

    def gradient(self, dc: Tensor, y: Tensor | None = None) -> Tensor:
        """Of ⟨J dc, y⟩, or of ½‖J dc‖²."""
        dc = dc.clone().requires_grad_()
        made = self.born(dc)
        return torch.autograd.grad(made, dc, made.detach() if y is None else y)[0]


def pairs(physics: LinearizedBorn, models: int, like: Tensor) -> dict[str, tuple[Calls, float]]:
    """Calls of "flowprior" and "deepwave" by what they compute, and their largest difference."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(models, *physics.image_shape, generator=generator).to(like)
    plain, dc = Plain(physics, models, like), physics._perturbation(x)
    y = physics.A(x)

    def squares() -> Tensor:
        image = x.clone().requires_grad_()
        return torch.autograd.grad(physics.A(image).square().sum() / 2, image)[0]

    def image_of(velocity: Tensor) -> Tensor:
        return torch.autograd.grad(physics._perturbation(zero), zero, velocity)[0]

    zero = torch.zeros_like(x).requires_grad_()
    calls = {
        "J": (lambda: physics.A(x), lambda: plain.born(dc)),
        "J*": (lambda: physics.A_adjoint(y), lambda: plain.gradient(dc, y)),
        "J, then J*": (squares, lambda: plain.gradient(dc)),
    }
    found = {}
    for name, (ours, theirs) in calls.items():
        one, other = ours(), theirs()
        other = other if name == "J" else image_of(other)
        gap = float((one - other).abs().max() / other.abs().max())
        found[name] = ({"flowprior": ours, "deepwave": theirs}, gap)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--sources", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="dv is non-zero in the outermost")
    like = torch.zeros(0, device=arguments.device)
    physics = linearized_born((1, arguments.size, arguments.size), arguments.sources)
    physics = physics.to(arguments.device)
    start, count = time.perf_counter(), arguments.models * arguments.sources
    title = (
        f"{count} shots of {arguments.size}², {physics.survey.steps} steps, float32, {like.device}"
    )
    table = Table(title=title, caption=f"fewest seconds of {arguments.repeats}; PDE solves: waves")
    for heading in ("", "of", "shots/s", "solves/s", "ratio", "peak MiB", "difference"):
        table.add_column(heading, justify="right")
    # Waves per shot: background and scattered ones, or those of the receivers; both ways.
    waves = {"J": (2, 2), "J*": (2, 3), "J, then J*": (4, 3)}
    for name, (calls, gap) in pairs(physics, arguments.models, like).items():
        seconds = alternate(calls, arguments.repeats, wall_clock(arguments.device))
        least = {who: min(times) for who, times in seconds.items()}
        for (who, time_), number in zip(least.items(), waves[name], strict=True):
            peak = allocation_peak(calls[who], like.device.type) / MIB
            rate, ratio = count / time_, time_ / least["deepwave"]
            numbers = f"{rate:.1f}", f"{number * rate:.0f}", f"{ratio:.2f}", f"{peak:.0f}"
            table.add_row(name, who, *numbers, f"{gap:.0e}")
    Console().print(table, f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
