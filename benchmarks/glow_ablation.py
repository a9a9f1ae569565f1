"""What the choices inside flowprior's Glow give: the same computation with each one changed.

python -m benchmarks.glow_ablation --task digits --choices library contiguous

The task "step" is a training step on images of 3x64x64; "digits" is what an inversion takes most
time for: decode and the gradient of the latents of eight digits with `weights/glow_mnist`.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import flowprior
from benchmarks.glows import Size, flowprior_glow
from benchmarks.measure import alternate, initialize, medians
from flowprior.flows import Glow, channels_last, coupling_net, invertible_convolution
from flowprior.flows.invertible_convolution import InvertibleConvolutions

DESCRIPTIONS = {
    "library": "as the library",
    "contiguous": "no channels_last in coupling nets",
    "images": "1x1 convolutions on images, not on rows of pixels",
    "weights_last": "weights channels_last too",
    "separate": "ActNorm as two more operations per step",
    "matmul": "1x1 convolutions as batched matrix products",
    "refolded": "matrices and inverses computed in every call",
    "flat": "activations rebuilt by inversion",
    "bfloat16": "coupling nets in bfloat16 (autocast)",
    "compile": "under torch.compile",
}
TASKS = ("step", "digits")


def main() -> None:
    """Measure the choices in turn and print a table."""
    arguments = _parser().parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    calls = {choice: _call(choice, arguments) for choice in arguments.choices}
    clock = time.process_time if arguments.cpu_clock else time.perf_counter
    seconds = alternate(calls, arguments.repeats, clock)
    median = medians(seconds)
    title = f"{arguments.task}, {arguments.threads} thread(s), torch {torch.__version__}"
    table = Table("choice", "min ms", "median ms", "ratio of minima", title=title)
    for choice in arguments.choices:
        ratio = min(seconds[choice]) / min(seconds[arguments.choices[0]])
        times = (f"{1e3 * min(seconds[choice]):.1f}", f"{1e3 * median[choice]:.1f}")
        table.add_row(DESCRIPTIONS[choice], *times, f"{ratio:.2f}")
    Console(width=100).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    choices = list(DESCRIPTIONS)
    parser.add_argument("--task", choices=TASKS, default="step")
    parser.add_argument("--choices", nargs="+", choices=choices, default=choices[:-1])
    parser.add_argument("--steps", type=int, default=4, help="per level, of a training step")
    parser.add_argument("--batch-size", type=int, default=4, help="of a training step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-clock", action="store_true", help="count CPU instead of real time")
    return parser


def _call(choice: str, arguments: argparse.Namespace) -> Callable[[], None]:
    if arguments.task == "digits":
        flow, loss = _digits()
        flow.requires_grad_(False)
    else:
        flow, loss = _step(arguments)
    flow.memory_efficient, flow.kept_bytes = choice == "flat", 0
    if choice == "weights_last":
        flow.to(memory_format=torch.channels_last)
    if choice == "compile":
        loss = torch.compile(loss)

    def call() -> None:
        flow.zero_grad()
        with _changed(choice):
            value = loss()
        value.backward()

    return call


def _digits() -> tuple[Glow, Callable[[], Tensor]]:
    flow = flowprior.load("weights/glow_mnist")
    z = torch.randn(8, *flow.latent.shape).requires_grad_()

    def loss() -> Tensor:
        x, log_det = flow.decode(z)
        return x.square().sum() + log_det.sum()

    return flow, loss


def _step(arguments: argparse.Namespace) -> tuple[Glow, Callable[[], Tensor]]:
    candidate = flowprior_glow(Size(arguments.steps, 256, 64), False)
    x = torch.rand(arguments.batch_size, 3, 64, 64) - 0.5
    initialize(candidate, x)
    return candidate.model, lambda: -candidate.log_prob(x).mean()


def _changed(choice: str) -> ExitStack:
    """A context in which a choice is made otherwise."""
    stack = ExitStack()
    if choice == "contiguous":
        stack.enter_context(patch.object(coupling_net, "channels_last", lambda x: x))
    if choice in ("contiguous", "images"):
        stack.enter_context(patch.object(channels_last, "_rows_pay", lambda x: False))
    if choice in ("separate", "matmul"):
        affine = {"separate": _separate, "matmul": _matmul}[choice]
        stack.enter_context(patch.object(invertible_convolution, "pixel_affine", affine))
    if choice == "refolded":
        fold = lambda self, inverted=False, recompute=False: self._fold(inverted)  # noqa: E731
        stack.enter_context(patch.object(InvertibleConvolutions, "fold", fold))
    if choice == "bfloat16":
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
    return stack


def _separate(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    # The values do not matter for the time, but scale and bias must receive gradients.
    scale = 1 + 0 * offset
    return F.conv2d((x + offset.view(-1, 1, 1)) * scale.view(-1, 1, 1), weight[:, :, None, None])


def _matmul(x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
    weights = weight.expand(len(x), -1, -1)
    return torch.baddbmm(offset[:, None], weights, x.flatten(2)).unflatten(2, x.shape[2:])


if __name__ == "__main__":
    main()
