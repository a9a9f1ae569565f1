"""What the choices inside flowprior's Glow give: the same training step with each one changed.

python -m benchmarks.glow_ablation --choices library channels_last separate
"""

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.glows import Candidate, Size, flowprior_glow
from benchmarks.measure import alternate, initialize, medians, training_step
from flowprior.flows import invertible_convolution

DESCRIPTIONS = {
    "library": "as the library",
    "channels_last": "weights and images channels_last",
    "separate": "ActNorm as two more operations per step",
    "matmul": "1x1 convolutions as batched matrix products",
    "compile": "under torch.compile",
}


def main() -> None:
    """Measure the choices in turn and print a table."""
    arguments = _parser().parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    x = torch.rand(arguments.batch_size, 3, 64, 64) - 0.5
    steps = {
        choice: _step(choice, Size(arguments.steps, 256, 64), x) for choice in arguments.choices
    }
    clock = time.process_time if arguments.cpu_clock else time.perf_counter
    seconds = alternate(steps, arguments.repeats, clock)
    median = medians(seconds)
    title = f"4 levels x {arguments.steps} steps, batch {len(x)}, {arguments.threads} thread(s)"
    table = Table("choice", "median ms", "min ms", "ratio", title=title)
    for choice in arguments.choices:
        ratio = median[choice] / median[arguments.choices[0]]
        times = (f"{1e3 * median[choice]:.0f}", f"{1e3 * min(seconds[choice]):.0f}")
        table.add_row(DESCRIPTIONS[choice], *times, f"{ratio:.2f}")
    Console(width=100).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    choices = list(DESCRIPTIONS)
    parser.add_argument("--choices", nargs="+", choices=choices, default=choices[:-1])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-clock", action="store_true", help="count CPU instead of real time")
    return parser


def _step(choice: str, size: Size, x: Tensor) -> Callable[[], None]:
    candidate = flowprior_glow(size, False)
    initialize(candidate, x)
    if choice == "channels_last":
        candidate.model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    if choice == "compile":
        candidate = Candidate(candidate.model, torch.compile(candidate.log_prob))

    def step() -> None:
        with _changed(choice):
            training_step(candidate, x)

    return step


def _changed(choice: str) -> AbstractContextManager[object]:
    affine = {"separate": _separate, "matmul": _matmul}.get(choice)
    return patch.object(invertible_convolution, "pixel_affine", affine) if affine else nullcontext()


def _separate(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    # The values do not matter for the time, but scale and bias must receive gradients.
    scale = 1 + 0 * offset
    return F.conv2d((x + offset.view(-1, 1, 1)) * scale.view(-1, 1, 1), weight[:, :, None, None])


def _matmul(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    weights = weight.expand(len(x), -1, -1)
    return torch.baddbmm(offset[:, None], weights, x.flatten(2)).unflatten(2, x.shape[2:])


if __name__ == "__main__":
    main()
