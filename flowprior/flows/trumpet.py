"""TRUMPET: an injective flow, whose latent is smaller than the image (Kothari et al., 2021)."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.checks import check_choice
from flowprior.flows.base import Flow
from flowprior.flows.coupling_net import CouplingNet
from flowprior.flows.glow import GlowLevel
from flowprior.flows.gram import half_log_det_gram, neumann_half_log_det_gram
from flowprior.flows.injective_convolution import InjectiveConvolution, InjectiveKind
from flowprior.flows.memory_flat import (
    KEPT_BYTES,
    ChainLayer,
    activation_bytes,
    memory_flat,
    run_chain,
)
from flowprior.flows.multi_scale import Runner, check_counts, check_limits
from flowprior.flows.u_net import UNet
from flowprior.latent import Latent, standard_normal_log_prob

Part = int | Literal["squeeze", "halve"]
LogDet = Literal["exact", "layerwise"]

_SMALL: list[Part] = [
    *("squeeze", 3, "halve", "squeeze", 3, "halve", "squeeze", 3, "halve"),
    *(3, "halve", 3),
]
_FACES: list[Part] = [
    *("squeeze", 3, "halve", "squeeze", 3, "halve", "squeeze", 3, "halve"),
    *(3, "halve", 3, "halve", 3, "squeeze", "halve", 3),
]
LAYOUTS: dict[tuple[int, int], list[Part]] = {
    (1, 32): _SMALL,
    (3, 32): _SMALL,
    (3, 64): _FACES,
    (1, 128): ["squeeze", *_FACES],
}
"""The published ones by (channels, image size): latents of 64, 192, 192 and 256 numbers."""
LOW_STEPS = {(3, 64): 32}
"""Published numbers of steps of h by (channels, image size); 16 for others."""


class Trumpet(Flow):
    r"""An injective generator x = g(h(z)): a flow h on few latents, and an expanding network g.

    From the image down, g† squeezes 2×2 pixels into channels, runs bijective steps (ActNorm →
    invertible 1×1 convolution → affine coupling with a U-Net) and halves the channels by injective
    1×1 convolutions; what is left, w = g†(x), goes through the steps of h. g is trained first, by
    the error of `project`, then h, by the likelihood of w (`flowprior.losses.Reconstruction` and
    `LatentLikelihood`).

    Images fill only the range of the generator, a d-dimensional surface:

    - `encode` takes any image to the latents of its projection; `decode` is the generator;
      `project` = g∘g† gives the projection, and is idempotent.
    - Log-determinants are :math:`\pm\tfrac12 \log\det J^T J` at the projection, "exact" by d
      forward-mode derivatives, or "layerwise". The layer-wise sum is what the paper calls a bound
      (eq. 6) and uses as a regulariser; it is no bound in general, because a bijective layer after
      an injective one acts on a surface only, whose area it may stretch by more than the volume.
    - `log_prob` is a density on that surface. Do not compare it between flows of different
      ranges, nor with that of a bijective flow.

    Args:
        in_channels: channels C of the images.
        image_size: H = W.
        layout: parts of g† from the image on: "squeeze", "halve", or a number of bijective steps;
            by default the published one for 1×32², 3×32², 3×64² and 1×128².
        injective: kind of the injective convolutions.
        widths: of the U-Nets, at full resolution and below.
        unet_convolutions: 3×3 convolutions of the U-Nets at each resolution.
        low_steps: steps of h; their nets are convolutional as Glow's. By default the published
            number: 32 for 3×64², otherwise 16.
        low_hidden_channels: width of the nets of h; the default gives the published numbers of
            parameters.
        tikhonov: λ > 0 of the pseudo-inverses.
        log_scale_limit: largest |log scale| of a coupling, as for `Glow`.
        shift_limit: largest |shift| of a coupling, as for `Glow`.
        log_det: "exact" or "layerwise".
        memory_efficient: rebuild activations of bijective steps by inversion in the backward pass
            where they would take more than `kept_bytes`; not under autocast.
        data_range: (low, high) of the images that the flow models.

    Raises:
        ValueError: an argument is out of range, or the layout does not fit the images.

    Reference: Kothari, Khorashadizadeh, de Hoop & Dokmanić, "Trumpets: Injective flows for
    inference and inverse problems" (2021).

    >>> flow = Trumpet(1, 8, layout=["squeeze", 1, "halve", 1], low_steps=1).eval()
    >>> x = flow.sample(3)
    >>> flow.latent.size, torch.allclose(flow.project(x), x, atol=1e-4)
    (32, True)
    """

    kept_bytes: int = KEPT_BYTES
    """As that of other flows (`InitializedFlow`)."""

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        layout: list[int | str] | None = None,
        injective: InjectiveKind = "linear",
        widths: tuple[int, int] = (32, 64),
        unet_convolutions: int = 2,
        low_steps: int | None = None,
        low_hidden_channels: int = 480,
        tikhonov: float = 1e-6,
        log_scale_limit: float | None = 0.5,
        shift_limit: float | None = 8.0,
        log_det: LogDet = "exact",
        memory_efficient: bool = True,
        data_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        check_types(Trumpet.__init__, locals())
        if low_steps is None:
            low_steps = LOW_STEPS.get((in_channels, image_size), 16)
        check_counts(
            in_channels=in_channels,
            image_size=image_size,
            unet_convolutions=unet_convolutions,
            low_steps=low_steps,
            low_hidden_channels=low_hidden_channels,
        )
        check_limits(log_scale_limit, shift_limit)
        check_choice("injective", injective, ("linear", "relu"))
        check_choice("log_det", log_det, ("exact", "layerwise"))
        if not 0 < tikhonov < 1:
            raise ValueError(f"tikhonov must be in (0, 1), got {tikhonov}")
        layout = _layout(layout, in_channels, image_size)
        shape = (in_channels, image_size, image_size)
        shapes = _shapes(shape, layout)
        arguments = {
            "in_channels": in_channels,
            "image_size": image_size,
            "layout": list(layout),
            "injective": injective,
            "widths": list(widths),
            "unet_convolutions": unet_convolutions,
            "low_steps": low_steps,
            "low_hidden_channels": low_hidden_channels,
            "tikhonov": tikhonov,
            "log_scale_limit": log_scale_limit,
            "shift_limit": shift_limit,
            "log_det": log_det,
            "memory_efficient": memory_efficient,
            "data_range": list(data_range),
        }
        super().__init__(shape, data_range, arguments, Latent({"z": shapes[-1]}))
        self.log_det = log_det
        self.memory_efficient = memory_efficient
        limits = (log_scale_limit, shift_limit)
        net = partial(UNet, widths=tuple(widths), convolutions=unet_convolutions)
        self.parts = nn.ModuleList(
            Squeeze()
            if part == "squeeze"
            else InjectiveConvolution(channels, injective, tikhonov)
            if part == "halve"
            else GlowLevel(channels, part, net, "affine", *limits)
            for part, (channels, _, _) in zip(layout, shapes, strict=False)
        )
        low_net = partial(CouplingNet, hidden_channels=low_hidden_channels)
        self.low = GlowLevel(shapes[-1][0], low_steps, low_net, "affine", *limits)
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("low_initialized", torch.tensor(False))
        self._known: set[str] = set()  # buffers known to be set: no device sync per step
        self.register_load_state_dict_post_hook(_forget_initialized)

    def contract(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) to (w = g†(x), layer-wise log-determinant (B,)).

        The first batch in training mode initialises the layers of g.
        """
        self.check_shape(x, self.image_shape, "x")
        if self.training and not self._is_set("initialized"):
            self._initialize(x)
        log_det = x.new_zeros(len(x))
        run = self._runner(x)
        for part in self.parts:
            if isinstance(part, GlowLevel):
                x, part_log_det = part.encode(x, run)
                log_det = log_det + part_log_det
                continue
            x = part.contract(x)
            log_det = log_det - part.log_det() * (x.shape[2] * x.shape[3])
        return x, log_det

    def expand(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Map w (B, *latent.shape) to (images g(w), layer-wise log-determinant (B,))."""
        return self._expand(w, self._runner(w))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x (B, C, H, W) to (z, −½ log det JᵀJ (B,)) of their projections."""
        w, _ = self.contract(x)
        exact = self.log_det == "exact"
        log_det = half_log_det_gram(self._image, w) if exact else self.expand(w)[1]
        z, low_log_det = self._low_encode(w)
        return z, low_log_det - log_det

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents z (B, *latent.shape) to (x (B, C, H, W), ½ log det JᵀJ (B,))."""
        w, low_log_det = self._low_decode(z)
        x, log_det = self.expand(w)
        if self.log_det == "exact":
            log_det = half_log_det_gram(self._image, w)
        return x, log_det + low_log_det

    def latents(self, x: Tensor) -> Tensor:
        """Latents z (B, *latent.shape) of the projections of images x (B, C, H, W)."""
        return self._low_encode(self.contract(x)[0])[0]

    def generate(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of latents z (B, *latent.shape)."""
        return self.expand(self._low_decode(z)[0])[0]

    def project(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of the generator's range that `encode` takes x for: g(g†(x))."""
        return self.expand(self.contract(x)[0])[0]

    def project_with_log_prob(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""`project` of images x (B, C, H, W), and the layer-wise log density of the result, (B,).

        log N(z; 0, I) − Σ ½ log det J_kᵀJ_k over all layers of the generator, in nats, whatever
        `log_det` is: −R of eq. 6, which is no bound in general. It takes no more than two passes
        through the network, where the exact log density takes one for each latent.
        """
        w, _ = self.contract(x)
        z, low_log_det = self._low_encode(w)
        images, log_det = self.expand(w)
        return images, standard_normal_log_prob(z) + low_log_det - log_det

    def neumann_log_prob(
        self, x: Tensor, *, terms: int = 10, probes: int = 1, seed: int = 0
    ) -> Tensor:
        """The paper's estimate of `log_prob` (B,), in nats, for comparison; it is too small.

        Args:
            x: images (B, C, H, W).
            terms: of the series; see `neumann_half_log_det_gram`.
            probes: number of random vectors whose mean is taken.
            seed: of these vectors.

        Reference: Kothari et al., "Trumpets" (2021), section 3.3 and algorithm 2.
        """
        z = self.latents(x)
        log_det = neumann_half_log_det_gram(
            self._generator, z, terms=terms, probes=probes, seed=seed
        )
        return standard_normal_log_prob(z) - log_det

    def low_log_prob(self, w: Tensor) -> Tensor:
        """Log density of w = g†(x) (B, *latent.shape) under h, in nats, (B,).

        The first batch in training mode initialises the layers of h.
        """
        if self.training and not self._is_set("low_initialized"):
            with torch.no_grad():
                self.low.initialize(w)
            self.low_initialized.fill_(True)
        z, log_det = self._low_encode(w)
        return standard_normal_log_prob(z) + log_det

    def network_parameters(self) -> list[nn.Parameter]:
        """Those of g, which `flowprior.losses.Reconstruction` trains."""
        return list(self.parts.parameters())

    def low_parameters(self) -> list[nn.Parameter]:
        """Those of h, which `flowprior.losses.LatentLikelihood` trains."""
        return list(self.low.parameters())

    def _expand(self, w: Tensor, run: Runner) -> tuple[Tensor, Tensor]:
        self.check_shape(w, self.latent.shape, "z")
        log_det = w.new_zeros(len(w))
        for part in reversed(self.parts):
            if isinstance(part, GlowLevel):
                w, part_log_det = part.decode(w, run)
                log_det = log_det + part_log_det
                continue
            log_det = log_det + part.log_det() * (w.shape[2] * w.shape[3])
            w = part.expand(w)
        return w, log_det

    def _image(self, w: Tensor) -> Tensor:
        """Images g(w), by operations that have forward-mode derivatives."""
        return self._expand(w, run_chain)[0]

    def _generator(self, z: Tensor) -> Tensor:
        """Images of latents z, by operations that have forward-mode derivatives."""
        return self._image(self.low.decode(z, run_chain)[0])

    def _low_encode(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return self.low.encode(w, self._runner(w))

    def _low_decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.check_shape(z, self.latent.shape, "z")
        return self.low.decode(z, self._runner(z))

    def _runner(self, x: Tensor) -> Runner:
        flat = self.memory_efficient and torch.is_grad_enabled()
        return self._run if flat and not torch.is_autocast_enabled(x.device.type) else run_chain

    def _run(self, layers: Sequence[ChainLayer], x: Tensor) -> tuple[Tensor, Tensor]:
        small = activation_bytes(layers, x) <= self.kept_bytes
        return run_chain(layers, x) if small else memory_flat(layers, x)

    def _is_set(self, name: str) -> bool:
        if name not in self._known and getattr(self, name):
            self._known.add(name)
        return name in self._known

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        for part in self.parts:
            x = part.contract(x) if isinstance(part, Squeeze) else part.initialize(x)
        self.initialized.fill_(True)


class Squeeze(nn.Module):
    """2×2 pixels as channels, which no metric sees."""

    def contract(self, x: Tensor) -> Tensor:
        """(B, C, 2H, 2W) to (B, 4C, H, W)."""
        return F.pixel_unshuffle(x, 2)

    def expand(self, x: Tensor) -> Tensor:
        """(B, 4C, H, W) to (B, C, 2H, 2W)."""
        return F.pixel_shuffle(x, 2)

    def log_det(self) -> float:
        """Log-determinant of each pixel: 0."""
        return 0.0


def _forget_initialized(module: Trumpet, _: object) -> None:
    module._known = set()


def _layout(given: Sequence[Part] | None, channels: int, size: int) -> Sequence[Part]:
    if given is not None:
        return given
    if (channels, size) not in LAYOUTS:
        known = ", ".join(f"{c}x{s}x{s}" for c, s in LAYOUTS)
        raise ValueError(
            f"layout must be given for images of {channels}x{size}x{size}; there is one for {known}"
        )
    return LAYOUTS[channels, size]


def _shapes(shape: tuple[int, int, int], layout: Sequence[Part]) -> list[tuple[int, int, int]]:
    """Shapes before each part, and after the last.

    Raises:
        ValueError: a part does not fit, naming it.
    """
    shapes = [shape]
    for number, part in enumerate(layout):
        channels, height, width = shapes[-1]
        here = f"layout[{number}]={part!r} meets {channels} channels of {height}x{width}"
        if part == "squeeze":
            if height % 2 or width % 2:
                raise ValueError(f"{here}: expected even sides")
            shapes.append((4 * channels, height // 2, width // 2))
        elif part == "halve" or (type(part) is int and part >= 1):
            if channels % 2:
                raise ValueError(f"{here}: expected an even number of channels")
            shapes.append((channels // (2 if part == "halve" else 1), height, width))
        else:
            raise ValueError(f'{here}: expected "squeeze", "halve" or a number of steps')
    if shapes[-1][0] % 2:
        raise ValueError(f"layout ends with {shapes[-1][0]} channels: expected an even number")
    return shapes
