"""One training step of the same Glow in flowprior, normflows and FrEIA: time and peak memory.

python -m benchmarks.glow_step --steps 8 32 --batch-size 4
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.glows import CANDIDATES, FOOTNOTE, OUR_NETS, VARIANTS, Size
from benchmarks.measure import (
    activation_peak,
    alternate,
    initialize,
    matmul,
    medians,
    training_step,
    wall_clock,
)

MATMUL = "torch.mm 2048^3"


def main() -> None:
    """Measure and print one table for each number of steps, and the growth of memory."""
    arguments = _parser().parse_args()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console(width=100)
    console.print(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads"
    )
    for steps in arguments.steps:
        console.print(_compare(arguments, Size(steps, arguments.hidden, arguments.size)))
    console.print(_memory_by_depth(arguments))
    console.print(FOOTNOTE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32], help="steps per level")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peers", nargs="*", default=["normflows", "FrEIA", OUR_NETS])
    parser.add_argument("--threads", type=int, help="of the CPU; default: as torch chooses")
    parser.add_argument(
        "--cpu-clock",
        action="store_true",
        help="count CPU instead of real time: with --threads 1, for a machine others use too",
    )
    return parser


def _compare(arguments: argparse.Namespace, size: Size) -> Table:
    x = _images(arguments)
    makers = CANDIDATES | VARIANTS
    names = [n for n in makers if n.startswith("flowprior") or n in arguments.peers]
    product, product_flops = matmul(arguments.device)
    functions, peaks = {MATMUL: product}, {}
    for name in names:
        candidate = makers[name](size)
        initialize(candidate, x)
        peaks[name] = activation_peak(candidate, x)
        functions[name] = lambda candidate=candidate: training_step(candidate, x)
    clock = time.process_time if arguments.cpu_clock else wall_clock(arguments.device)
    seconds = alternate(functions, arguments.repeats, clock)
    median = medians(seconds)
    flops, matmul_rate = size.training_flops(len(x)), product_flops / median[MATMUL]
    table = _table(f"4 levels x {size.steps} steps, batch {len(x)}; forward and backward")
    for name in names:
        rate = flops / median[name]
        table.add_row(
            name,
            f"{1e3 * median[name]:.0f}",
            f"{1e3 * min(seconds[name]):.0f}",
            f"{min(seconds[name]) / min(seconds['flowprior plain']):.2f}",
            f"{rate / 1e9:.0f}",
            f"{100 * rate / matmul_rate:.0f} %",
            f"{peaks[name]:.0f}",
            f"{len(x) / median[name]:.1f}",
        )
    table.add_row(MATMUL, f"{1e3 * median[MATMUL]:.0f}", "", "", f"{matmul_rate / 1e9:.0f}")
    return table


def _memory_by_depth(arguments: argparse.Namespace) -> Table:
    x = _images(arguments)
    table = Table("steps per level", "peak MiB", title="flowprior memory-flat by depth")
    for steps in sorted({4, *arguments.steps}):
        size = Size(steps, arguments.hidden, arguments.size)
        candidate = CANDIDATES["flowprior memory-flat"](size)
        initialize(candidate, x)
        table.add_row(str(steps), f"{activation_peak(candidate, x):.0f}")
    return table


def _images(arguments: argparse.Namespace) -> torch.Tensor:
    side = arguments.size
    return torch.rand(arguments.batch_size, 3, side, side, device=arguments.device) - 0.5


def _table(title: str) -> Table:
    columns = ("median ms", "min ms", "ratio of minima", "GFLOP/s", "of mm", "peak MiB", "images/s")
    table = Table("", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    main()
