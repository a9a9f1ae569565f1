import hashlib
import json
import os
import pickle
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import flowprior
from flowprior.flows import Flow, Glow
from flowprior.weights import WeightsError, check_rebuilds, read_config
from tests.conftest import make_perturbed_glow

PROJECT = Path(__file__).resolve().parents[1]
OPTIONS = {"levels": 2, "steps": 2, "coupling": "affine", "data_range": (-1.0, 1.0)}


@pytest.fixture
def exported(tmp_path):
    flow = make_perturbed_glow(1, (8, 4), dtype=torch.float32, **OPTIONS)
    folder = flowprior.save(flow, tmp_path / "prior" / "glow", card={"dataset": "layers"})
    return flow, folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def error_of(folder):
    with pytest.raises(WeightsError) as caught:
        flowprior.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert caught.value.__cause__ is None
    return message


def test_round_trip_is_bitwise(exported):
    flow, folder = exported
    loaded = flowprior.load(folder)
    assert type(loaded) is Glow
    assert loaded.arguments == flow.arguments
    assert loaded.data_range == (-1.0, 1.0)
    expected, found = flow.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
    x = torch.rand(2, 1, 8, 4) - 0.5
    for one, other in zip(flow.encode(x), loaded.encode(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_loaded_flow_is_frozen_and_in_evaluation_mode(exported):
    loaded = flowprior.load(exported[1])
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_training_mode_flow_is_saved_with_its_initialisation(tmp_path):
    flow = Glow(1, 8, levels=2, steps=2, hidden_channels=4).train()
    flow.encode(torch.rand(4, 1, 8, 8) - 0.5)
    loaded = flowprior.load(flowprior.save(flow, tmp_path))
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded.train().encode(torch.rand(4, 1, 8, 8))
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_config_says_how_to_rebuild(exported):
    _, folder = exported
    config = json.loads((folder / "config.json").read_text())
    assert config == read_config(folder)
    assert config["format"] == "flowprior-weights-1"
    assert config["flow"] == "Glow"
    assert config["card"] == {"dataset": "layers"}
    assert config["arguments"] == {
        "in_channels": 1,
        "image_size": [8, 4],
        "levels": 2,
        "steps": 2,
        "hidden_channels": 6,
        "coupling": "affine",
        "log_scale_limit": 0.5,
        "shift_limit": 8.0,
        "memory_efficient": True,
        "data_range": [-1.0, 1.0],
    }
    data = (folder / "model.safetensors").read_bytes()
    assert config["sha256"] == hashlib.sha256(data).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces_both_files(exported):
    flow, folder = exported
    with torch.no_grad():
        flow.priors[-1].mean.add_(1)
    flowprior.save(flow, folder)
    assert torch.equal(flowprior.load(folder).priors[-1].mean, flow.priors[-1].mean)
    assert len(list(folder.iterdir())) == 2


class TestShipped:
    def test_a_name_gives_what_the_folder_of_the_clone_gives(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        flow = flowprior.load("glow_mnist")
        other = flowprior.load(PROJECT / "weights" / "glow_mnist")
        assert flow.image_shape == (1, 28, 28)
        assert all(map(torch.equal, flow.parameters(), other.parameters()))

    def test_an_existing_folder_comes_first(self, exported, tmp_path, monkeypatch):
        flow, folder = exported
        folder.rename(tmp_path / "glow_mnist")
        monkeypatch.chdir(tmp_path)
        assert flowprior.load("glow_mnist").image_shape == flow.image_shape != (1, 28, 28)

    def test_each_has_a_line_and_is_in_the_readme(self):
        known = flowprior.weights.available()
        folders = {path.name for path in (PROJECT / "weights").iterdir() if path.is_dir()}
        assert set(known) == folders
        assert len(repr(known).splitlines()) == len(known)
        assert all(line in repr(known) and "\n" not in line for line in known.values())
        readme = (PROJECT / "weights/README.md").read_text()
        assert all(f"\n## {name}\n" in readme for name in known)

    def test_a_wrong_name_lists_the_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for use in (flowprior.load, flowprior.weights.path):
            with pytest.raises(WeightsError) as caught:
                use("glow_mnits")
            assert str(caught.value).startswith("glow_mnits is neither a folder nor the name of ")
            assert all(name in str(caught.value) for name in flowprior.weights.available())

    def test_what_is_no_flow_has_a_path_and_says_what_it_is(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert (flowprior.weights.path("denoiser_mnist") / "model.safetensors").is_file()
        with pytest.raises(WeightsError, match="is no flow: denoiser of MNIST's digits"):
            flowprior.load("denoiser_mnist")


class TestErrors:
    def test_missing_folder(self, tmp_path):
        assert "neither a folder nor the name" in error_of(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_missing_file(self, exported, name):
        (exported[1] / name).unlink()
        message = error_of(exported[1])
        assert name in message
        assert "No such file" in message

    @pytest.mark.parametrize("kept", [0, 5, 100, -1])
    def test_truncated_tensors(self, exported, kept):
        path = exported[1] / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        assert "truncated, altered" in error_of(exported[1])

    @pytest.mark.parametrize("kept", [0, 5, 100, -1])
    def test_truncated_tensors_with_their_own_hash(self, exported, kept):
        path = exported[1] / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        edit_config(exported[1], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        assert "does not fit" in error_of(exported[1])

    @pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
    def test_one_flipped_bit(self, exported, where):
        path = exported[1] / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] ^= 1
        path.write_bytes(data)
        assert "SHA-256 differs" in error_of(exported[1])

    @pytest.mark.parametrize("change", [{"steps": 3}, {"hidden_channels": 7}, {"levels": 1}])
    def test_config_of_another_architecture(self, exported, change):
        flow, folder = exported
        edit_config(folder, arguments={**flow.arguments, **change})
        message = error_of(folder)
        assert "model.safetensors does not fit" in message

    def test_unknown_flow(self, exported):
        edit_config(exported[1], flow="os.system")
        message = error_of(exported[1])
        assert "unknown flow 'os.system', expected one of" in message
        assert "Glow" in message

    @pytest.mark.parametrize("flow", [None, ["Glow"], {"Glow": 1}])
    def test_flow_that_is_no_name(self, exported, flow):
        edit_config(exported[1], flow=flow)
        assert "unknown flow" in error_of(exported[1])

    def test_unknown_argument(self, exported):
        flow, folder = exported
        edit_config(folder, arguments={**flow.arguments, "depth": 3})
        message = error_of(folder)
        assert "wrong arguments for Glow" in message
        assert "depth" in message

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"levels": 0}, "levels must be at least 1"),
            ({"levels": "two"}, "wrong arguments"),
            ({"steps": 2.5}, "wrong arguments"),
            ({"image_size": [8, 4, 4]}, "wrong arguments"),
            ({"image_size": [8, 6]}, "image_size must be divisible"),
            ({"coupling": "cubic"}, "coupling must be"),
            ({"data_range": [1]}, "wrong arguments"),
            ({"data_range": [-1e999, 1]}, "data_range must be finite"),
            ({"data_range": [float("nan"), 1]}, "data_range must be finite"),
            ({"memory_efficient": "evil"}, "memory_efficient must be bool"),
            ({"memory_efficient": 1}, "memory_efficient must be bool"),
            ({"steps": True}, "steps must be int"),
            ({"in_channels": None}, "in_channels must be int"),
            ({"image_size": {"class_path": "os.system"}}, "image_size must be"),
        ],
    )
    def test_bad_value_of_an_argument(self, exported, change, named):
        flow, folder = exported
        edit_config(folder, arguments={**flow.arguments, **change})
        assert named in error_of(folder)

    @pytest.mark.parametrize("arguments", [None, [1, 16], "levels"])
    def test_arguments_that_are_no_object(self, exported, arguments):
        edit_config(exported[1], arguments=arguments)
        assert "wrong arguments" in error_of(exported[1])

    @pytest.mark.parametrize("content", [b"", b"{", b'{"format": ', b"\xff\xfe\x00"])
    def test_config_that_is_not_json(self, exported, content):
        (exported[1] / "config.json").write_bytes(content)
        assert "config.json is not valid JSON" in error_of(exported[1])

    @pytest.mark.parametrize("content", ["[]", "3", "{}", '{"format": "flowprior-weights-99"}'])
    def test_config_of_another_format(self, exported, content):
        (exported[1] / "config.json").write_text(content)
        assert '"format": "flowprior-weights-1"' in error_of(exported[1])

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_folder_instead_of_a_file(self, exported, name):
        path = exported[1] / name
        path.unlink()
        path.mkdir()
        assert name in error_of(exported[1])


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("with_torch", [True, False])
def test_a_pickle_is_not_executed(exported, tmp_path, with_torch):
    _, folder = exported
    path, trace = folder / "model.safetensors", tmp_path / "executed"
    if with_torch:
        torch.save({"weight": Bomb(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(trace)))
    edit_config(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert "does not fit" in error_of(folder)
    assert not trace.exists()
    if not with_torch:  # The pickle would have worked.
        pickle.loads(path.read_bytes())
        assert trace.exists()


def test_a_failed_save_leaves_the_old_weights(exported):
    flow, folder = exported
    with pytest.raises((TypeError, ValueError)):
        flowprior.save(flow, folder, card={"loss": float("nan")})
    flowprior.load(folder)


def test_double_precision_is_kept_and_no_random_number_is_drawn(tmp_path):
    flow = make_perturbed_glow(1, (8, 4), dtype=torch.float64, **OPTIONS)
    flowprior.save(flow, tmp_path)
    before = torch.get_rng_state()
    loaded = flowprior.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.rand(2, 1, 8, 4, dtype=torch.float64) - 0.5
    for one, other in zip(flow.encode(x), loaded.encode(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["hidden_channels", "steps", "levels", "in_channels"])
@pytest.mark.parametrize("size", [2000, 10**7, 10**40])
def test_absurd_sizes_cost_nothing_and_are_reported(exported, name, size):
    folder = exported[1]
    edit_config(folder, arguments={**read_config(folder)["arguments"], name: size})
    message = error_of(folder)
    assert name in message or "more tensors" in message or "does not fit" in message


def test_values_that_are_not_finite_are_reported(exported):
    flow, folder = exported
    with torch.no_grad():
        flow.priors[-1].mean[0, 0] = float("nan")
    flowprior.save(flow, folder)
    assert "priors.1.mean has values that are not finite" in error_of(folder)


OWN_FLOWS = """
import torch
from flowprior.flows import Flow

class Glow(Flow):
    def __init__(self, size, seed=0):
        super().__init__((1, size, size), (-0.5, 0.5), {"size": size, "seed": seed})
        torch.manual_seed(seed)
        self.shift = torch.nn.Parameter(torch.zeros(size).normal_())
        self.register_buffer("weights", torch.ones(size) / self.shift.numel(), persistent=False)

    @property
    def latent_shape(self):
        return self.image_shape

    def encode(self, x):
        return x - self.shift + self.weights, x.new_zeros(len(x))

    def decode(self, z):
        return z + self.shift - self.weights, z.new_zeros(len(z))
"""


class TestOwnFlows:
    @pytest.fixture(autouse=True)
    def own(self, tmp_path, monkeypatch):
        (tmp_path / "own_flows.py").write_text(OWN_FLOWS)
        monkeypatch.syspath_prepend(tmp_path)
        yield
        sys.modules.pop("own_flows", None)
        Flow.registry.pop("own_flows.Glow", None)

    def save(self, folder):
        return flowprior.save(import_module("own_flows").Glow(4, seed=10**9), folder)

    def forget(self):
        sys.modules.pop("own_flows")
        del Flow.registry["own_flows.Glow"]

    def test_own_glow_does_not_take_the_place_of_ours(self, exported, tmp_path):
        self.save(tmp_path / "own")
        assert type(flowprior.load(exported[1])) is Glow
        own = flowprior.load(tmp_path / "own")
        assert type(own) is import_module("own_flows").Glow
        assert own.encode(torch.zeros(1, 1, 4, 4))[0].shape == (1, 1, 4, 4)

    def test_only_the_caller_names_what_is_imported(self, tmp_path):
        folder = self.save(tmp_path / "own")
        self.forget()
        assert "imports=" in error_of(folder)
        assert "own_flows" not in sys.modules
        before = torch.get_rng_state()
        flow = flowprior.load(folder, imports=["own_flows"])
        assert torch.equal(torch.get_rng_state(), before)
        assert type(flow).__module__ == "own_flows"

    def test_bare_name_of_an_older_export_is_found(self, tmp_path):
        source = OWN_FLOWS.replace("class Glow", "class Older")
        (tmp_path / "own_flows.py").write_text(source)
        flow = import_module("own_flows").Older(4)
        folder = flowprior.save(flow, tmp_path / "own")
        edit_config(folder, flow="Older")
        assert type(flowprior.load(folder)) is type(flow)
        del Flow.registry["own_flows.Older"]


def test_deeply_nested_json_is_reported(exported):
    (exported[1] / "config.json").write_text("[" * 100_000)
    assert "not valid JSON" in error_of(exported[1])


def test_flow_loaded_and_used_in_inference_mode_still_gives_gradients(exported):
    x = torch.rand(2, 1, 8, 4) - 0.5
    for load_inside in (True, False):
        loaded = None if load_inside else flowprior.load(exported[1])
        with torch.inference_mode():
            loaded = loaded or flowprior.load(exported[1])
            expected = loaded.log_prob(x)
        z = loaded.encode(x)[0].detach().requires_grad_()
        loaded.decode(z)[0].sum().backward()
        assert z.grad.abs().sum() > 0
        torch.testing.assert_close(loaded.log_prob(x), expected)


def test_arguments_that_the_class_has_by_now_are_asked_for(exported):
    """A default may be another one than the weights were trained with."""
    _, folder = exported
    config = json.loads((folder / "config.json").read_text())
    del config["arguments"]["log_scale_limit"], config["arguments"]["shift_limit"]
    (folder / "config.json").write_text(json.dumps(config))
    message = r"before there was the option, log_scale_limit was 2\.0 and shift_limit was null"
    with pytest.raises(WeightsError, match=message):
        flowprior.load(folder)


class Scaling(Flow):
    """x = gain·z."""

    def __init__(self, size, gain=1.0, options=(), mask_seed=0):
        given = {"size": size, "gain": gain, "options": options, "mask_seed": mask_seed}
        super().__init__((1, size, size), (0.0, 1.0), given)
        self.gain = gain
        self.shift = torch.nn.Parameter(torch.zeros(size))

    def encode(self, x):
        return x / self.gain, x.new_zeros(len(x))

    def decode(self, z):
        return z * self.gain, z.new_zeros(len(z))


class Open(Scaling):
    def __init__(self, size, **options):
        super().__init__(size, **options)


@pytest.mark.parametrize("kind", [Scaling, Open])
def test_arguments_of_a_flow_of_ones_own_come_back(tmp_path, kind):
    flow = kind(4, gain=2.0, mask_seed=10**9, options=(1, "a", None, [True], {"b": (2, 3)}))
    found = flowprior.load(flowprior.save(flow, tmp_path / "own"))
    assert (found.gain, found.arguments["options"]) == (2.0, [1, "a", None, [True], {"b": [2, 3]}])


class Fixed(Glow):
    def __init__(self):
        super().__init__(1, (8, 4), **OPTIONS)


class Star(Scaling):
    def __init__(self, size, *rest):
        super().__init__(size)
        self.arguments = {"size": size}


class Nested(Scaling):
    def __init__(self, size, **options):
        super().__init__(size, **options)
        self.arguments = {"size": size, "options": options}


@pytest.mark.parametrize(
    ("flow", "arguments", "words"),
    [
        (Scaling(4), {"size": 4, "options": [], "mask_seed": 0}, "must have gain"),
        (Scaling(4), {"size": 4, "mask_seed": 0}, "must have gain, options"),
        (
            Scaling(4),
            {"size": 4, "gain": 1.0, "options": [], "mask_seed": 0, "sise": 4},
            "argument 'sise'",
        ),
        (
            Scaling(4),
            {"size": 4, "gain": 1.0, "mask_seed": 0, "options": torch.nn.ReLU()},
            r"options is ReLU\(\)",
        ),
        (
            Scaling(4),
            {"size": 4, "gain": float("inf"), "options": [], "mask_seed": 0},
            "gain is inf",
        ),
        (
            Scaling(4),
            {"size": 4, "gain": 1.0, "mask_seed": 0, "options": {1: 2}},
            "options is {1: 2}",
        ),
        (Scaling(4), None, "must be a dictionary, got None"),
        (Scaling(4), {1: 2}, "1 is 2"),
        (Fixed(), None, "argument 'in_channels'"),
        (Star(4, 5), None, r"no \*args"),
    ],
)
def test_arguments_that_a_constructor_does_not_take_are_named(tmp_path, flow, arguments, words):
    if type(flow) is Scaling:
        flow.arguments = arguments
    for refuse in (check_rebuilds, lambda flow: flowprior.save(flow, tmp_path / "own")):
        with pytest.raises(ValueError, match=f"^{type(flow).__name__}.arguments [^\\n]*{words}"):
            refuse(flow)
    assert not (tmp_path / "own").exists()


class Forgets(Scaling):
    def __init__(self, size, **options):
        super().__init__(size, **options)
        self.arguments = {"size": size}


class Raises(Scaling):
    def __init__(self, size):
        super().__init__(size)
        self.arguments = {"size": size}
        if Path("built").exists():
            raise KeyError("again")


def of_size_5():
    flow = Scaling(4)
    flow.arguments["size"] = 5
    return flow


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_size_5, r"image_shape becomes \(1, 5, 5\)"),
        (lambda: Nested(4, gain=2.0), "gain becomes 1.0"),
        (lambda: Forgets(4, gain=2.0), "gain becomes 1.0; set self.arguments"),
        (lambda: Raises(4), "KeyError: 'again'"),
    ],
)
def test_a_flow_that_becomes_another_is_named_before_it_is_trained(
    tmp_path, monkeypatch, make, words
):
    monkeypatch.chdir(tmp_path)
    flow = make()
    Path("built").touch()
    with pytest.raises(ValueError, match=f"^{type(flow).__name__}.arguments [^\\n]*{words}"):
        check_rebuilds(flow)


class Lazy(Scaling):
    """Keeps the mean of what it sees first, as a tensor that it makes then."""

    def __init__(self, size, note=None):
        super().__init__(size)
        self.arguments = {"size": size}
        self.register_buffer("mean", None)

    def encode(self, x):
        if self.mean is None:
            self.mean = x.mean(0)
        return x - self.mean, x.new_zeros(len(x))

    def _load_from_state_dict(self, state, prefix, *arguments):
        self.mean = state.get(prefix + "mean")
        super()._load_from_state_dict(state, prefix, *arguments)


def test_a_flow_may_make_tensors_later(tmp_path):
    flow = Lazy(4)
    check_rebuilds(flow)
    flow.encode(torch.rand(3, 1, 4, 4))
    found = flowprior.load(flowprior.save(flow, tmp_path / "own"))
    assert torch.equal(found.mean, flow.mean)


@pytest.mark.parametrize("kind", [Scaling, Open])
def test_flows_that_are_rebuilt(kind):
    check_rebuilds(kind(4, gain=2.0, options=[1]))


class Doubled(Glow):
    """Inherits a constructor of ours."""


def test_a_subclass_of_our_flows_comes_back(tmp_path):
    flow = Doubled(1, (8, 4), **OPTIONS)
    flow.initialized.fill_(True)
    found = flowprior.load(flowprior.save(flow, tmp_path / "own"))
    assert type(found) is Doubled
