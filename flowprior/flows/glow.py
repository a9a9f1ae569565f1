"""Multi-scale Glow (Kingma & Dhariwal, 2018)."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.flows.base import Flow
from flowprior.flows.coupling import Coupling, CouplingKind
from flowprior.flows.coupling_net import CouplingNet
from flowprior.flows.invertible_convolution import InvertibleConvolutions
from flowprior.flows.memory_flat import ChainLayer, memory_flat, run_chain
from flowprior.flows.split_gaussian import ChannelPrior, ConditionalPrior

Runner = Callable[[Sequence[ChainLayer], Tensor], tuple[Tensor, Tensor]]


class Glow(Flow):
    """Multi-scale Glow with a standardised, image-shaped latent.

    Each of `levels` levels squeezes 2×2 pixels into channels and runs `steps` steps of ActNorm →
    invertible 1×1 convolution → coupling; half of the channels leave after each level but the last.
    The half that leaves is standardised by a learned Gaussian given the half that stays, so that
    the public latent is N(0, I). The latents of all levels are arranged as one *canvas* of the
    image's shape by undoing splits and squeezes: each of its 2^levels × 2^levels blocks holds
    entries of all levels.

    ActNorm is initialised by the first batch encoded in training mode, over all processes at once.

    Args:
        in_channels: channels C of the images.
        image_size: height and width, one number or (H, W), each divisible by 2**levels.
        levels: number of scales.
        steps: flow steps per level.
        hidden_channels: width of the coupling networks.
        coupling: "additive" (as the G-layers paper) or "affine".
        log_scale_limit: largest |log scale| of an affine coupling, above 0. Each coupling can
            stretch by its exponential: at 2, a trained flow may answer an image that is unlike its
            training images with values that single precision cannot carry back.
        memory_efficient: rebuild activations by inversion in the backward pass: memory flat in
            depth for about a third more time. Under autocast the exact flow state is kept every
            `anchor_steps` steps, because networks in bfloat16 are not rebuilt exactly.
        data_range: (low, high) of the images.

    Raises:
        ValueError: if an argument is out of range, naming it.

    Reference: Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1×1 Convolutions" (2018);
    the latent canvas and split priors follow Li & Denli, Gaussianization layers.

    >>> flow = Glow(1, 16, levels=2, steps=2, hidden_channels=8).eval()
    >>> x = torch.rand(3, 1, 16, 16) - 0.5
    >>> z, log_det = flow.encode(x)
    >>> z.shape, log_det.shape
    (torch.Size([3, 1, 16, 16]), torch.Size([3]))
    >>> torch.allclose(flow.decode(z)[0], x, atol=1e-4)
    True
    """

    anchor_steps = 4

    def __init__(
        self,
        in_channels: int,
        image_size: int | tuple[int, int],
        levels: int = 4,
        steps: int = 32,
        hidden_channels: int = 512,
        coupling: CouplingKind = "additive",
        log_scale_limit: float = 0.5,
        memory_efficient: bool = True,
        data_range: tuple[float, float] = (-0.5, 0.5),
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        _check_arguments(in_channels, (height, width), levels, steps, hidden_channels, coupling)
        if not log_scale_limit > 0:
            raise ValueError(f"log_scale_limit must be above 0, got {log_scale_limit}")
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
                "memory_efficient": memory_efficient,
                "data_range": list(data_range),
            },
        )
        self.memory_efficient = memory_efficient
        self.levels = nn.ModuleList(
            GlowLevel(
                4 * in_channels * 2**level, steps, hidden_channels, coupling, log_scale_limit
            )
            for level in range(levels)
        )
        self.priors = nn.ModuleList(
            ConditionalPrior(2 * in_channels * 2**level) for level in range(levels - 1)
        )
        self.priors.append(ChannelPrior(4 * in_channels * 2 ** (levels - 1)))
        self.register_buffer("initialized", torch.tensor(False))
        self._initialized: bool | None = None  # the buffer, read once: no device sync per step
        self.register_load_state_dict_post_hook(_forget_initialized)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) to (z (B, C, H, W), log|det dz/dx| (B,))."""
        self.check_shape(x, self.image_shape, "x")
        if self.training and not self._is_initialized():
            self.initialize(x)
        log_det = x.new_zeros(len(x))
        left: list[Tensor] = []
        for level, prior in zip(self.levels, self.priors, strict=True):
            x, level_log_det = level.encode(F.pixel_unshuffle(x, 2), self._runner(x))
            z, x = (x, None) if level is self.levels[-1] else x.chunk(2, 1)
            epsilon, prior_log_det = prior.standardize(z, x)
            left.append(epsilon)
            log_det = log_det + level_log_det + prior_log_det
        return _to_canvas(left), log_det

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents z (B, C, H, W) to (x (B, C, H, W), log|det dx/dz| (B,))."""
        self.check_shape(z, self.latent.shape, "z")
        log_det = z.new_zeros(len(z))
        x: Tensor | None = None
        left = _from_canvas(z, len(self.levels))
        for level, prior, epsilon in zip(
            reversed(self.levels), reversed(self.priors), reversed(left), strict=True
        ):
            out, prior_log_det = prior.restore(epsilon, x)
            x = out if x is None else torch.cat([out, x], 1)
            x, level_log_det = level.decode(x, self._runner(x))
            x = F.pixel_shuffle(x, 2)
            log_det = log_det + level_log_det + prior_log_det
        return x, log_det

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set every ActNorm from the batch x (B, C, H, W), over all processes at once."""
        for level in self.levels:
            x = level.initialize(F.pixel_unshuffle(x, 2)).chunk(2, 1)[1]
        self.initialized.fill_(True)
        self._initialized = True

    def _is_initialized(self) -> bool:
        if self._initialized is None:
            self._initialized = bool(self.initialized)
        return self._initialized

    def _runner(self, x: Tensor) -> Runner:
        if not self.memory_efficient or not torch.is_grad_enabled():
            return run_chain
        anchored = torch.is_autocast_enabled(x.device.type)
        return partial(memory_flat, segment=2 * self.anchor_steps if anchored else None)


class GlowLevel(nn.Module):
    """The flow steps of one level, on (B, channels, H, W) at a fixed resolution."""

    def __init__(
        self,
        channels: int,
        steps: int,
        hidden_channels: int,
        coupling: CouplingKind,
        log_scale_limit: float,
    ) -> None:
        super().__init__()
        half = channels // 2
        out_channels = half if coupling == "additive" else channels
        self.convolutions = InvertibleConvolutions(channels, steps)
        self.nets = nn.ModuleList(
            CouplingNet(half, out_channels, hidden_channels) for _ in range(steps)
        )
        self.coupling = coupling
        self.log_scale_limit = log_scale_limit

    def encode(self, x: Tensor, run: Runner) -> tuple[Tensor, Tensor]:
        """Return (y, log_det) with the layers applied by `run`."""
        layers, log_det = self._layers(x, run)
        y, coupling_log_det = run(layers, x)
        return y, coupling_log_det + log_det

    def decode(self, y: Tensor, run: Runner) -> tuple[Tensor, Tensor]:
        """Inverse of `encode`, with the log-determinant of the inverse."""
        layers, log_det = self._layers(y, run, inverted=True)
        x, coupling_log_det = run([layer.flipped() for layer in reversed(layers)], y)
        return x, coupling_log_det - log_det

    def initialize(self, x: Tensor) -> Tensor:
        """Initialise the ActNorms one after another on x; returns the level's output."""
        for step in range(len(self.nets)):
            x, _ = self.convolutions.initialize(step, x).forward(x)
            x, _ = self._coupling(step).forward(x)
        return x

    def _coupling(self, step: int) -> Coupling:
        return Coupling(self.nets[step], self.coupling, self.log_scale_limit)

    def _layers(
        self, x: Tensor, run: Runner, inverted: bool = False
    ) -> tuple[list[ChainLayer], Tensor]:
        folded = self.convolutions.fold(inverted, recompute=run is not run_chain)
        layers: list[ChainLayer] = []
        for step, affine in enumerate(self.convolutions.layers(folded)):
            layers += [affine, self._coupling(step)]
        return layers, folded.log_det * (x.shape[2] * x.shape[3])


def _to_canvas(left: list[Tensor]) -> Tensor:
    """Join the latents of the levels, finest first, into one tensor of the image's shape."""
    canvas = F.pixel_shuffle(left[-1], 2)
    for epsilon in reversed(left[:-1]):
        canvas = F.pixel_shuffle(torch.cat([epsilon, canvas], 1), 2)
    return canvas


def _from_canvas(canvas: Tensor, levels: int) -> list[Tensor]:
    left = []
    for _ in range(levels - 1):
        epsilon, canvas = F.pixel_unshuffle(canvas, 2).chunk(2, 1)
        left.append(epsilon)
    return [*left, F.pixel_unshuffle(canvas, 2)]


def _forget_initialized(module: Glow, _: object) -> None:
    module._initialized = None


def _check_arguments(
    in_channels: int,
    image_size: tuple[int, int],
    levels: int,
    steps: int,
    hidden_channels: int,
    coupling: str,
) -> None:
    counts = {
        "in_channels": in_channels,
        "levels": levels,
        "steps": steps,
        "hidden_channels": hidden_channels,
    }
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if coupling not in ("additive", "affine"):
        raise ValueError(f'coupling must be "additive" or "affine", got {coupling!r}')
    if any(side < 1 or side % 2**levels for side in image_size):
        raise ValueError(
            f"image_size must be divisible by 2**levels = {2**levels}, got "
            f"{image_size[0]}x{image_size[1]}"
        )
