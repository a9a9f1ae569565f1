"""Time per generated image of the 1×1-coupling flow and Glow, on 32×32 colour images.

python -m benchmarks.sampling --batch-sizes 1 64

Table 2 of Chavez (2022), where the inverses of Glow's 1×1 convolutions are computed in every call.
The paper does not say how its Glow of 33.8 million parameters and 14 flow steps is built: here are
three levels of 5 steps with its 512 hidden channels, and with as many parameters.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import flowprior
from benchmarks.measure import alternate, medians, wall_clock
from flowprior.figures import image_grid, png_bytes
from flowprior.flows import Coupling1x1Flow, Flow, Glow

TEMPERATURES = (0.0, 0.5, 0.7, 0.8, 0.9, 1.0)
SHOWN = 8


def main() -> None:
    """Print a table for each batch size; draw samples of a trained flow if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", type=Path, help="draw its samples by temperature, ...")
    parser.add_argument("--figure", type=Path, default="temperatures.png", help="... into this")
    arguments = parser.parse_args()
    console, flows = Console(width=100), flows_by_name(arguments.device)
    console.print(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads"
    )
    for size in arguments.batch_sizes:
        console.print(compared(flows, size, arguments.repeats, arguments.device))
    if arguments.weights is not None:
        draw(flowprior.load(arguments.weights), arguments.figure)


def flows_by_name(device: str) -> dict[str, Flow]:
    """Frozen flows keep the inverses of their 1×1 convolutions, others compute them."""
    found: dict[str, Flow] = {"1x1-coupling flow": Coupling1x1Flow(3, 32)}
    for hidden in (512, 1320):
        for kept in (True, False):
            flow = Glow(3, 32, levels=3, steps=5, coupling="affine", hidden_channels=hidden)
            name = f"Glow, {hidden} channels, inverses {'kept' if kept else 'in every call'}"
            found[name] = flow.requires_grad_(not kept)
    found["1x1-coupling flow"].requires_grad_(False)
    return {name: flow.to(device).eval() for name, flow in found.items()}


@torch.no_grad()
def compared(flows: dict[str, Flow], size: int, repeats: int, device: str) -> Table:
    """Milliseconds per image of flows that take turns, and their sizes."""
    calls = {
        name: partial(flow.generate, torch.randn(size, *flow.latent.shape, device=device))
        for name, flow in flows.items()
    }
    seconds = alternate(calls, repeats, wall_clock(device))
    median = medians(seconds)
    table = Table("", "min ms/image", "median ms/image", "parameters (M)", title=f"batch {size}")
    for name, flow in flows.items():
        times = (1e3 * value / size for value in (min(seconds[name]), median[name]))
        parameters = sum(parameter.numel() for parameter in flow.parameters()) / 1e6
        table.add_row(name, *(f"{value:.3g}" for value in times), f"{parameters:.1f}")
    return table


def draw(flow: Flow, path: Path) -> None:
    """Samples: the same latents at every temperature, one in each row."""
    rows = [
        flow.to_unit_range(flow.sample(SHOWN, t, generator=torch.Generator().manual_seed(0)))
        for t in TEMPERATURES
    ]
    images = torch.stack(rows, 1).flatten(0, 1).clamp(0, 1).numpy()
    titles = [f"temperature {temperature:g}" for temperature in TEMPERATURES]
    figure = image_grid(images, len(titles), titles, value_range=(0, 1), label="value in [0, 1]")
    path.write_bytes(png_bytes(figure))


if __name__ == "__main__":
    main()
