"""Multi-scale Glow (Kingma & Dhariwal, 2018)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.flows.conditional import at_levels, check_condition_shape, condition_channels
from flowprior.flows.coupling import Coupling, CouplingKind
from flowprior.flows.coupling_net import CouplingNet
from flowprior.flows.invertible_convolution import InvertibleConvolutions
from flowprior.flows.memory_flat import ChainLayer, run_chain
from flowprior.flows.multi_scale import (
    MultiScaleFlow,
    Runner,
    check_counts,
    check_limits,
    image_size_of,
)
from flowprior.flows.split_gaussian import ChannelPrior, ConditionalPrior


class Glow(MultiScaleFlow):
    """Multi-scale Glow with a standardised, image-shaped latent.

    Each of `levels` levels squeezes 2×2 pixels into channels and runs `steps` steps of ActNorm →
    invertible 1×1 convolution → coupling; half of the channels leave after each level but the last.
    The half that leaves is standardised by a learned Gaussian given the half that stays, so that
    the public latent is N(0, I), arranged as one canvas of the image's shape (`MultiScaleFlow`).

    Args:
        in_channels: channels C of the images.
        image_size: height and width, one number or (H, W), each divisible by 2**levels.
        levels: number of scales.
        steps: flow steps per level.
        hidden_channels: width of the coupling networks.
        coupling: "additive" (as the G-layers paper) or "affine".
        log_scale_limit: largest |log scale| of an affine coupling, in [0.001, 10]. Each coupling
            can stretch by its exponential: at 2, a trained flow may answer an image that is unlike
            its training images with values that single precision cannot carry back. None for the
            published scale sigmoid(s + 2), which stretches without bound in decoding.
        shift_limit: largest |shift| of a coupling, in [0.1, 1000]; None for the published shift,
            which grows with the state and the next shift with it, so that images far from the
            training images come back wrong.
        memory_efficient: rebuild activations by inversion in the backward pass where those of a
            level would take more than `kept_bytes`: memory flat in depth for about a
            third more time. Under autocast the exact flow state is kept every
            `anchor_layers` layers, because networks in bfloat16 are not rebuilt exactly.
        data_range: (low, high) of the images.
        condition_shape: makes a conditional flow of images given data y, of this shape: (K, H, W)
            with the sides of the images, or (K,). Every coupling network sees y, which should have
            entries of about 1, beside its own input. None for no condition.

    Raises:
        ValueError: if an argument is out of range, naming it.

    Reference: Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1×1 Convolutions" (2018);
    the latent canvas and split priors follow Li & Denli, Gaussianization layers.

    >>> import torch
    >>> flow = Glow(1, 16, levels=2, steps=2, hidden_channels=8).eval()
    >>> x = torch.rand(3, 1, 16, 16) - 0.5
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
        levels: int = 4,
        steps: int = 32,
        hidden_channels: int = 512,
        coupling: CouplingKind = "additive",
        log_scale_limit: float | None = 0.5,
        shift_limit: float | None = 8.0,
        memory_efficient: bool = True,
        data_range: tuple[float, float] = (-0.5, 0.5),
        condition_shape: tuple[int, ...] | None = None,
    ) -> None:
        check_types(Glow.__init__, locals())
        check_counts(
            in_channels=in_channels, levels=levels, steps=steps, hidden_channels=hidden_channels
        )
        check_limits(log_scale_limit, shift_limit)
        if coupling not in ("additive", "affine"):
            raise ValueError(f'coupling must be "additive" or "affine", got {coupling!r}')
        height, width = image_size_of(image_size, levels)
        if condition_shape is not None:
            condition_shape = check_condition_shape(condition_shape, (height, width))
        channels = [4 * in_channels * 2**level for level in range(levels)]
        super().__init__(
            (in_channels, height, width),
            data_range,
            {
                "in_channels": in_channels,
                "image_size": [height, width],
                "levels": levels,
                "steps": steps,
                "hidden_channels": hidden_channels,
                "coupling": coupling,
                "log_scale_limit": log_scale_limit,
                "shift_limit": shift_limit,
                "memory_efficient": memory_efficient,
                "data_range": list(data_range),
                # Weights of flows without a condition have no such argument.
                **({} if condition_shape is None else {"condition_shape": list(condition_shape)}),
            },
            [
                GlowLevel(
                    c,
                    steps,
                    partial(CouplingNet, hidden_channels=hidden_channels),
                    coupling,
                    log_scale_limit,
                    shift_limit,
                    condition_channels(condition_shape, level),
                )
                for level, c in enumerate(channels)
            ],
            [*(ConditionalPrior(c // 2) for c in channels[:-1]), ChannelPrior(channels[-1])],
            memory_efficient,
        )
        self.condition_shape = condition_shape
        self.conditional = condition_shape is not None

    def given(self, condition: Tensor | None, x: Tensor) -> list[tuple[Tensor, ...]]:
        """The condition at the resolution of each level, if there is one."""
        if not self.conditional:
            return super().given(condition, x)
        y = self.checked_condition(condition, x)
        return [(own,) for own in at_levels(y, self.image_shape[1:], len(self.levels))]


class GlowLevel(nn.Module):
    """The flow steps of one level, on (B, channels, H, W) at a fixed resolution.

    `make_net(in_channels, out_channels)` gives the network of a coupling, which sees `given`
    channels of a condition besides half of its own.
    """

    def __init__(
        self,
        channels: int,
        steps: int,
        make_net: Callable[[int, int], nn.Module],
        coupling: CouplingKind,
        log_scale_limit: float | None,
        shift_limit: float | None,
        given: int = 0,
    ) -> None:
        super().__init__()
        half = channels // 2
        out_channels = half if coupling == "additive" else channels
        self.convolutions = InvertibleConvolutions(channels, steps)
        self.nets = nn.ModuleList(make_net(half + given, out_channels) for _ in range(steps))
        self.coupling = coupling
        self.limits = log_scale_limit, shift_limit

    def encode(self, x: Tensor, run: Runner, *condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y, log_det) with the layers applied by `run`."""
        layers, log_det = self._layers(x, run, *condition)
        y, coupling_log_det = run(layers, x)
        return y, coupling_log_det + log_det

    def decode(self, y: Tensor, run: Runner, *condition: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `encode`, with the log-determinant of the inverse."""
        layers, log_det = self._layers(y, run, *condition, inverted=True)
        x, coupling_log_det = run([layer.flipped() for layer in reversed(layers)], y)
        return x, coupling_log_det - log_det

    def initialize(self, x: Tensor, *condition: Tensor) -> Tensor:
        """Initialise the ActNorms one after another on x; returns the level's output."""
        for step in range(len(self.nets)):
            x, _ = self.convolutions.initialize(step, x).forward(x)
            x, _ = self._coupling(step, *condition).forward(x)
        return x

    def _coupling(self, step: int, condition: Tensor | None = None) -> Coupling:
        return Coupling(self.nets[step], self.coupling, *self.limits, condition=condition)

    def _layers(
        self, x: Tensor, run: Runner, *condition: Tensor, inverted: bool = False
    ) -> tuple[list[ChainLayer], Tensor]:
        folded = self.convolutions.fold(inverted, recompute=run is not run_chain)
        layers: list[ChainLayer] = []
        for step, affine in enumerate(self.convolutions.layers(folded)):
            layers += [affine, self._coupling(step, *condition)]
        return layers, folded.log_det * (x.shape[2] * x.shape[3])
