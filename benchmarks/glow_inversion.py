"""What an inversion asks of a Glow, in flowprior, normflows and FrEIA: images and a gradient.

python -m benchmarks.glow_inversion --threads 1 --cpu-clock

One evaluation: images and log-determinants of eight latents, and the gradient of the latents, with
frozen weights. All have 2 levels of 10 steps of affine couplings and 128 hidden channels, as
`weights/glow_mnist`, on images of 3x28x28.
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.glows import CANDIDATES, FOOTNOTE, Candidate, Size
from benchmarks.measure import alternate, initialize, medians

SIZE = Size(steps=10, hidden=128, size=28, levels=2)


def main() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-clock", action="store_true", help="count CPU instead of real time")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    x = torch.rand(arguments.rows, 3, SIZE.size, SIZE.size) - 0.5
    calls = {name: _evaluation(name, x) for name in ("flowprior plain", "normflows", "FrEIA")}
    clock = time.process_time if arguments.cpu_clock else time.perf_counter
    seconds = alternate(calls, arguments.repeats, clock)
    median = medians(seconds)
    title = f"{len(x)} latents, {arguments.threads} thread(s), torch {torch.__version__}"
    table = Table("", "min ms", "median ms", "ratio of minima", title=title)
    for name, times in seconds.items():
        ratio = min(times) / min(seconds["flowprior plain"])
        table.add_row(name, f"{1e3 * min(times):.1f}", f"{1e3 * median[name]:.1f}", f"{ratio:.2f}")
    console = Console(width=100)
    console.print(table)
    console.print(FOOTNOTE)


def _evaluation(name: str, x: Tensor) -> Callable[[], object]:
    candidate = CANDIDATES[name](SIZE)
    initialize(candidate, x)
    candidate.model.eval().requires_grad_(False)
    latents, decode = _decoder(name, candidate, x)
    latents = [z.detach().requires_grad_() for z in latents]

    def evaluate() -> object:
        images, log_det = decode(latents)
        return torch.autograd.grad(images.square().sum() + log_det.sum(), latents)

    return evaluate


def _decoder(
    name: str, candidate: Candidate, x: Tensor
) -> tuple[list[Tensor], Callable[[list[Tensor]], tuple[Tensor, Tensor]]]:
    """Latents of images, and the function that takes them back, with its log-determinant."""
    model = candidate.model
    with torch.no_grad():
        if name == "FrEIA":
            return list(model(x)[0]), lambda z: model(z, rev=True)
        if name == "normflows":
            return list(model.inverse_and_log_det(x)[0]), model.forward_and_log_det
        return [model.encode(x)[0]], lambda z: model.decode(z[0])


if __name__ == "__main__":
    main()
