"""What makes flows explode off their data, and what helps: docs/round_trip_study.py OUT ROOT.

Trains the same Glow on MNIST's digits with each remedy, for equal steps, and writes a line of
bits per dimension and worst round trips to OUT for each. ROOT holds `MNIST/raw`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from skimage import data as photographs
from torch import Tensor

from datamodules import MNIST
from flowprior.flows import Glow
from flowprior.flows.coupling import Coupling
from flowprior.losses import MaximumLikelihood
from flowprior.metrics.round_trip import unusual_images, worst_round_trip
from flowprior.schedules import WarmupCosine

STEPS, BATCH, SHIFT_LIMIT = 1500, 64, 4.0
REMEDIES = {
    "limit 2": {"log_scale_limit": 2.0},
    "limit 0.5": {"log_scale_limit": 0.5},
    "sigmoid(s + 2)": {"log_scale_limit": None},
    "additive": {"coupling": "additive"},
    "limit 2, bounded shifts": {"log_scale_limit": 2.0},
    "limit 0.5, bounded shifts": {"log_scale_limit": 0.5},
}


class BoundedShifts(Coupling):
    """Shifts t of at most `SHIFT_LIMIT`, by a tanh."""

    def _split(self, out: Tensor) -> tuple[Tensor | None, Tensor]:
        log_scale, shift = super()._split(out)
        return log_scale, SHIFT_LIMIT * torch.tanh(shift / SHIFT_LIMIT)


def images(digits: Tensor) -> dict[str, Tensor]:
    """Images (B, 1, 28, 28) in [0, 1] by kind."""
    camera = torch.from_numpy(photographs.camera()).float()[None, None] / 255
    cuts = camera.unfold(2, 28, 28).unfold(3, 28, 28).reshape(-1, 1, 28, 28)
    unusual = unusual_images((1, 28, 28), 64)
    return {"digits": digits, "inverted digits": 1 - digits, "photographs": cuts, **unusual}


def trained(name: str, data: MNIST) -> tuple[Glow, float]:
    """A flow after `STEPS` steps, and the seconds they took."""
    torch.manual_seed(0)
    options = {"coupling": "affine", **REMEDIES[name]}
    flow = Glow(1, 28, levels=2, steps=10, hidden_channels=128, memory_efficient=False, **options)
    if "bounded shifts" in name:
        for level in flow.levels:
            level._coupling = lambda step, level=level: BoundedShifts(
                level.nets[step], level.coupling, level.log_scale_limit
            )
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3, betas=(0.9, 0.99), fused=True)
    schedule = WarmupCosine(optimizer, 200, STEPS)
    loss, dataset = _loss(), data.dataset("train")
    order = np.random.default_rng(0).integers(0, len(dataset), (STEPS, BATCH))
    start = time.perf_counter()
    for indices in order:
        x = dataset.__getitems__([(0, int(index)) for index in indices])
        optimizer.zero_grad()
        loss(flow, x)["bits_per_dim"].mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
        optimizer.step()
        schedule.step()
    return flow.eval().requires_grad_(False), time.perf_counter() - start


def _loss() -> MaximumLikelihood:
    loss = MaximumLikelihood()
    loss.n_bits, loss.flat_noise = 8, True
    return loss


def main(out: Path, root: str) -> None:
    """Train with each remedy that OUT has no line of."""
    data = MNIST(root, flat_noise=True)
    done = (
        {json.loads(line)["remedy"] for line in out.read_text().splitlines()}
        if out.exists()
        else ()
    )
    test = next(data.batches("test", 2000))[1]
    kinds = images(test + 0.5)
    for name in REMEDIES:
        if name in done:
            continue
        flow, seconds = trained(name, data)
        bits = _loss()(flow, test)["bits_per_dim"]
        line = {
            "remedy": name,
            "bits": bits.mean().item(),
            "worst bits": bits.max().item(),
            "seconds": seconds,
            **{kind: worst_round_trip(flow, values) for kind, values in kinds.items()},
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
