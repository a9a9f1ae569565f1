"""What makes flows explode off their data, and what helps: docs/round_trip_study.py OUT ROOT.

Trains the same Glow on MNIST's digits with each remedy, for `SECONDS` of processor time each, and
writes a line of bits per dimension and worst round trips to OUT for each. ROOT holds `MNIST/raw`.
Resumes where it was stopped; other programs may run meanwhile.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from skimage import data as photographs
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from datamodules import MNIST
from flowprior.flows import Glow
from flowprior.losses import MaximumLikelihood
from flowprior.metrics.round_trip import unusual_images, worst_round_trip

SECONDS, BATCH = 300, 64
WARMUP, FINAL = 0.1, 0.01
REMEDIES = {
    f"{scales}, shifts {shifts}": {**options, "shift_limit": limit}
    for shifts, limit in (("free", None), ("within 8", 8.0))
    for scales, options in (
        ("log-scales within 2", {"coupling": "affine", "log_scale_limit": 2.0}),
        ("log-scales within 0.5", {"coupling": "affine", "log_scale_limit": 0.5}),
        ("scales sigmoid(s + 2)", {"coupling": "affine", "log_scale_limit": None}),
        ("no scales (additive)", {"coupling": "additive"}),
    )
}


def images(digits: Tensor) -> dict[str, Tensor]:
    """Images (B, 1, 28, 28) in [0, 1] by kind."""
    camera = torch.from_numpy(photographs.camera()).float()[None, None] / 255
    cuts = camera.unfold(2, 28, 28).unfold(3, 28, 28).reshape(-1, 1, 28, 28)
    unusual = unusual_images((1, 28, 28), 64)
    return {"digits": digits, "inverted digits": 1 - digits, "photographs": cuts, **unusual}


def trained(name: str, data: MNIST) -> tuple[Glow, int]:
    """A flow after `SECONDS`, and the number of its steps."""
    torch.manual_seed(0)
    flow = Glow(
        1, 28, levels=2, steps=10, hidden_channels=128, memory_efficient=False, **REMEDIES[name]
    )
    optimizer = torch.optim.Adam(flow.parameters(), 2e-3, betas=(0.9, 0.99), fused=True)
    start = time.process_time()
    schedule = LambdaLR(optimizer, lambda _: _rate((time.process_time() - start) / SECONDS))
    loss, dataset = _loss(), data.dataset("train")
    generator = np.random.default_rng(0)
    steps = 0
    while time.process_time() - start < SECONDS:
        indices = generator.integers(0, len(dataset), BATCH)
        x = dataset.__getitems__([(0, int(index)) for index in indices])
        optimizer.zero_grad()
        loss(flow, x)["bits_per_dim"].mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
        optimizer.step()
        schedule.step()
        steps += 1
    return flow.eval().requires_grad_(False), steps


def _rate(done: float) -> float:
    """Share of the learning rate when `done` of the time is over: warm-up, then a cosine."""
    if done < WARMUP:
        return done / WARMUP
    falling = (min(done, 1) - WARMUP) / (1 - WARMUP)
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * falling)) / 2


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
        flow, steps = trained(name, data)
        bits = _loss()(flow, test)["bits_per_dim"]
        line = {
            "remedy": name,
            "bits": bits.mean().item(),
            "worst bits": bits.max().item(),
            "steps": steps,
            **{kind: worst_round_trip(flow, values) for kind, values in kinds.items()},
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
