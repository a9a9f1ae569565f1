"""Trains the denoisers in weights, for `PlugAndPlay` and `DPS` of `flowprior.inversion`.

    python docs/train_denoiser.py mnist --root data
    python docs/train_denoiser.py layers_32
    python docs/train_denoiser.py mnist diffusion --root data

The network is a small one of deepinv's, on images in [0, 1], and is told the noise level: DRUNet
with standard deviations from U(0, 0.5) for plug-and-play, NCSN++ with log-normal ones, weighted
as by Karras et al. (Elucidating the design space of diffusion-based generative models, 2022), for
diffusion. The run resumes where it was stopped, with the same result: the images and the noise of
a step depend on its number alone.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.models import DRUNet, NCSNpp
from safetensors.torch import save_file
from torch import Generator, Tensor

from datamodules import MNIST, ImageDataModule, LayerModels
from flowprior.io import atomic_path
from flowprior.metrics import psnr

RATE, BATCH, SAVE_EVERY = 2e-3, 32, 60.0
LEVELS = (0.1, 0.2, 0.4)
DEVIATION = 0.35
"""Root mean square of a digit's pixels."""


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained.

    `levels` draws noise levels (B,), `loss` weighs the mean square error (B,) of images with them.
    """

    network: type[torch.nn.Module]
    options: dict[str, Any]
    steps: int
    sigma: str
    levels: Callable[[Generator], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


RECIPES = {
    "denoiser": Recipe(
        DRUNet,
        {"in_channels": 1, "out_channels": 1, "nc": [16, 32, 64, 64], "nb": 1, "pretrained": None},
        steps=4000,
        sigma="U(0, 0.5)",
        levels=lambda generator: 0.5 * torch.rand(BATCH, generator=generator),
        loss=lambda error, sigma: error.sqrt(),
    ),
    "diffusion": Recipe(
        NCSNpp,
        {
            "model_type": "ddpm",
            "img_resolution": 28,
            "in_channels": 1,
            "out_channels": 1,
            "augment_dim": 0,
            "model_channels": 32,
            "channel_mult": [1, 2, 2],
            "num_blocks": 1,
            "attn_resolutions": [7],
            "dropout": 0.0,
            "pixel_std": DEVIATION,
            "pretrained": None,
        },
        steps=12000,
        sigma="exp(N(-1.6, 1.4²))",
        levels=lambda generator: (1.4 * torch.randn(BATCH, generator=generator) - 1.6).exp(),
        loss=lambda error, sigma: error * (sigma**-2 + DEVIATION**-2),
    ),
}


def data_set(name: str, root: str) -> ImageDataModule:
    """The images of a denoiser."""
    if name == "mnist":
        return MNIST(root, data_range=(0.0, 1.0))
    return LayerModels(image_size=32, data_range=(0.0, 1.0))


def images_of(data: ImageDataModule, split: str) -> Tensor:
    """All images (N, C, H, W) of a split, in [0, 1]."""
    images = data.dataset(split, dequantized=False)
    return images.__getitems__([(0, index) for index in range(len(images))])


def noisy(recipe: Recipe, step: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images (B, C, H, W) of a step, their noisy versions, and the noise levels (B,)."""
    generator = torch.Generator().manual_seed(step)
    clean = images[torch.randint(len(images), (BATCH,), generator=generator)]
    sigma = recipe.levels(generator)
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


def train(recipe: Recipe, data: ImageDataModule, out: Path, steps: int) -> None:
    """Minimise the weighted error of denoised images, by Adam with a cosine schedule."""
    torch.manual_seed(0)
    model = recipe.network(**recipe.options)
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
        clean, y, sigma = noisy(recipe, step, images)
        error = (model(y, sigma) - clean).square().flatten(1).mean(1)
        loss = recipe.loss(error, sigma).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if time.monotonic() - saved > SAVE_EVERY:
            with atomic_path(state) as temporary:
                torch.save((step + 1, steps, model.state_dict(), optimizer.state_dict()), temporary)
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", flush=True)
            saved = time.monotonic()
    export(recipe, model.eval(), out, steps, data)


def export(
    recipe: Recipe, model: torch.nn.Module, out: Path, steps: int, data: ImageDataModule
) -> None:
    """Write the weights and their card."""
    save_file(model.state_dict(), out / "model.safetensors")
    training = {"steps": steps, "batch": BATCH, "learning_rate": RATE}
    card = {
        "class_path": f"deepinv.models.{recipe.network.__name__}",
        "init_args": recipe.options,
        "training": {"data": describe(data), "sigma": recipe.sigma, **training},
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
    parser.add_argument("data", choices=["mnist", "layers_32"])
    parser.add_argument("kind", nargs="?", choices=list(RECIPES), default="denoiser")
    parser.add_argument("--root", default="data", help="folder that holds MNIST/raw")
    parser.add_argument("--out", type=Path, help="default: runs/<kind>_<data>")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    recipe = RECIPES[options.kind]
    out = options.out or Path("runs", f"{options.kind}_{options.data}")
    out.mkdir(parents=True, exist_ok=True)
    data = data_set(options.data, options.root)
    train(recipe, data, out, recipe.steps if options.steps is None else options.steps)


if __name__ == "__main__":
    main()
