"""Reflectivities of layered models: what seismic images show."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from datamodules.dequantize import ImageSource
from datamodules.errors import require
from datamodules.layer_models import LayerModelImages, LayerModels
from flowprior.argument_types import check_types


class ReflectivityImages(ImageSource):
    """Band-passed layer models of one split; see `Reflectivities`."""

    def __init__(self, models: LayerModelImages, scales: tuple[float, float]) -> None:
        self.models, self.scales = models, scales

    def __len__(self) -> int:
        return len(self.models)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, 1, size, size), float32."""
        return self.finer(indices, 1)

    def finer(self, indices: Sequence[int], factor: int) -> np.ndarray:
        """The same with N = factor (size - 1) + 1 points a side, (B, 1, N, N), float32."""
        model = self.models.finer(indices, factor)
        fine, coarse = (scale * self.models.size * factor for scale in self.scales)
        return 0.5 + 0.5 * (_blurred(model, fine) - _blurred(model, coarse))

    def digest(self) -> str:
        """The settings, as nothing else decides."""
        return f"reflectivities {self.scales} of {self.models.digest()}"


def _blurred(model: np.ndarray, deviation: float) -> np.ndarray:
    return gaussian_filter(model, (0, 0, deviation, deviation), mode="nearest")


class Reflectivities(LayerModels):
    """Reflectivities of `LayerModels`: x = ½ + ½ (F − G) m, with Gaussian blurs F and G.

    So 2x − 1 = (F − G) m is what of a model m in [0, 1] its smooth background G m lacks, as sharp
    as waves can show it. It is 0 inside of thick layers, where x is ½, and has both signs along a
    boundary, in proportion to the jump of m there; |2x − 1| is below 0.9. Nothing else is scaled.

    Args:
        scales: standard deviations of F and G in image widths, F's may be 0; beyond the border a
            model goes on as it is at the border.
        **options: of `LayerModels`.
    """

    def __init__(self, scales: tuple[float, float] = (1 / 64, 1 / 16), **options: Any) -> None:
        check_types(Reflectivities.__init__, locals(), "data.")
        super().__init__(**options)
        ordered = len(scales) == 2 and 0 <= scales[0] < scales[1] <= 1
        require(ordered, "scales", scales, "(fine, coarse), 0 <= fine < coarse <= 1")
        self.scales = tuple(scales)

    def images(self, split: str) -> ReflectivityImages:
        """Reflectivities of "train", "val" or "test", unquantised."""
        return ReflectivityImages(super().images(split), self.scales)
