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
    """High-passed layer models of one split; see `Reflectivities`."""

    def __init__(self, models: LayerModelImages, smoothing: float) -> None:
        self.models, self.smoothing = models, smoothing

    def __len__(self) -> int:
        return len(self.models)

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        """(B, 1, size, size), float32."""
        return self.finer(indices, 1)

    def finer(self, indices: Sequence[int], factor: int) -> np.ndarray:
        """The same with N = factor (size - 1) + 1 points a side, (B, 1, N, N), float32."""
        model = self.models.finer(indices, factor)
        deviation = self.smoothing * self.models.size * factor
        smooth = gaussian_filter(model, (0, 0, deviation, deviation), mode="nearest")
        return 0.5 + 0.5 * (model - smooth)

    def digest(self) -> str:
        """The settings, as nothing else decides."""
        return f"reflectivities {self.smoothing} of {self.models.digest()}"


class Reflectivities(LayerModels):
    """Reflectivities of `LayerModels`: x = ½ + ½ (m − G m), where G is a Gaussian blur.

    So 2x − 1 = m − G m is what of a model m in [0, 1] its smooth background lacks. It is 0 inside
    of thick layers, where x is ½, changes its sign at each boundary, by the jump of m there, and
    |2x − 1| is below 0.95. Nothing else is scaled.

    Args:
        smoothing: standard deviation of G in image widths; beyond the border the model goes on as
            it is at the border.
        **options: of `LayerModels`.
    """

    def __init__(self, smoothing: float = 0.0625, **options: Any) -> None:
        check_types(Reflectivities.__init__, locals(), "data.")
        super().__init__(**options)
        require(0 < smoothing <= 1, "smoothing", smoothing, "above 0 and at most 1")
        self.smoothing = smoothing

    def images(self, split: str) -> ReflectivityImages:
        """Reflectivities of "train", "val" or "test", unquantised."""
        return ReflectivityImages(super().images(split), self.smoothing)
