"""Trains the denoisers in weights, for `flowprior.inversion.PlugAndPlay`.

    python docs/train_denoiser.py mnist --root data
    python docs/train_denoiser.py layers_32

The network is deepinv's DRUNet, small, which sees the noise level as a second channel. Noise has
standard deviations drawn from U(0, 0.5) on images in [0, 1]. The run resumes where it was stopped,
with the same result: the images and the noise of a step depend on its number alone.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from deepinv.models import DRUNet
from safetensors.torch import save_file
from torch import Tensor

from datamodules import MNIST, ImageDataModule, LayerModels
from flowprior.io import atomic_path
from flowprior.metrics import psnr

OPTIONS = {"in_channels": 1, "out_channels": 1, "nc": [16, 32, 64, 64], "nb": 1, "pretrained": None}
RATE, BATCH, SAVE_EVERY = 2e-3, 32, 60.0
LEVELS = (0.1, 0.2, 0.4)


def data_set(name: str, root: str) -> ImageDataModule:
    """The images of a denoiser."""
    if name == "mnist":
        return MNIST(root, data_range=(0.0, 1.0))
    return LayerModels(image_size=32, data_range=(0.0, 1.0))


def images_of(data: ImageDataModule, split: str) -> Tensor:
    """All images (N, C, H, W) of a split, in [0, 1]."""
    images = data.dataset(split, dequantized=False)
    return images.__getitems__([(0, index) for index in range(len(images))])


def noisy(step: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images (B, C, H, W) of a step, their noisy versions, and the noise levels (B,)."""
    generator = torch.Generator().manual_seed(step)
    clean = images[torch.randint(len(images), (BATCH,), generator=generator)]
    sigma = 0.5 * torch.rand(BATCH, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    return clean, clean + sigma.view(-1, 1, 1, 1) * noise, sigma


@torch.no_grad()
def scores(model: torch.nn.Module, images: Tensor) -> dict[str, list[float]]:
    """By noise level: mean PSNR of the noisy images and of the denoised ones, in decibels."""
    found = {}
    for level in LEVELS:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        y = images + level * noise
        x = model(y, torch.full((len(y),), level))
        found[str(level)] = [psnr(z.clamp(0, 1), images).mean().item() for z in (y, x)]
    return found


def train(data: ImageDataModule, out: Path, steps: int) -> None:
    """Minimise the root mean square error of each image, by Adam with a cosine schedule."""
    torch.manual_seed(0)
    model = DRUNet(**OPTIONS)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    state, first = out / "state.pt", 0
    if state.is_file():
        first, whole, weights, moments = torch.load(state, weights_only=True)
        if whole != steps:
            raise SystemExit(f"--steps={steps}: {out} was begun with {whole}; give another --out")
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    images, saved = images_of(data, "train"), time.monotonic()
    for step in range(first, steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        clean, y, sigma = noisy(step, images)
        loss = (model(y, sigma) - clean).square().flatten(1).mean(1).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if time.monotonic() - saved > SAVE_EVERY:
            with atomic_path(state) as temporary:
                torch.save((step + 1, steps, model.state_dict(), optimizer.state_dict()), temporary)
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", flush=True)
            saved = time.monotonic()
    export(model.eval(), out, {"steps": steps, "batch": BATCH, "learning_rate": RATE}, data)


def export(
    model: torch.nn.Module, out: Path, training: dict[str, float], data: ImageDataModule
) -> None:
    """Write the weights and their card."""
    save_file(model.state_dict(), out / "model.safetensors")
    card = {
        "class_path": "deepinv.models.DRUNet",
        "init_args": OPTIONS,
        "training": {"data": describe(data), "sigma": [0, 0.5], **training},
        "psnr_of_noisy_and_denoised_by_sigma": scores(model, images_of(data, "val")[:1000]),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card["psnr_of_noisy_and_denoised_by_sigma"]))


def describe(data: ImageDataModule) -> str:
    """What the denoiser has seen."""
    return f"{type(data).__name__}, {len(data.dataset('train'))} training images, [0, 1]"


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["mnist", "layers_32"], help="of the data set")
    parser.add_argument("--root", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--out", type=Path, help="default: runs/denoiser_<name>")
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args()
    out = options.out or Path("runs", f"denoiser_{options.name}")
    out.mkdir(parents=True, exist_ok=True)
    train(data_set(options.name, options.root), out, options.steps)


if __name__ == "__main__":
    main()
