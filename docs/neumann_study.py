"""How far the likelihood estimate of TRUMPET's paper is off: docs/neumann_study.py [WEIGHTS ...].

    python docs/neumann_study.py runs/trumpet_demo/weights

Draws docs/neumann_bias.png: the error of the Neumann series for ½ log det JᵀJ over the condition
number of JᵀJ. Lines are the expected error for 64 eigenvalues that are spread evenly on a
logarithmic scale; points are samples of trained flows, with one random vector each. Prints means.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import flowprior
from flowprior.flows import Trumpet
from flowprior.flows.gram import (
    SAFETY,
    half_log_det_gram,
    jacobian_by_columns,
    neumann_half_log_det_gram,
)

DOCS = Path(__file__).parent
LATENTS, SAMPLES = 64, 32
TERMS = {5: ":", 10: "-", 20: "--", 40: "-."}
CONDITIONS = torch.logspace(0, 6, 61, dtype=torch.float64)


def expected_error(condition: Tensor, terms: int) -> Tensor:
    """Mean error in nats, (), of the series with α = 0.9/λ_max, over all random vectors."""
    eigenvalues = condition ** -torch.linspace(0, 1, LATENTS, dtype=torch.float64)
    rest = 1 - SAFETY * eigenvalues
    series = sum(rest**k / k for k in range(1, terms + 1))
    return 0.5 * (-series - torch.log(torch.tensor(SAFETY)) - eigenvalues.log()).sum()


@torch.no_grad()
def of_flow(flow: Trumpet) -> tuple[Tensor, Tensor]:
    """Condition numbers of JᵀJ and errors in nats, (SAMPLES,) each, at samples of a flow."""
    conditions, errors = [], []
    for number in range(SAMPLES):
        generator = torch.Generator().manual_seed(number)
        z = torch.randn(1, *flow.latent.shape, generator=generator).to(flow.like)
        singular = torch.linalg.svdvals(jacobian_by_columns(flow._generator, z)[0].double())
        exact = half_log_det_gram(flow._generator, z)
        estimate = neumann_half_log_det_gram(flow._generator, z, seed=number)
        conditions.append((singular[0] / singular[-1]) ** 2)
        errors.append((estimate - exact)[0])
    return torch.stack(conditions), torch.stack(errors)


def main(folders: list[str]) -> None:
    """Draw the lines, and the points of these weights."""
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for terms, style in TERMS.items():
        errors = torch.stack([expected_error(condition, terms) for condition in CONDITIONS])
        label = f"{terms} terms{' (the paper)' if terms == 10 else ''}"
        axis.plot(CONDITIONS, errors, style, label=label)
        at = {10.0: 10, 100.0: 20, 1e4: 40}
        print(label, {f"cond {c:g}": round(errors[row].item(), 2) for c, row in at.items()})
    for folder in folders:
        flow = flowprior.load(folder)
        conditions, errors = of_flow(flow)
        path = Path(folder).resolve()
        name = path.parent.name if path.name == "weights" else path.name
        axis.plot(conditions, errors, ".", label=f"samples of {name}, 10 terms")
        print(f"{name}: cond {conditions.median():.3g}, error {errors.mean():.1f} nats")
    axis.set_xscale("log")
    axis.set_xlabel("condition number of $J^T J$")
    axis.set_ylabel("estimate − ½ log det $J^T J$ (nats)")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "neumann_bias.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
