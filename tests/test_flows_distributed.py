import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flowprior.flows import Coupling1x1Flow, Glow

WORLD = 2


class NegativeLogLikelihood(nn.Module):
    """DistributedDataParallel calls `forward`."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return -self.flow.log_prob(x).mean()


FLOWS = {
    "glow": lambda: Glow(1, 8, levels=2, steps=2, hidden_channels=4, coupling="affine"),
    "coupling1x1": lambda: Coupling1x1Flow(1, 8, steps=[2, 1, 2], hidden_channels=4),
}


def fresh(name):
    torch.manual_seed(0)
    return FLOWS[name]().double().train()


def data():
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[4:] = 0.2 * x[4:] + 0.3  # The halves differ in mean and spread.
    return x - 0.5


def train(model, flow, x):
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()


def work(rank, folder, name):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    x = data().chunk(WORLD)[rank]
    flow = fresh(name)
    flow.encode(x)
    initialised = {name: value.clone() for name, value in flow.state_dict().items()}
    flow = fresh(name)
    model = NegativeLogLikelihood(flow)
    train(DistributedDataParallel(model), flow, x)
    torch.save((initialised, flow.state_dict()), f"{folder}/rank{rank}.pt")
    dist.barrier()  # a rank that leaves early can abort the other
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=FLOWS)
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder), request.param), nprocs=WORLD)
    return request.param, [
        torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)
    ]


def assert_bitwise_equal(first, second):
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_actnorm_initialisation_is_that_of_the_whole_batch(ranks):
    name, [(first, _), (second, _)] = ranks
    assert_bitwise_equal(first, second)
    whole, half = fresh(name), fresh(name)
    whole.encode(data())
    half.encode(data()[:4])
    torch.testing.assert_close(first, dict(whole.state_dict()), rtol=1e-5, atol=1e-5)
    name = next(name for name in first if name.endswith("log_scale"))
    assert (first[name] - half.state_dict()[name]).abs().max() > 0.1


def test_training_equals_one_process_at_the_same_global_batch(ranks):
    name, [(initialised, first), (_, second)] = ranks
    assert_bitwise_equal(first, second)
    flow = fresh(name)
    train(NegativeLogLikelihood(flow), flow, data())
    # The first step's moments of vanishing gradients only have their sign: hence not 1e-9.
    torch.testing.assert_close(first, dict(flow.state_dict()), rtol=1e-5, atol=1e-5)
    moved = max((first[n] - value).abs().max() for n, value in initialised.items() if value.ndim)
    assert moved > 0.01
