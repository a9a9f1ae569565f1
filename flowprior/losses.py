"""What training minimises: maximum likelihood, reconstruction, or a loss of your own."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flowprior.flows import Flow, standard_normal_log_prob
from flowprior.metrics import coded_bits_per_dim, relative_error
from flowprior.priors import require


class Loss(ABC):
    """A number for each image; training minimises its mean over the batch.

    Attributes:
        monitor: the value whose validation mean tells the best weights; lower is better.
        n_bits: bits per pixel of the data, None if it is not quantised; set before training.
        flat_noise: whether the data have less noise in flat areas; set before training.
        pairs: whether it takes data of the images too, as a conditional flow does. It is then
            called with a third argument, the condition (B, ...).
    """

    monitor: str
    n_bits: int | None = None
    flat_noise: bool = False
    pairs: bool = False

    @abstractmethod
    def __call__(self, flow: Flow, images: Tensor) -> dict[str, Tensor]:
        """Return values (B,) by name for images (B, C, H, W) in `flow.data_range`.

        The first value is minimised, all are drawn as curves, and `monitor` must be among them.
        """

    def trains(self, flow: Flow) -> Iterable[nn.Parameter]:
        """The parameters to train; the others stay as they are. All of them by default."""
        return flow.parameters()

    def prepare(self, flow: Flow, images: Tensor) -> Tensor | None:
        """What of images (B, C, H, W) this training does not change: (B, ...); None by default.

        Row by row, by parameters that it does not train. If the images are the same in each epoch,
        it is computed once for each of them, kept in memory, and given to `of_prepared`, unless it
        is None for the first batch.
        """
        return None

    def of_prepared(self, flow: Flow, prepared: Tensor) -> dict[str, Tensor]:
        """What calling the loss gives for images, from what `prepare` gave for them.

        A derived loss that changes `__call__` changes this too, or has `prepare = Loss.prepare`.
        """
        raise NotImplementedError(f"{type(self).__name__} has prepare, and so needs of_prepared")


def prepares(loss: Loss) -> bool:
    """Whether a loss has `prepare`, so that training may use `of_prepared` in place of calls.

    Raises:
        ValueError: `of_prepared` is missing, or older than `__call__`, which would be ignored.
    """
    kind = type(loss)
    if kind.prepare is Loss.prepare:
        return False
    place, owner = next((k, c) for k, c in enumerate(kind.__mro__) if "of_prepared" in vars(c))
    if owner is Loss:
        raise ValueError(f"{kind.__name__} has prepare, and so needs of_prepared")
    if any("__call__" in vars(derived) for derived in kind.__mro__[:place]):
        raise ValueError(
            f"{kind.__name__} changes `__call__` but inherits of_prepared, which training calls "
            "instead: change that, or set `prepare = Loss.prepare`"
        )
    return True


class MaximumLikelihood(Loss):
    """−log p(x) in bits per dimension, and in nats as `nll`.

    The density of the noise that filled the levels of quantised images is accounted for in bits per
    dimension.
    """

    monitor = "bits_per_dim"

    def __call__(self, flow: Flow, images: Tensor) -> dict[str, Tensor]:
        """See `Loss`."""
        log_prob = flow.log_prob(images)
        bits = coded_bits_per_dim(log_prob, images, self.n_bits, flow.data_range, self.flat_noise)
        return {"bits_per_dim": bits, "nll": -log_prob}


class Reconstruction(Loss):
    """‖x − decode(encode(x))‖², summed over the pixels of an image, and ‖x − …‖/‖x‖.

    Rounding error for a bijective flow; the distance to the range of an injective one, of which
    only the expanding network is trained.
    """

    monitor = "squared_error"

    def __call__(self, flow: Flow, images: Tensor) -> dict[str, Tensor]:
        """See `Loss`."""
        projected = getattr(flow, "project", None)
        restored = projected(images) if projected else flow.generate(flow.latents(images))
        squared = (images - restored).square().flatten(1).sum(1)
        relative = relative_error(restored.detach(), images)
        return {"squared_error": squared, "relative_error": relative}

    def trains(self, flow: Flow) -> Iterable[nn.Parameter]:
        """The expanding network of an injective flow (`network_parameters`), or everything."""
        return getattr(flow, "network_parameters", flow.parameters)()


class LatentLikelihood(Loss):
    """−log p(w) in nats of what an injective flow leaves of an image, w = g†(x), under its flow h.

    The expanding network g stays as it is. Reference: Kothari et al., "Trumpets" (2021), section
    2.2, the ML phase.
    """

    monitor = "latent_nll"

    def __call__(self, flow: Flow, images: Tensor) -> dict[str, Tensor]:
        """See `Loss`."""
        return self.of_prepared(flow, self.prepare(flow, images))

    @torch.no_grad()
    def prepare(self, flow: Flow, images: Tensor) -> Tensor:
        """The codes w (B, *latent.shape)."""
        return flow.contract(images)[0]

    def of_prepared(self, flow: Flow, prepared: Tensor) -> dict[str, Tensor]:
        """See `Loss`."""
        return {"latent_nll": -flow.low_log_prob(prepared)}

    def trains(self, flow: Flow) -> Iterable[nn.Parameter]:
        """The flow h.

        Raises:
            ValueError: the flow has no h.
        """
        needs = ["contract", "low_log_prob", "low_parameters"]
        require(flow, needs, "LatentLikelihood", "take a Trumpet, or a flow with these methods")
        return flow.low_parameters()


class ConditionalLikelihood(Loss):
    """−log p(x | y) in nats, of images x given data y.

    Of a flow with a lane of y (`ConditionalHint`) the lane of x alone is trained: that of y stays
    as it is, for example as `JointLikelihood` has left it.
    """

    monitor = "conditional_nll"
    pairs = True

    def __call__(self, flow: Flow, images: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """See `Loss`."""
        return {"conditional_nll": -flow.log_prob(images, condition)}

    def trains(self, flow: Flow) -> Iterable[nn.Parameter]:
        """What the density of x given y has of its own."""
        own = getattr(flow, "conditional_parameters", flow.parameters)
        return own()


class JointLikelihood(Loss):
    """−log p(y) − log p(x | y) in nats, of data y and images x, by a joint flow.

    Both are densities, so that the lane of y is trained by a density of its own beside what it does
    for x. The log-determinant of the whole, without the norm of z_y, would have no minimum.

    Reference: Siahkoohi et al. (2021), section 2.
    """

    monitor = "joint_nll"
    pairs = True

    def __call__(self, flow: Flow, images: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """See `Loss`."""
        z_y, z_x, y_log_det, x_log_det = flow.encode_joint(condition, images)
        conditional = -standard_normal_log_prob(z_x) - x_log_det
        marginal = -standard_normal_log_prob(z_y) - y_log_det
        return {
            "joint_nll": conditional + marginal,
            "conditional_nll": conditional,
            "condition_nll": marginal,
        }

    def trains(self, flow: Flow) -> Iterable[nn.Parameter]:
        """Everything.

        Raises:
            ValueError: the flow has no lane of y.
        """
        require(flow, ["encode_joint"], "JointLikelihood", "use ConditionalLikelihood")
        return flow.parameters()
