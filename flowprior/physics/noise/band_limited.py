"""Noise in the band of a seismic wavelet."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowprior.checks import check_number, check_positive
from flowprior.physics.noise.base import Noise, check_density, check_real, difference, half_square
from flowprior.physics.noise.draws import Indices, standard_normal


@dataclass(frozen=True)
class BandLimited(Noise):
    r"""y = A(x) + n, n stationary along the last axis, time, with the spectrum of a Ricker wavelet.

    .. math::
        n = \sigma F^* \sqrt{S} F w, \quad w \sim N(0, I), \quad
        S(f) \propto (1 - \epsilon)\, s(f)^2 + \epsilon, \quad
        s(f) = (f/f_0)^2 \exp(-(f/f_0)^2)

    with the unitary discrete Fourier transform F of the record (periodic in time), both terms of S
    of mean 1 over all frequencies, so that every sample of n has the standard deviation σ. The
    white share ε keeps the misfit finite at frequencies where a wavelet has nothing. Records are
    whole: of a trace (..., T) all samples are observed, or none. For real data.

    Args:
        sigma: σ ≥ 0; with 0, `add` changes nothing and there is no misfit.
        frequency: f₀, the peak of the wavelet's spectrum, in Hz.
        interval: seconds between samples.
        white: ε in [1e-6, 1], the share of white noise in the variance.
    """

    normal = True
    sigma: float
    frequency: float
    interval: float
    white: float = 0.01

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, least=0)
        check_positive("frequency", self.frequency)
        check_positive("interval", self.interval)
        check_number("white", self.white, least=1e-6, most=1)

    def sample(self, clean: Tensor, seed: int, indices: Indices, seen: Tensor) -> Tensor:
        """A(x) + n."""
        check_real(self, clean, clean)
        noise = standard_normal(clean, seed, indices)
        return clean + self.sigma * self._filtered(noise, 0.5)

    def misfit(self, predicted: Tensor, y: Tensor) -> Tensor:
        r"""½ Σ_f |F(predicted − y)|²/(σ² S(f)), the sum over all frequencies of all traces."""
        return half_square(self.standardised(predicted, y))

    def standardised(self, predicted: Tensor, y: Tensor) -> Tensor:
        """F* S^(−½) F (predicted − y)/σ: white noise again."""
        check_density("sigma", self.sigma)
        check_real(self, predicted, y)
        return self._filtered(difference(predicted, y), -0.5) * (1 / self.sigma)

    def spectrum(self, samples: int) -> Tensor:
        """S at the frequencies of the real Fourier transform of so many samples, float64."""
        relative = torch.fft.rfftfreq(samples, self.interval, dtype=torch.float64) / self.frequency
        square = (relative.square() * torch.exp(-relative.square())).square()
        both = torch.full_like(square, 2.0)  # every frequency but the ends stands for two
        both[0] = 1.0
        if samples % 2 == 0:
            both[-1] = 1.0
        mean = (both * square).sum() / samples
        if not mean > 1e-12:
            raise ValueError(
                f"frequency={self.frequency:g} Hz is not in records of {samples} samples, "
                f"{self.interval:g} s apart"
            )
        return (1 - self.white) * square / mean + self.white

    def _filtered(self, record: Tensor, power: float) -> Tensor:
        samples = record.shape[-1]
        gain = self.spectrum(samples).pow(power).to(record)
        return torch.fft.irfft(gain * torch.fft.rfft(record), samples)
