"""An inverse problem as a config describes it, and the data it gives."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from evaluation.cells import Label
from evaluation.methods import Method
from flowprior.physics import gaussian_noise, make_operator, noise_for_snr, relative_noise

Noise = Literal["gaussian", "gaussian_255", "relative", "snr"]


@dataclass
class Experiment:
    """An operator, its noise, and the methods that are to undo both.

    Args:
        labels: of its rows in the table.
        operator: a name of `flowprior.physics.make_operator`.
        methods: what is compared.
        options: of the operator.
        assumed: options that the methods believe in, where they are wrong about some.
        noise: "gaussian" of standard deviation `sigma` on the data; "gaussian_255", the same on
            8-bit pixels; "relative", data × (1 + N(0, sigma²)); "snr", `sigma` is a
            signal-to-noise ratio in dB on the observed entries.
        sigma: see `noise`.
    """

    labels: dict[str, Label]
    operator: str
    methods: list[Method]
    options: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)
    noise: Noise = "gaussian"
    sigma: float = 0.0

    def physics(self, image_shape: tuple[int, int, int], assumed: bool = False) -> Any:
        """The true operator, or the one that the methods assume."""
        options = {**self.options, **self.assumed} if assumed else self.options
        return make_operator(self.operator, image_shape, **options)

    def noisy(self, clean: Tensor, physics: Any, seed: int, indices: list[int]) -> Tensor:
        """Data with the noise of these images."""
        if self.noise == "snr":
            mask = getattr(physics, "mask", None)
            return noise_for_snr(clean, self.sigma, seed=seed, indices=indices, observed=mask)
        if self.noise == "relative":
            return relative_noise(clean, self.sigma, seed=seed, indices=indices)
        scale = "255" if self.noise == "gaussian_255" else "data"
        return gaussian_noise(clean, self.sigma, seed=seed, indices=indices, scale=scale)

    def settings(self) -> dict[str, Any]:
        """All that decides its data, JSON-like."""
        names = ("operator", "options", "assumed", "noise", "sigma")
        return {name: getattr(self, name) for name in names}


@dataclass
class Published:
    """Numbers of a paper for the rows that have these labels.

    Args:
        labels: of the row, all or some of them.
        metrics: value by name of a metric.
    """

    labels: dict[str, Label]
    metrics: dict[str, float]

    def matches(self, labels: dict[str, Label]) -> bool:
        """Whether it is about the row with these labels."""
        return self.labels.items() <= dict(labels).items()
