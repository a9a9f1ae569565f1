"""Surveys: acoustic waves between sources and receivers, and derivatives, on deepwave."""

import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from flowprior.argument_types import check_types
from flowprior.checks import check_integer, check_number, check_positive
from flowprior.extras import extra
from flowprior.physics.grids import Positions, as_positions, check_inside

ABSORBING = 10
"""Points of the absorbing layer around the grid, before it is refined."""
COURANT = 0.7
POINTS = 5
"""Least number of grid points in the shortest wavelength of the peak frequency."""
DELAY = 1.5
"""The wavelet's peak comes after so many of its periods."""
ROUNDING = 1 + 1e-6
"""By which float32 velocities may be above the fastest, or below the slowest."""
PER_PERIOD = 16
"""Least number of time steps in a period that a gradient sums over, if not over all."""
PACE = 3000
"""Operations of a matrix product in the time of one point's time step and its derivative."""
WORKING_MEMORY = 2**29
"""Bytes of wave fields that one call of deepwave may keep."""


class Survey(nn.Module):
    r"""Sources and receivers on a grid, and the time steps of the waves between them.

    .. math:: \frac{1}{c^2} \frac{\partial^2 u}{\partial t^2} - \Delta u = q(t)\, \delta(x - x_s)

    q is a Ricker wavelet of peak 1 after 1.5 periods; u is 0 before, and nothing comes back from
    beyond the grid. Fourth-order differences in space. Every time step is computed and recorded at
    a fixed fraction of `interval`, so that derivatives are exactly those of the discrete waves.

    All shots of all models are rows of one call of deepwave, or of a few where the wave fields that
    a derivative needs would take more than 512 MiB. On a CPU derivatives take a call for each
    model, so that they have the same bits in every batch.

    Args:
        shape: (H, W) of the grid.
        sources, receivers: (row, column) of every source or receiver, whole numbers, (n, 2), no
            two the same.
        spacing: metres between neighbouring rows and columns.
        frequency: peak of the wavelet's spectrum in Hz; hardly anything is beyond 2.5 times that.
        duration: of the record, in seconds.
        slowest: velocity in m/s, for which the grid must be fine enough.
        fastest: velocity in m/s, for which the time steps must be short enough.
        interval: seconds between samples of the record; 1/(8·frequency) if None.
        stride: gradients of `recorded` and `migrated` sum over every stride-th time step only. With
            1 they are exact; larger ones are faster, and at most a sixteenth of a period.
        refine: r ≥ 1: waves are computed on r(H − 1) + 1 by r(W − 1) + 1 points.
        weights: of simultaneous sources, (n, sources): all sources in each of n shots. If None
            every source has a shot of its own.

    Attributes:
        data_shape: (shots, receivers, samples).
        fine_shape: of the grid on which waves are computed.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        sources: Positions,
        receivers: Positions,
        spacing: tuple[float, float],
        frequency: float,
        duration: float,
        slowest: float,
        fastest: float,
        interval: float | None = None,
        refine: int = 1,
        stride: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        check_types(Survey.__init__, locals())
        super().__init__()
        check_integer("refine", refine, least=1)
        check_integer("stride", stride, least=1)
        _check_positive(spacing, frequency=frequency, duration=duration, slowest=slowest)
        check_number("fastest", fastest, least=slowest)
        self.interval = 1 / (8 * frequency) if interval is None else interval
        check_positive("interval", self.interval)
        self.spacing = tuple(float(side) / refine for side in spacing)
        self.frequency = float(frequency)
        self.slowest, self.fastest = float(slowest), float(fastest)
        self.refine, self.stride = refine, stride
        self.fine_shape = tuple(refine * (side - 1) + 1 for side in shape)
        _check_wavelengths(slowest / frequency, max(self.spacing), refine)
        fired = _on_grid("sources", sources, shape)
        self.register_buffer("receivers", _on_grid("receivers", receivers, shape))
        if weights is not None and (weights.ndim != 2 or weights.shape[1] != len(fired)):
            raise ValueError(f"weights must be (n, {len(fired)}), got {tuple(weights.shape)}")
        alone = fired.unsqueeze(1), torch.ones(len(fired), 1, dtype=torch.float64)
        shots = alone if weights is None else (fired.expand(len(weights), -1, -1), weights)
        self.register_buffer("sources", shots[0].clone())
        self.register_buffer("weights", shots[1])
        longest = COURANT / (fastest * math.hypot(*(1 / side for side in self.spacing)))
        # Shorter than deepwave's own limit, which would divide the steps once more.
        self.every = math.ceil(self.interval / longest * ROUNDING**2)
        _check_stride(stride, frequency * self.interval / self.every)
        samples = math.floor(duration / self.interval * (1 + 1e-9)) + 1
        self.data_shape = len(self.sources), len(self.receivers), samples
        # Steps, and those whose wave fields a derivative keeps.
        self.steps = math.ceil((self.every * (samples - 1) + 1) / stride) * stride
        self.kept = self.steps // stride

    def wavelet(self) -> Tensor:
        """The wavelet q at every time step, (steps,), float64."""
        step = self.interval / self.every
        times = step * torch.arange(self.steps, dtype=torch.float64) - DELAY / self.frequency
        square = (math.pi * self.frequency * times).square()
        return (1 - 2 * square) * torch.exp(-square)

    def recorded(self, c: Tensor) -> Tensor:
        """Waves u at the receivers, (B, *data_shape), in media c (B, *fine_shape) in m/s.

        Differentiable once.

        Raises:
            ValueError: a velocity is not above 0.
        """
        if (c <= 0).any():
            raise ValueError(f"c must be velocities above 0 m/s, got {c.min():g}")
        if c.requires_grad and torch.is_grad_enabled():
            return _Recorded.apply(c, self, [])
        return self._collected(c, self._record)

    def scattered(self, c: Tensor, dc: Tensor) -> Tensor:
        """Derivative of the waves in c (*fine_shape) in the directions dc (B, *fine_shape).

        Its gradient is `migrated`: no wave field is kept for it.
        """
        return _Scattered.apply(dc, c, self)

    def migrated(self, c: Tensor, y: Tensor) -> Tensor:
        """Adjoint of `scattered`: (B, *fine_shape) of records y (B, *data_shape)."""
        return _Migrated.apply(y, c, self)

    def gradient(self, c: Tensor, y: Tensor) -> Tensor:
        """Gradient of ⟨u, y⟩ with respect to the media c (B, *fine_shape)."""
        found = torch.zeros_like(c)
        for model, shot in self._parts(c, self.kept):
            leaf, made = self._with_graph(c, model, shot)
            _add_shots(found, model, *torch.autograd.grad(made, leaf, y[model, shot]))
            del leaf, made  # with their wave fields, before those of the next call
        return found

    def _with_graph(self, c: Tensor, model: Tensor, shot: Tensor) -> tuple[Tensor, Tensor]:
        """Media of the rows of a call, and records that keep wave fields for their gradient."""
        leaf = c.detach()[model].requires_grad_()
        with torch.enable_grad():
            return leaf, self._record(leaf, shot)

    def _record(self, c: Tensor, shot: Tensor) -> Tensor:
        """Waves in the medium c (k, *fine_shape) of each of these shots (k,)."""
        receivers = (self.receivers * self.refine).to(c.device).expand(len(shot), -1, -1)
        options = {"model_gradient_sampling_interval": self.stride}
        made = self._waves(_deepwave().scalar, c, shot, receiver_locations=receivers, **options)
        return made.receiver_amplitudes[..., :: self.every][..., : self.data_shape[2]]

    def _scatter(self, c: Tensor, dc: Tensor, shot: Tensor) -> Tensor:
        receivers = (self.receivers * self.refine).to(c.device).expand(len(shot), -1, -1)
        options = {"dv": dc, "sc_receiver_locations": receivers}
        made = self._waves(_deepwave().scalar_born, c.expand_as(dc).contiguous(), shot, **options)
        return made.sc_receiver_amplitudes[..., :: self.every][..., : self.data_shape[2]]

    def _waves(self, function: Callable[..., Any], c: Tensor, shot: Tensor, **options: Any) -> Any:
        _counted(self.weights, PACE * self.steps * c.numel())
        # deepwave's sources have the other sign, and their unit is that of a cell.
        wavelet = -self.wavelet().to(c) / math.prod(self.spacing)
        weights = self.weights[shot.to(self.weights.device)].to(c)
        return function(
            c,
            list(self.spacing),
            self.interval / self.every,
            source_amplitudes=weights.unsqueeze(2) * wavelet,
            source_locations=(self.sources * self.refine).to(c.device)[shot],
            pml_width=ABSORBING * self.refine,
            pml_freq=self.frequency,
            max_vel=self.fastest * ROUNDING,
            courant_number=COURANT,
            check_output_finite=False,
            **options,
        )

    def _collected(self, c: Tensor, record: Callable[..., Tensor], *others: Tensor) -> Tensor:
        """Records (B, *data_shape) of models c (B, *fine_shape)."""
        shots, receivers, samples = self.data_shape
        found = c.new_empty(len(c), shots, receivers, samples)
        with torch.no_grad():
            for model, shot in self._parts(c, 16):
                found[model, shot] = record(*others, c[model], shot)
        return found

    def _rows(self, c: Tensor, kept: int) -> int:
        """Number of rows, each of which keeps so many wave fields, that a call may have."""
        sides = [side + 2 * ABSORBING * self.refine for side in self.fine_shape]
        return max(1, WORKING_MEMORY // (kept * math.prod(sides) * c.element_size()))

    def _parts(self, c: Tensor, kept: int) -> list[tuple[Tensor, Tensor]]:
        """(model, shot) of the rows of each call."""
        shots, rows = self.data_shape[0], torch.arange(len(c) * self.data_shape[0], device=c.device)
        # The last digit of a gradient at the border depends on the number of rows.
        apart = kept == self.kept and c.device.type == "cpu"
        groups = rows.split(shots) if apart else [rows]
        parts = [part for group in groups for part in group.split(self._rows(c, kept))]
        return [(part // shots, part % shots) for part in parts if len(part)]


@torch.library.custom_op("flowprior::counted", mutates_args=())
def _counted(like: Tensor, operations: int) -> Tensor:
    """Nothing, but the work of deepwave shows where PyTorch counts operations."""
    return like.new_empty(0)


@register_flop_formula(torch.ops.flowprior.counted)
def _operations(like: tuple[int, ...], operations: int, **kwargs: Any) -> int:
    return operations


class _Recorded(torch.autograd.Function):
    """`Survey.recorded`, which keeps the wave fields for the gradient if they are few."""

    @staticmethod
    def forward(c: Tensor, survey: Survey, kept: list[Any]) -> Tensor:
        if len(c) * survey.data_shape[0] > survey._rows(c, survey.kept):
            return survey._collected(c, survey._record)
        for model, shot in survey._parts(c, survey.kept):
            kept.append((model, *survey._with_graph(c, model, shot)))
        made = [record.detach() for _, _, record in kept] or [
            c.new_empty(0, *survey.data_shape[1:])
        ]
        return torch.cat(made).unflatten(0, (len(c), survey.data_shape[0]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.survey, ctx.kept = inputs[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor, None, None]:
        (c,) = ctx.saved_tensors
        if not ctx.kept:
            return ctx.survey.gradient(c, y), None, None
        found, of_calls = torch.zeros_like(c), y.flatten(0, 1).split([len(k[0]) for k in ctx.kept])
        for (model, leaf, made), part in zip(ctx.kept, of_calls, strict=True):
            _add_shots(found, model, *torch.autograd.grad(made, leaf, part, retain_graph=True))
        return found, None, None


class _Scattered(torch.autograd.Function):
    """`Survey.scattered`."""

    @staticmethod
    def forward(dc: Tensor, c: Tensor, survey: Survey) -> Tensor:
        return survey._collected(dc, survey._scatter, c)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.survey = inputs[2]

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor, None, None]:
        return ctx.survey.migrated(*ctx.saved_tensors, y), None, None


class _Migrated(torch.autograd.Function):
    """`Survey.migrated`, as the gradient of the waves: scattered waves are their derivative."""

    @staticmethod
    def forward(y: Tensor, c: Tensor, survey: Survey) -> Tensor:
        return survey.gradient(c.expand(len(y), -1, -1), y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.survey = inputs[2]

    @staticmethod
    def backward(ctx: Any, dc: Tensor) -> tuple[Tensor, None, None]:
        return ctx.survey.scattered(*ctx.saved_tensors, dc), None, None


def _add_shots(found: Tensor, model: Tensor, of_shots: Tensor) -> None:
    """Add the gradient of each shot to that of its model, one after the other."""
    # In this order whatever the calls are, so that the sum has the same bits.
    for row, one in zip(model.tolist(), of_shots, strict=True):
        found[row] += one


def _check_positive(spacing: tuple[float, float], **others: float) -> None:
    for side in spacing:
        check_positive("spacing", side)
    for name, value in others.items():
        check_positive(name, value)


def _on_grid(name: str, positions: Positions, shape: tuple[int, int]) -> Tensor:
    found = as_positions(name, positions)
    check_inside(name, found, shape)
    if len(found.unique(dim=0)) < len(found):
        raise ValueError(f"{name} must be at different points of the grid")
    return found


def _check_wavelengths(shortest: float, spacing: float, refine: int) -> None:
    points = shortest / spacing
    if points < POINTS * (1 - 1e-9):
        needed = math.ceil(refine * POINTS / points)
        raise ValueError(
            f"frequency is too high for the grid: {points:.2g} points in the shortest wavelength, "
            f"{shortest:.3g} m, expected at least {POINTS}: take refine={needed}, a smaller "
            "spacing or a lower frequency"
        )


def _check_stride(stride: int, periods: float) -> None:
    """Of time steps of so many periods."""
    most = max(1, math.floor((1 + 1e-9) / (PER_PERIOD * periods)))
    if stride > most:
        raise ValueError(
            f"stride={stride} is {stride * periods:.2g} periods of the wavelet, too many for "
            f"gradients: expected at most {most}, a sixteenth of a period"
        )


def _deepwave() -> ModuleType:
    # It takes seconds to import, and is an extra.
    with extra("seismic"):
        import deepwave
    # It warns of perturbations at the border, which were wrong only in its earlier releases, and of
    # fewer than six points in a wavelength, of which `_check_wavelengths` allows five.
    for message in (
        "dv is non-zero in the outermost cells",
        "At least six grid cells per wavelength",
    ):
        warnings.filterwarnings("ignore", message=message)
    return deepwave
