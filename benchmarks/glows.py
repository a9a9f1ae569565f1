"""The same Glow in flowprior and its peers: functions from a size to a batch's log-density."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowprior.flows import Glow
from flowprior.flows.coupling_net import CouplingNet


class Size(NamedTuple):
    """Shape of the models compared: affine couplings on 3×size² images."""

    steps: int
    hidden: int
    size: int
    levels: int = 4

    def training_flops(self, batch: int) -> float:
        """2 × 3 × the multiply-adds of the coupling nets and 1×1 convolutions of a forward pass.

        A backward pass needs two products per forward one. Split priors, matrix composition and
        anything recomputed are not counted.
        """
        total = 0
        for level in range(self.levels):
            channels, pixels = 12 * 2**level, (self.size // 2 ** (level + 1)) ** 2
            net = 9 * channels // 2 * self.hidden + self.hidden**2 + 9 * self.hidden * channels
            total += pixels * (net + channels**2)
        return 6.0 * batch * self.steps * total


class Candidate(NamedTuple):
    """A model and the function that gives log-densities (B,) of images (B, 3, size, size)."""

    model: nn.Module
    log_prob: Callable[[Tensor], Tensor]


def flowprior_glow(size: Size, memory_efficient: bool) -> Candidate:
    """Glow of this library."""
    shape = 3, size.size, size.levels, size.steps, size.hidden
    model = Glow(*shape, coupling="affine", memory_efficient=memory_efficient)
    model.kept_bytes = 0  # both ways are compared, at every size
    return Candidate(model, model.log_prob)


def normflows_glow(size: Size) -> Candidate:
    """MultiscaleFlow of GlowBlocks, as in normflows' own Glow example without classes."""
    import normflows as nf

    bases, flows, merges = [], [], []
    for level in reversed(range(size.levels)):  # normflows lists the coarsest level first.
        channels, side = 12 * 2**level, size.size // 2 ** (level + 1)
        blocks = [nf.flows.GlowBlock(channels, size.hidden) for _ in range(size.steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        last = level == size.levels - 1
        if not last:
            merges.append(nf.flows.Merge())
        bases.append(nf.distributions.GlowBase((channels if last else channels // 2, side, side)))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    return Candidate(model, lambda x: model.log_prob(x, None))


def plain_net(inputs: int, outputs: int, hidden: int) -> nn.Module:
    """A coupling net as users of FrEIA write it: its result is zero at first."""
    last = nn.Conv2d(hidden, outputs, 3, padding=1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        last,
    )


def freia_glow(size: Size, net: Callable[[int, int, int], nn.Module] = plain_net) -> Candidate:
    """GraphINN of ActNorm, Fixed1x1Conv and AffineCouplingOneSided with nets of the user's."""
    import FrEIA.framework as ff
    import FrEIA.modules as fm

    def subnet(inputs: int, outputs: int) -> nn.Module:
        return net(inputs, outputs, size.hidden)

    nodes = [ff.InputNode(3, size.size, size.size)]
    out = nodes[0].out0

    def add(module: type, arguments: dict) -> None:
        nonlocal out
        nodes.append(ff.Node(out, module, arguments))
        out = nodes[-1].out0

    for level in range(size.levels):
        channels = 12 * 2**level
        add(fm.IRevNetDownsampling, {})
        for _ in range(size.steps):
            rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
            add(fm.ActNorm, {})
            add(fm.Fixed1x1Conv, {"M": rotation})
            add(fm.AffineCouplingOneSided, {"subnet_constructor": subnet})
        if level < size.levels - 1:
            add(fm.Split, {})
            nodes.append(ff.OutputNode(nodes[-1].out1))
    nodes.append(ff.OutputNode(out))
    model = ff.GraphINN(nodes)

    def log_prob(x: Tensor) -> Tensor:
        latents, log_det = model(x)
        return log_det - sum(0.5 * z.square().flatten(1).sum(1) for z in latents)

    return Candidate(model, log_prob)


CANDIDATES: dict[str, Callable[[Size], Candidate]] = {
    "flowprior plain": lambda size: flowprior_glow(size, False),
    "flowprior memory-flat": lambda size: flowprior_glow(size, True),
    "normflows": normflows_glow,
    "FrEIA": freia_glow,
}
"""What every comparison has."""

OUR_NETS = "FrEIA, flowprior's nets"
VARIANTS: dict[str, Callable[[Size], Candidate]] = {
    OUR_NETS: lambda size: freia_glow(size, CouplingNet),
}
"""What tells where a difference comes from."""

FOOTNOTE = (
    "FrEIA has no learned invertible 1x1 convolution: Fixed1x1Conv applies a fixed rotation, with "
    "no gradient of its matrix. Neither peer has flowprior's conditional split priors."
)
