import sys

import pytest
import torch

from flowprior.flows import Glow, Trumpet
from flowprior.flows.initialized import InitializedFlow

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_operators_are_forgotten():
    """Several tests write and import a module of this name."""
    yield
    sys.modules.pop("my_ops", None)


@pytest.fixture
def rebuilt(monkeypatch):
    """Flows rebuild activations however small they are: those of tests are."""
    for kind in (InitializedFlow, Trumpet):
        monkeypatch.setattr(kind, "kept_bytes", 0)


@pytest.fixture
def perturbed_glow():
    """Builder of small Glows whose every parameter is moved off its initial value."""
    return make_perturbed_glow


def make_perturbed_glow(
    *arguments, scale=0.1, dtype=torch.float64, seed=0, training=False, **options
):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = Glow(*arguments, **{"hidden_channels": 6, **options}).to(dtype)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(scale * torch.randn_like(parameter))
    flow.initialized.fill_(True)
    return flow.train(training)
