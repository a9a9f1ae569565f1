"""Measurements and pictures of the guide on Gaussianization layers.

``python docs/gaussianization_study.py``
prints the guide's tables and writes its figures; in some 20 seconds on two CPU cores.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import skimage.data
import skimage.transform
import torch
from torch import Tensor

from flowprior.gaussianization import (
    Gaussianization,
    ica,
    lambert_w_gaussianize,
    standardize,
    whiten,
    yeo_johnson,
)
from flowprior.gaussianization.patches import from_patches, to_patches
from flowprior.metrics import largest_patch_correlation, typicality

DOCS = Path(__file__).parent
SETTINGS = {
    "8x8 ICA (`paper`)": (8, True),
    "8x8": (8, False),
    "4x4 ICA": (4, True),
    "4x4": (4, False),
}
CHAINS = {
    "8×8, ICA (`paper()`)": Gaussianization.paper(),
    "8×8": Gaussianization(rotation="none"),
    "8×8, 2 passes": Gaussianization(rotation="none", passes=2),
    "4×4, ICA": Gaussianization(patch_size=4),
    "4×4, ICA, 2 passes": Gaussianization(patch_size=4, passes=2),
    "4×4": Gaussianization(patch_size=4, rotation="none"),
    "4×4, 2 passes (`robust()`)": Gaussianization.robust(),
    "1-D layers alone": Gaussianization(whiten=False, rotation="none"),
}


def photograph(size: int = 128) -> Tensor:
    """A standardised photograph as a latent, (1, 3, size, size)."""
    picture = skimage.transform.resize(skimage.data.astronaut(), (size, size), anti_aliasing=True)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None]
    return (x - x.mean()) / x.std()


def noise(size: int = 128, seed: int = 0) -> Tensor:
    """A typical latent, (1, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, size, size, generator=generator, dtype=torch.float64)


def stages(v: Tensor, patch_size: int, rotate: bool) -> dict[str, Tensor]:
    """The latent after every layer."""
    patches = whiten(to_patches(v, patch_size))
    found = {"input": v, "whitening": from_patches(patches, v.shape, patch_size)}
    if rotate:
        found["ICA"] = from_patches(ica(patches), v.shape, patch_size)
    x = list(found.values())[-1].flatten(1)
    for name, layer in (("Yeo-Johnson", yeo_johnson), ("Lambert W", lambert_w_gaussianize)):
        x = layer(x)
        found[name] = x.view_as(v)
    found["standardised"] = standardize(x).view_as(v)
    return found


def row(*cells: object) -> None:
    """Print one row of a Markdown table."""
    texts = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
    print("|", " | ".join(texts), "|")


def table_of_ratios() -> tuple[list[float], dict[str, list[float]]]:
    """Kurtosis and energy spread of Gaussian noise after 8x8 layers, for N/D from 1.3 to 21."""
    ratios, curves = [], {"whitening": [], "ICA": []}
    row("latent", "N/D", "kurtosis: whitening", "ICA", "energy spread: whitening", "ICA")
    row(*["---"] * 6)
    for size in (128, 160, 192, 256, 384, 512):
        found = stages(noise(size), 8, rotate=True)
        ratios.append((size / 8) ** 2 / 192)
        measured = {name: typicality(found[name]) for name in curves}
        for name, curve in curves.items():
            curve.append(measured[name]["kurtosis"].item())
        spreads = [measured[name]["patch_energy_spread"].item() for name in curves]
        kurtoses = [curve[-1] for curve in curves.values()]
        row(f"3×{size}²", ratios[-1], *kurtoses, *spreads)
    return ratios, curves


def table_of_stages(name: str, v: Tensor) -> None:
    """Kurtosis, energy spread and largest correlation after every layer."""
    print(f"\n{name}\n")
    row("layers", "after", "kurtosis", "energy spread", "largest correlation (independent)")
    row(*["---"] * 5)
    for setting, (size, rotate) in SETTINGS.items():
        for stage, x in stages(v, size, rotate).items():
            correlation, independent = largest_patch_correlation(x)
            found = typicality(x)
            row(
                setting,
                stage,
                found["kurtosis"].item(),
                found["patch_energy_spread"].item(),
                f"{float(correlation):.2f} ({float(independent):.2f})",
            )


def table_of_chains() -> None:
    """How typical the result is, and how strongly curved the map, for whole chains."""
    print("\nWhole chains\n")
    row("", *["noise"] * 4, *["photograph"] * 2)
    row(*["---"] * 7)
    measures = ("cosine to input", "energy spread", "largest correlation", "curvature")
    row("layers", *measures, "energy spread", "largest correlation")
    for name, h in CHAINS.items():
        v, z = noise(), h(noise())
        cosine = torch.cosine_similarity(v.flatten(), z.flatten(), 0).item()
        curvature = taylor_errors(h, v, [1e-2])[0] * 1e4
        row(
            name,
            cosine,
            *_spread_and_correlation(z),
            curvature,
            *_spread_and_correlation(h(photograph())),
        )


def _spread_and_correlation(z: Tensor) -> tuple[float, float]:
    spread = typicality(z)["patch_energy_spread"].item()
    return spread, largest_patch_correlation(z)[0].item()


def picture_of_stages(path: Path) -> None:
    """The photograph as a latent after the layers, beside noise."""
    v = photograph()
    paper = stages(v, 8, True)
    shown = {
        "latent: a photograph": v,
        "whitening, 8×8": paper["whitening"],
        "ICA, 8×8": paper["ICA"],
        "paper()": paper["standardised"],
        "4×4, 1 pass": stages(v, 4, False)["standardised"],
        "robust()": Gaussianization.robust()(v),
        "N(0, I)": noise(),
    }
    figure, axes = plt.subplots(
        1, len(shown), figsize=(2.1 * len(shown), 2.4), layout="constrained"
    )
    for axis, (title, x) in zip(axes, shown.items(), strict=True):
        axis.imshow((x[0].permute(1, 2, 0) / 6 + 0.5).clamp(0, 1), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def picture_of_ratios(path: Path, ratios: list[float], curves: dict[str, list[float]]) -> None:
    """Kurtosis of Gaussian noise against N/D."""
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name, curve in curves.items():
        axis.plot(ratios, curve, "o-", label=f"after {name}")
    axis.axhline(3, color="0.5", linewidth=1, label="Gaussian")
    axis.set(xscale="log", yscale="log", xlabel="patches per dimension, N/D", ylabel="kurtosis")
    axis.set_xticks([1.5, 3, 6, 12, 24], ["1.5", "3", "6", "12", "24"])
    axis.set_yticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"])
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def taylor_errors(h: Gaussianization, v: Tensor, steps: list[float]) -> list[float]:
    """|f(v + εd) − f(v) − ε∇f·d| of f(v) = Σ h(v)³ + w·h(v), d of length 1 (paper, eq. 37)."""
    v = v.clone().requires_grad_()
    direction, weight = noise(v.shape[2], 1), noise(v.shape[2], 2)
    direction = direction / direction.norm()

    def value(x: Tensor) -> Tensor:
        z = h(x)
        return (z**3).sum() + (weight * z).sum()

    start = value(v)
    slope = (torch.autograd.grad(start, v)[0] * direction).sum()
    with torch.no_grad():
        start = start.detach()
        return [abs(value(v + e * direction) - start - e * slope).item() for e in steps]


def picture_of_taylor_test(path: Path) -> None:
    """The error of the first-order expansion at a heavy-tailed latent."""
    steps = [10 ** (-k / 2) for k in range(-2, 9)]
    v = noise() * torch.exp(0.05 * noise() ** 2)
    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name in ("paper", "robust"):
        errors = taylor_errors(getattr(Gaussianization, name)(), v, steps)
        axis.loglog(steps, errors, "o-", label=f"{name}()")
        print(name, [f"{high / low:.0f}" for high, low in zip(errors, errors[2:], strict=False)])
    axis.loglog(steps, [errors[4] * (e / steps[4]) ** 2 for e in steps], "--", color="0.5")
    axis.text(steps[5], errors[5] / 6, "second order", color="0.4")
    axis.set(xlabel="ε", ylabel="|f(v + εd) − f(v) − ε∇f·d|")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    picture_of_ratios(DOCS / "gaussianization_ratio.png", *table_of_ratios())
    table_of_stages("Gaussian noise, 3×128²", noise())
    table_of_stages("A photograph, 3×128²", photograph())
    table_of_chains()
    picture_of_stages(DOCS / "gaussianization_stages.png")
    picture_of_taylor_test(DOCS / "gaussianization_taylor.png")
