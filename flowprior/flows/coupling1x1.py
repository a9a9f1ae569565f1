"""The 1×1-coupling flow (Chavez, 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.flows.act_norm import ActNorm
from flowprior.flows.coupling import Coupling
from flowprior.flows.frozen import FrozenCache, are_frozen
from flowprior.flows.memory_flat import ChainLayer
from flowprior.flows.multi_scale import (
    MultiScaleFlow,
    Runner,
    check_counts,
    check_limits,
    image_size_of,
)
from flowprior.flows.split_gaussian import StandardGaussian

UNPADDED = {1: 1, 2: 2, 4: 3}
"""Size of the kernels on maps of 1×1, 2×2 and 4×4."""
LARGEST_EARLY_MAP = 4
"""Half of the channels leave after every scale with maps of this side or smaller."""


class Coupling1x1Flow(MultiScaleFlow):
    """Multi-scale flow whose couplings reach down to 1×1 maps, without invertible convolutions.

    Each scale squeezes 2×2 pixels into channels and runs steps of ActNorm → affine coupling, where
    the halves of the channels take turns. Couplings on 1×1 maps mix all channels, as a permutation
    would, and need no matrix inverse to generate. Half of the channels leave after every scale with
    maps of 4×4 or smaller. z ~ N(0, I) directly; the latents of all scales are arranged as one
    canvas of the image's shape, as in `Glow`.

    The defaults with 3 channels of 32×32 are the published architecture except for the bounds:
    32.7 million parameters.

    Args:
        in_channels: channels C of the images.
        image_size: height and width, one number or (H, W), each divisible by 2**len(steps).
        steps: flow steps of each scale, from the finest.
        hidden_channels: width of the coupling networks.
        log_scale_limit: largest |log scale| of a coupling; None for the published sigmoid(s + 2).
        shift_limit: largest |shift| of a coupling; None for the published shift without bound.
        memory_efficient: rebuild activations by inversion in the backward pass where they would
            take more than `kept_bytes`.
        data_range: (low, high) of the images.

    Raises:
        ValueError: if an argument is out of range, naming it.

    Reference: Chavez, "Generative flows as a general purpose solution for inverse problems" (2022),
    section 3.2.

    >>> flow = Coupling1x1Flow(1, 16, steps=[1, 1, 1, 2], hidden_channels=8).eval()
    >>> x = 2 * torch.rand(3, 1, 16, 16) - 1
    >>> z, log_det = flow.encode(x)
    >>> z.shape, log_det.shape
    (torch.Size([3, 1, 16, 16]), torch.Size([3]))
    >>> torch.allclose(flow.decode(z)[0], x, atol=1e-4)
    True
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int | tuple[int, int],
        steps: list[int] | tuple[int, ...] = (2, 2, 2, 4, 4),
        hidden_channels: int = 512,
        log_scale_limit: float | None = 0.5,
        shift_limit: float | None = 8.0,
        memory_efficient: bool = True,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        check_types(Coupling1x1Flow.__init__, locals())
        check_counts(in_channels=in_channels, hidden_channels=hidden_channels, steps=len(steps))
        check_counts(**{f"steps[{scale}]": count for scale, count in enumerate(steps)})
        check_limits(log_scale_limit, shift_limit)
        height, width = image_size_of(image_size, len(steps))
        levels: list[CouplingLevel] = []
        leave: list[bool] = []
        channels = in_channels
        for count in steps:
            channels, height, width = 4 * channels, height // 2, width // 2
            side = height if height == width in UNPADDED else None
            levels.append(
                CouplingLevel(channels, side, count, hidden_channels, log_scale_limit, shift_limit)
            )
            leave.append(max(height, width) <= LARGEST_EARLY_MAP)
            channels = channels // 2 if leave[-1] else channels
        leave[-1] = True
        image_size = (2 ** len(steps) * height, 2 ** len(steps) * width)
        super().__init__(
            (in_channels, *image_size),
            data_range,
            {
                "in_channels": in_channels,
                "image_size": list(image_size),
                "steps": list(steps),
                "hidden_channels": hidden_channels,
                "log_scale_limit": log_scale_limit,
                "shift_limit": shift_limit,
                "memory_efficient": memory_efficient,
                "data_range": list(data_range),
            },
            levels,
            [StandardGaussian() if some else None for some in leave],
            memory_efficient,
        )


class CouplingLevel(nn.Module):
    """Flow steps on (B, channels, H, W): ActNorm → affine coupling, the halves taking turns."""

    def __init__(
        self,
        channels: int,
        side: int | None,
        steps: int,
        hidden_channels: int,
        log_scale_limit: float | None,
        shift_limit: float | None,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ActNorm(channels) for _ in range(steps))
        self.nets = nn.ModuleList(
            NormalizedNet(channels // 2, channels, hidden_channels, side) for _ in range(steps)
        )
        self.limits = log_scale_limit, shift_limit

    def encode(self, x: Tensor, run: Runner) -> tuple[Tensor, Tensor]:
        """Return (y, log_det) with the layers applied by `run`."""
        return run(self._layers(), x)

    def decode(self, y: Tensor, run: Runner) -> tuple[Tensor, Tensor]:
        """Inverse of `encode`, with the log-determinant of the inverse."""
        return run([layer.flipped() for layer in reversed(self._layers())], y)

    def initialize(self, x: Tensor) -> Tensor:
        """Initialise the ActNorms one after another on x; returns the level's output."""
        for step, (norm, net) in enumerate(zip(self.norms, self.nets, strict=True)):
            norm.initialize(x)
            x = norm(x)
            coupling = self._coupling(step)
            net.initialize(coupling.halves(x)[0])
            x, _ = coupling.forward(x)
        return x

    def _layers(self) -> list[ChainLayer]:
        layers: list[ChainLayer] = []
        for step, norm in enumerate(self.norms):
            layers += [norm.layer(), self._coupling(step)]
        return layers

    def _coupling(self, step: int) -> Coupling:
        swapped = step % 2 == 0  # the published coupling moves the first half by the second
        return Coupling(self.nets[step], "affine", *self.limits, swapped)


class NormalizedNet(nn.Module):
    """conv → ActNorm → ReLU → conv with zero initial weights.

    The kernels are 3×3 and padded, except for square maps of side 1, 2 and 4. There they are not
    padded: on 4×4 and 2×2 maps they leave half the side and four times the channels, which are
    un-squeezed again. The output is multiplied by exp(3g), g learned for each channel, as in Glow.

    Maps (B, in_channels, H, W) to (B, out_channels, H, W); `side` is that of maps in `UNPADDED`,
    None for all others.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int, side: int | None
    ) -> None:
        super().__init__()
        self.unsqueezes = side in (2, 4)
        kernel = UNPADDED.get(side, 3)
        padding = 1 if side is None else 0
        hidden, out = (
            (4 if self.unsqueezes else 1) * count for count in (hidden_channels, out_channels)
        )
        self.conv1 = nn.Conv2d(in_channels, hidden, kernel, padding=padding, bias=False)
        self.norm = ActNorm(hidden)
        self.conv2 = nn.Conv2d(hidden_channels, out, kernel, padding=padding)
        self.log_gain = nn.Parameter(torch.zeros(out, 1, 1))
        nn.init.normal_(self.conv1.weight, std=0.05)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)
        self._cache = FrozenCache[tuple[Tensor, Tensor, Tensor, Tensor]]()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net to x (B, in_channels, H, W)."""
        weight1, bias1, weight2, bias2 = (
            self._cache.get(self.parameters(), self._fold)
            if are_frozen(self.parameters())
            else self._fold()
        )
        h = F.relu(F.conv2d(x, weight1, bias1, padding=self.conv1.padding), inplace=True)
        h = F.conv2d(self._unsqueezed(h), weight2, bias2, padding=self.conv2.padding)
        return self._unsqueezed(h)

    def initialize(self, x: Tensor) -> None:
        """Set the ActNorm from x (B, in_channels, H, W)."""
        self.norm.initialize(self.conv1(x))

    def _fold(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases of both convolutions with the scales and offsets of channels in them.

        Weights are smaller than the maps.
        """
        scale = self.norm.layer().log_scale.exp()
        gain = torch.exp(3 * self.log_gain.flatten())
        return (
            scale[:, None, None, None] * self.conv1.weight,
            scale * self.norm.bias,
            gain[:, None, None, None] * self.conv2.weight,
            gain * self.conv2.bias,
        )

    def _unsqueezed(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2) if self.unsqueezes else x
