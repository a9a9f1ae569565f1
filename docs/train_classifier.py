"""Trains the classifier in weights, by whose features `evaluate.py` compares sets of digits.

    python docs/train_classifier.py --root data

`flowprior.metrics.DigitClassifier`, by Adam with a cosine schedule on MNIST's 55 000 training
digits, each moved by up to two pixels. The digits and the moves of a step depend on its number
alone.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from datamodules import MNIST
from flowprior.metrics import DigitClassifier

RATE, BATCH, STEPS, MOVE = 2e-3, 128, 4000, 2


def digits(root: str, split: str) -> tuple[Tensor, Tensor]:
    """All digits (N, 1, 28, 28) in [0, 1] of a split, and their classes (N,)."""
    data = MNIST(root, n_bits=None, data_range=(0.0, 1.0))
    count = len(data.images(split))
    images = next(data.batches(split, count))[1]
    name = "t10k" if split == "test" else "train"
    path = Path(root) / "MNIST" / "raw" / f"{name}-labels-idx1-ubyte"
    labels = torch.from_numpy(np.fromfile(path, np.uint8, offset=8)).long()
    return images, labels[-count:] if split == "val" else labels[:count]


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 1, 28, 28), each moved by up to `MOVE` pixels."""
    wide = F.pad(images, [MOVE] * 4)
    shifts = torch.randint(2 * MOVE + 1, (len(images), 2), generator=generator).tolist()
    side = images.shape[-1]
    pairs = zip(wide, shifts, strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in pairs])


def train(root: str, steps: int) -> DigitClassifier:
    """Minimise the cross-entropy of the classes."""
    torch.manual_seed(0)
    model = DigitClassifier()
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    images, classes = digits(root, "train")
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(moved(images[rows], generator)), classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: DigitClassifier, root: str, split: str) -> float:
    """Share of the digits of a split that are recognised."""
    images, classes = digits(root, split)
    return (model(images).argmax(1) == classes).double().mean().item()


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs", "classifier_mnist"))
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    model = train(options.root, options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), options.out / "model.safetensors")
    card = {
        "class_path": "flowprior.metrics.DigitClassifier",
        "training": {
            "data": f"MNIST, 55000 training digits, [0, 1], moved by up to {MOVE} pixels",
            "steps": options.steps,
            "batch": BATCH,
            "learning_rate": RATE,
        },
        "accuracy": {split: accuracy(model, options.root, split) for split in ("val", "test")},
    }
    (options.out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card["accuracy"]))


if __name__ == "__main__":
    main()
