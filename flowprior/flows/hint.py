"""Conditional HINT: a joint flow of data and images whose Jacobian is block-triangular."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.checks import check_integer
from flowprior.flows.base import standard_normal_log_prob
from flowprior.flows.conditional import check_condition_shape
from flowprior.flows.coupling import PartCoupling
from flowprior.flows.coupling_net import CouplingNet
from flowprior.flows.initialized import InitializedFlow
from flowprior.flows.invertible_convolution import FoldedWeights, InvertibleConvolutions
from flowprior.flows.memory_flat import ChainLayer, run_chain
from flowprior.flows.multi_scale import Runner, check_counts, check_limits, image_size_of

Limits = tuple[float | None, float | None]
LIMITS = ("log_scale_limit", "shift_limit")


class Joint(NamedTuple):
    """Both lanes of a joint flow: outputs, and the log-determinant of each lane alone, (B,)."""

    y: Tensor
    x: Tensor
    y_log_det: Tensor
    x_log_det: Tensor


class ConditionalHint(InitializedFlow):
    r"""G(y, x) = (G_y(y), G_x(y, x)) of data y and images x, made of HINT couplings.

    Each step of a lane is ActNorm → invertible 1×1 convolution → HINT coupling. In the lane of x a
    coupling follows that moves all of x by the state of the lane of y after the same step. A HINT
    coupling splits the channels into halves, treats each half in the same way, and moves the second
    by the first: split to single channels its Jacobian is a full triangle. That of G is

    .. math:: \begin{pmatrix} \partial G_y/\partial y & 0 \\
        \partial G_x/\partial y & \partial G_x/\partial x \end{pmatrix},

    and the density of x given y takes ∂G_x/∂x alone. G_y has a density of its own
    (`condition_log_prob`).

    Images and data are (B, C, H, W) and (B, K, H, W), or vectors (B, C) and (B, K) where
    `image_size` is 1; then images may also be (B, C, 1, 1). Latents have the shape of the images.
    ActNorms are initialised by the first batch encoded in training mode.

    Going back, activations of the networks are not kept where they are large, only the state of the
    lane of y after each step (`memory_efficient`).

    Args:
        in_channels: channels C of the images.
        condition_shape: (K,) for vectors, otherwise (K, H, W).
        image_size: height and width, one number or (H, W), each divisible by 2**squeezes.
        steps: steps of each lane.
        depth: how often a HINT coupling splits: once is an ordinary coupling. Less where there are
            too few channels.
        hidden_channels: width of the coupling networks.
        shared: one network for all parts of the same size within a coupling, which needs channels
            divisible by 2**depth. Otherwise each part has its own.
        squeezes: how often 2×2 pixels become channels at first.
        log_scale_limit: largest |log scale| of a coupling; None for sigmoid(s + 2).
        shift_limit: largest |shift| of a coupling; None for no limit.
        memory_efficient: rebuild activations by inversion in the backward pass where they would
            take more than `kept_bytes`.
        data_range: (low, high) of the images.

    Raises:
        ValueError: if an argument is out of range, naming it.

    References: Kruse et al., HINT: Hierarchical invertible neural transport for density estimation
    and Bayesian inference (2021), with separate networks; Siahkoohi et al., Preconditioned training
    of normalizing flows for variational inference in inverse problems (2021), whose code shares
    them, and splits once up to four channels.

    >>> flow = ConditionalHint(2, condition_shape=(3,), steps=2, hidden_channels=8).eval()
    >>> x, y = torch.randn(5, 2), torch.randn(5, 3)
    >>> z, log_det = flow.encode(x, y)
    >>> z.shape, log_det.shape
    (torch.Size([5, 2]), torch.Size([5]))
    >>> torch.allclose(flow.decode(z, y)[0], x, atol=1e-5)
    True
    """

    conditional = True

    def __init__(
        self,
        in_channels: int,
        condition_shape: tuple[int, ...],
        image_size: int | tuple[int, int] = 1,
        steps: int = 8,
        depth: int = 3,
        hidden_channels: int = 64,
        shared: bool = False,
        squeezes: int = 0,
        log_scale_limit: float | None = 0.5,
        shift_limit: float | None = 8.0,
        memory_efficient: bool = True,
        data_range: tuple[float, float] = (-0.5, 0.5),
    ) -> None:
        check_types(ConditionalHint.__init__, locals())
        check_counts(
            in_channels=in_channels, steps=steps, depth=depth, hidden_channels=hidden_channels
        )
        check_integer("squeezes", squeezes, least=0)
        check_limits(log_scale_limit, shift_limit)
        size = image_size_of(image_size, squeezes)
        shape = check_condition_shape(condition_shape, size)
        if (size == (1, 1)) != (len(shape) == 1):
            raise ValueError(
                "condition_shape must be (K,) for vectors, where image_size is 1, and (K, "
                f"{size[0]}, {size[1]}) for images, got {shape}"
            )
        arguments = {
            "in_channels": in_channels,
            "condition_shape": list(shape),
            "image_size": list(size),
            "steps": steps,
            "depth": depth,
            "hidden_channels": hidden_channels,
            "shared": shared,
            "squeezes": squeezes,
            "log_scale_limit": log_scale_limit,
            "shift_limit": shift_limit,
            "memory_efficient": memory_efficient,
            "data_range": list(data_range),
        }
        super().__init__((in_channels, *size), data_range, arguments, memory_efficient)
        self.condition_shape, self.squeezes = shape, squeezes
        channels, given = in_channels * 4**squeezes, shape[0] * 4**squeezes
        net = partial(CouplingNet, hidden_channels=hidden_channels, side=1 if size == (1, 1) else 3)
        options = steps, depth, shared, (log_scale_limit, shift_limit), net
        self.y_lane = Lane(given, 0, *options)
        self.x_lane = Lane(channels, given, *options)

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images x to (z, log|det ∂z/∂x| (B,)) given y."""
        joint = self.encode_joint(condition, x)
        return joint.x, joint.x_log_det

    def decode(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map latents z to (x, log|det ∂x/∂z| (B,)) given y."""
        y, packed = self._lanes(condition, z, "z")
        x, log_det = self.x_lane.decode(packed, self.run, self.y_lane.states(y, self.run)[0])
        return self._unpacked(x, z), log_det

    def encode_joint(self, y: Tensor, x: Tensor) -> Joint:
        """G(y, x)."""
        y_lane, x_lane = self._lanes(y, x, "x")
        if self.training and not self.is_initialized():
            self._initialize(y_lane, x_lane)
        states, y_log_det = self.y_lane.states(y_lane, self.run)
        z, x_log_det = self.x_lane.encode(x_lane, self.run, states)
        return Joint(self._unpacked(states[-1], y), self._unpacked(z, x), y_log_det, x_log_det)

    def decode_joint(self, z_y: Tensor, z_x: Tensor) -> Joint:
        """The inverse of `encode_joint`: a draw of y and x if z_y, z_x ~ N(0, I)."""
        y_lane, x_lane = self._lanes(z_y, z_x, "z")
        y, y_log_det = self.y_lane.decode(y_lane, self.run)
        x, x_log_det = self.x_lane.decode(x_lane, self.run, self.y_lane.states(y, self.run)[0])
        return Joint(self._unpacked(y, z_y), self._unpacked(x, z_x), y_log_det, x_log_det)

    def condition_log_prob(self, condition: Tensor) -> Tensor:
        """Log p(y) by the lane of y alone, in nats, (B,)."""
        y = self._packed(self.checked_condition(condition, condition))
        if self.training and not self.is_initialized():
            raise ValueError("ConditionalHint: encode a batch of pairs first, to set its ActNorms")
        states, log_det = self.y_lane.states(y, self.run)
        return standard_normal_log_prob(states[-1]) + log_det

    def conditional_parameters(self) -> Iterator[nn.Parameter]:
        """Those of G_x alone."""
        return self.x_lane.parameters()

    @torch.no_grad()
    def _initialize(self, y: Tensor, x: Tensor) -> None:
        """Set every ActNorm from a batch, over all processes at once."""
        self.x_lane.initialize(x, self.y_lane.initialize(y))
        self.end_initialization()

    def _lanes(self, y: Tensor | None, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Data and images as the lanes take them, (B, channels, h, w)."""
        vectors = self.image_shape[1:] == (1, 1) and x.ndim == 2
        self.check_shape(x, self.image_shape[:1] if vectors else self.image_shape, name)
        return self._packed(self.checked_condition(y, x)), self._packed(x)

    def _packed(self, x: Tensor) -> Tensor:
        x = x[..., None, None] if x.ndim == 2 else x
        return F.pixel_unshuffle(x, 2**self.squeezes)

    def _unpacked(self, x: Tensor, like: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2**self.squeezes).view_as(like)


class Part(NamedTuple):
    """A coupling that moves channels `middle` to `stop` by those from `start` to `middle`.

    `level` is the number of splits before its own.
    """

    start: int
    middle: int
    stop: int
    level: int


def parts(start: int, stop: int, depth: int, level: int = 0) -> Iterator[Part]:
    """The couplings of a HINT coupling of channels `start` to `stop`, in the order of encoding.

    >>> [(p.start, p.middle, p.stop) for p in parts(0, 4, depth=2)]
    [(0, 1, 2), (2, 3, 4), (0, 2, 4)]
    """
    if level == depth or stop - start < 2:
        return
    middle = (start + stop) // 2
    yield from parts(start, middle, depth, level + 1)
    yield from parts(middle, stop, depth, level + 1)
    yield Part(start, middle, stop, level)


class Lane(nn.Module):
    """The steps of one lane, on (B, channels, h, w).

    Args:
        channels: of the lane.
        given: channels of the lane by whose states this one is moved; 0 if there is none.
        steps: their number.
        depth: how often a coupling splits.
        shared: one network for all parts of a level.
        limits: of log-scales and shifts.
        make_net: gives a network with these numbers of input and output channels.
    """

    def __init__(
        self,
        channels: int,
        given: int,
        steps: int,
        depth: int,
        shared: bool,
        limits: Limits,
        make_net: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        if shared and channels % 2**depth:
            raise ValueError(
                f"shared: networks of equal sizes need channels divisible by 2**depth = "
                f"{2**depth}, got {channels}"
            )
        found = list(parts(0, channels, depth))
        self.parts = [(str(p.level if shared else k), p) for k, p in enumerate(found)]
        sizes = {name: (p.middle - p.start, 2 * (p.stop - p.middle)) for name, p in self.parts}
        self.convolutions = InvertibleConvolutions(channels, steps)
        self.nets = nn.ModuleList(
            nn.ModuleDict({name: make_net(*size) for name, size in sizes.items()})
            for _ in range(steps)
        )
        moves_all = steps if given else 0
        self.bridges = nn.ModuleList(make_net(given, 2 * channels) for _ in range(moves_all))
        self.channels, self.limits = channels, limits

    def states(
        self, y: Tensor, run: Callable[..., tuple[Tensor, Tensor]]
    ) -> tuple[list[Tensor], Tensor]:
        """The state after each step, and the log-determinant of all steps, by a flow's `run`."""
        folded = self.convolutions.fold()
        log_det, found = _of_folded(folded, y), []
        layers = self._layers(folded, None)
        size = len(layers) // len(self.nets)
        for start in range(0, len(layers), size):
            y, step_log_det = run(layers[start : start + size], y, whole=layers)
            log_det = log_det + step_log_det
            found.append(y)
        return found, log_det

    def encode(self, x: Tensor, run: Runner, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Apply all steps, given the states of the other lane; returns (z, log_det)."""
        folded = self.convolutions.fold()
        z, log_det = run(self._layers(folded, states), x)
        return z, log_det + _of_folded(folded, x)

    def decode(
        self, z: Tensor, run: Runner, states: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The inverse, with the log-determinant of the inverse."""
        folded = self.convolutions.fold(inverted=True)
        layers = [layer.flipped() for layer in reversed(self._layers(folded, states))]
        x, log_det = run(layers, z)
        return x, log_det - _of_folded(folded, z)

    def initialize(self, x: Tensor, states: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Initialise the ActNorms one after another on x; returns the states."""
        found = []
        for step in range(len(self.nets)):
            affine = self.convolutions.initialize(step, x)
            state = None if states is None else states[step]
            x, _ = run_chain([affine, *self._couplings(step, state)], x)
            found.append(x)
        return found

    def _layers(self, folded: FoldedWeights, states: Sequence[Tensor] | None) -> list[ChainLayer]:
        layers: list[ChainLayer] = []
        for step, affine in enumerate(self.convolutions.layers(folded)):
            state = None if states is None else states[step]
            layers += [affine, *self._couplings(step, state)]
        return layers

    def _couplings(self, step: int, state: Tensor | None = None) -> list[PartCoupling]:
        """The HINT coupling, and the one by the other lane."""
        nets = self.nets[step]
        options = {"kind": "affine", **dict(zip(LIMITS, self.limits, strict=True))}
        found = [PartCoupling(nets[name], **options, **_range(p)) for name, p in self.parts]
        if state is not None:
            bridge = self.bridges[step]
            found.append(PartCoupling(bridge, **options, condition=state, stop=self.channels))
        return found


def _range(part: Part) -> dict[str, int]:
    return {"start": part.start, "middle": part.middle, "stop": part.stop}


def _of_folded(folded: FoldedWeights, x: Tensor) -> Tensor:
    """The log-determinant of the convolutions, which does not depend on x."""
    return folded.log_det * (x.shape[2] * x.shape[3])
