"""Code of one's own beside a config: prior, operator, noise, solver, layers and columns."""

import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from deepinv.physics import Inpainting

from datamodules import LayerModels
from evaluation.experiment import Experiment
from evaluation.sources import PriorSource, SimulatedData
from flowprior.inversion import Checkpoint
from flowprior.physics import Gaussian
from tests.entry_points import finish
from tests.inversion_tables import (
    DATA,
    make_folder,
    noise,
    records,
    refused,
    rows_of,
    run_here,
    solver,
    table,
    write_config,
)

EXTENSION = '''
from dataclasses import dataclass

import torch
from torch import nn

from evaluation.measures import Measure
from evaluation.table import Metric
from flowprior.gaussianization import Reparameterization
from flowprior.inversion import ImageRun, Solver
from flowprior.physics import Noise
from flowprior.priors import Module, Prior


def decoder(latent: int = 5) -> Prior:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(latent, 256), nn.Sigmoid(), nn.Unflatten(1, (1, 16, 16)))
    return Module(net, (1, 16, 16), [latent])


class RowMean(nn.Module):
    """Means of some neighbouring rows."""

    def __init__(self, rows: int = 2) -> None:
        super().__init__()
        self.rows = rows

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (-1, self.rows)).mean(3)


class Differences(nn.Module):
    """Of neighbouring columns: nothing is left of a grey image."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.diff(dim=3)


class Rounded(nn.Module):
    """Without a gradient."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return (255 * x.detach()).round() / 255


@dataclass(frozen=True)
class Clipped(Solver):
    """The data in [0, 1]."""

    differentiates = False

    def begin(self, problem):
        return ImageRun(problem, problem.y.clamp(0, 1))


@dataclass(frozen=True)
class Uniform(Noise):
    """Uniform noise, fitted by least squares."""

    width: float

    def sample(self, clean, seed, indices, seen):
        rows = [torch.Generator().manual_seed(1000 * seed + int(i)) for i in indices]
        unit = [torch.rand(clean.shape[1:], generator=row) - 0.5 for row in rows]
        return clean + self.width * torch.stack(unit)

    def misfit(self, predicted, y):
        return self.standardised(predicted, y).double().square().flatten(1).sum(1) / 2

    def standardised(self, predicted, y):
        return (predicted - y) / (self.width / 12**0.5)


@dataclass(frozen=True)
class Landweber(Solver):
    """Gradient steps of one size."""

    step: float = 1e-4

    def begin(self, problem):
        return LandweberRun(problem, self.step)


class LandweberRun(ImageRun):
    interrupt_at = None

    def __init__(self, problem, size: float) -> None:
        super().__init__(problem)
        self.size = size

    def step(self) -> None:
        if LandweberRun.interrupt_at is not None:
            LandweberRun.interrupt_at -= 1
            if LandweberRun.interrupt_at < 0:
                raise KeyboardInterrupt
        self.x = self.x - self.size * self.misfit_gradient(self.x)
        self.measure()


class Scaled(Reparameterization):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, v):
        return self.scale * v


class Hidden(Reparameterization):
    """Keeps its setting to itself."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self._scale = scale

    def forward(self, v):
        return self._scale * v


class Brightness(Measure):
    metrics = (Metric("brightness", "Brightness"), Metric("offset", "Offset"))

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __call__(self, estimate, problem, truth):
        mean = estimate.x.flatten(1).mean(1)
        return {"brightness": mean, "offset": mean + self.offset}
'''


def own(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"my_extension.{name}", "init_args": options}


def latent_norm(**options: Any) -> dict[str, Any]:
    options = {"penalty": "latent_norm", **options}
    return {"solver": solver(**options)}


SETTINGS = {
    "priors": {"mine": own("decoder", latent=7)},
    "data": DATA,
    "images": 4,
    "batch_size": 2,
    "iterations": 4,
    "shown": 2,
    "experiments": [
        {
            "labels": {"operator": "row means"},
            "operator": "my_extension.RowMean",
            "options": {"rows": 4},
            "noise": own("Uniform", width=0.2),
        },
        {
            "labels": {"operator": "blur"},
            "operator": "gaussian_blur",
            "options": {"tau": 1.0},
            "noise": noise(0.1),
        },
    ],
    "methods": {
        "csgm": latent_norm(),
        "layers": latent_norm(reparameterization=own("Scaled", scale=1.0)),
        "hidden": latent_norm(reparameterization=own("Hidden", scale=1.0)),
        "landweber": {"solver": own("Landweber", step=1e-3), "start": "constant"},
    },
    "measures": [own("Brightness", offset=1.0)],
}
IMPORTS = {"imports": ["my_extension"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("extensions")
    (path / "my_extension.py").write_text(EXTENSION)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[dict[str, Any]]:
    return table(folder, "whole", SETTINGS, **IMPORTS)


def without_gradient(**methods: Any) -> dict[str, Any]:
    rounded = {"labels": {}, "operator": "my_extension.Rounded", "noise": noise(0.1)}
    return {**SETTINGS, "measures": [], "experiments": [rounded], "methods": methods}


def test_operator_without_gradient_for_methods_that_need_none(folder):
    settings = without_gradient(clipped={"solver": own("Clipped"), "iterations": 0})
    rows = table(folder, "rounded", settings, **IMPORTS)
    assert [row["labels"]["method"] for row in rows] == ["data", "clipped"]


def test_operator_without_gradient_is_refused_before_measuring(folder, capsys):
    methods = {"clipped": {"solver": own("Clipped")}, "csgm": latent_norm()}
    line = refused(folder, without_gradient(**methods), capsys, **IMPORTS)
    assert "methods.csgm: physics: Rounded has no gradient, which MAP needs" in line


def test_table_of_own_parts(folder, whole):
    labels = [tuple(row["labels"].values()) for row in whole]
    methods = ["csgm", "layers", "hidden", "landweber"]
    assert labels == [
        *(("row means", method) for method in methods),
        *(("blur", method) for method in ["data", *methods]),
    ]
    for row in whole:
        metrics = row["metrics"]
        expected = metrics["brightness"]["mean"] + 1
        assert metrics["offset"]["mean"] == pytest.approx(expected, abs=1e-6)
    landweber = whole[3]["metrics"]
    assert landweber["psnr"]["mean"] > landweber["start_psnr"]["mean"]
    assert whole[0]["metrics"]["psnr"] == whole[1]["metrics"]["psnr"]  # a scale of 1
    assert "Brightness" in (folder / "whole" / "table.md").read_text()


def test_two_processes_have_them_too(folder, whole):
    arguments = ("--config", "whole.yaml", "--output", "shared", "--processes", "2")
    finish(folder, "evaluate.py", *arguments)
    assert records(folder / "shared") == records(folder / "whole")


def test_killed_in_a_batch_of_an_own_solver(folder, whole, monkeypatch):
    import my_extension

    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))
    monkeypatch.setattr(my_extension.LandweberRun, "interrupt_at", 4 + 2)
    arguments = ("--config", "whole.yaml", "--output", "killed")
    assert run_here(folder, *arguments) == 130
    assert len(list((folder / "killed" / "underway").iterdir())) == 1
    monkeypatch.setattr(my_extension.LandweberRun, "interrupt_at", 4 * 3 - 2)  # not one more
    assert run_here(folder, *arguments) == 0
    assert records(folder / "killed") == records(folder / "whole")


CHANGES = {
    "attribute of layers": ("layers", "scale", 9.0, "scale"),
    "private attribute of layers": ("hidden", "scale", 9.0, "scale"),
    "option of a solver": ("landweber", "step", 2e-3, "step"),
}


def noticed(folder: Path, name: str, settings: dict[str, Any], capsys) -> str:
    """The line of a run with other settings into a copy of the finished one."""
    shutil.copytree(folder / "whole", folder / name)
    write_config(folder / f"{name}.yaml", settings, **IMPORTS)
    before = (folder / name / "records.jsonl").read_bytes()
    capsys.readouterr()
    assert run_here(folder, "--config", f"{name}.yaml", "--output", name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (folder / name / "records.jsonl").read_bytes() == before
    return line


@pytest.mark.parametrize("name", CHANGES)
def test_changed_setting_of_own_code_is_noticed(folder, whole, capsys, name):
    method, option, value, word = CHANGES[name]
    settings = deepcopy(SETTINGS)
    options = settings["methods"][method]["solver"]["init_args"]
    options.get("reparameterization", {"init_args": options})["init_args"][option] = value
    line = noticed(folder, name.replace(" ", "-"), settings, capsys)
    assert method in line
    assert word in line


def test_changed_parts_of_an_experiment_are_noticed(folder, whole, capsys):
    settings = deepcopy(SETTINGS)
    settings["experiments"][0]["noise"] = own("Uniform", width=0.3)
    assert "width" in noticed(folder, "noise", settings, capsys)
    settings = deepcopy(SETTINGS)
    settings["experiments"][0]["options"] = {"rows": 2}
    assert "rows" in noticed(folder, "rows", settings, capsys)
    settings = deepcopy(SETTINGS)
    settings["priors"] = {"mine": own("decoder", latent=6)}
    assert "prior" in noticed(folder, "prior", settings, capsys)
    settings = {**SETTINGS, "measures": [own("Brightness", offset=2.0)]}
    assert "offset" in noticed(folder, "measure", settings, capsys)


def test_changed_code_is_noticed(folder, whole, capsys):
    path = folder / "my_extension.py"
    try:
        path.write_text(EXTENSION + "# changed\n")
        assert "code" in noticed(folder, "code", SETTINGS, capsys)
    finally:
        path.write_text(EXTENSION)


def test_mistakes_of_own_parts_are_one_line(folder, whole, capsys):
    for part, wrong, words in [
        ("priors", {"mine": own("decodre")}, ["decodre"]),
        ("experiments", [{**SETTINGS["experiments"][0], "options": {"row": 4}}], ["row", "rows"]),
        ("experiments", [{**SETTINGS["experiments"][0], "options": {"rows": 5}}], ["RowMean"]),
        ("methods", {"a": {"solver": own("Landweber", stepp=1)}}, ["stepp"]),
        ("methods", {"a": latent_norm(reparameterization=own("Scaled", scal=1))}, ["scal"]),
        ("methods", {"a": {"solver": solver(penalty="log_density")}}, ["latent_norm or none"]),
        ("measures", [own("Brightness", offst=1)], ["offst"]),
    ]:
        line = refused(folder, {**SETTINGS, part: wrong}, capsys, **IMPORTS)
        assert all(word in line for word in words), line


def test_options_of_own_layers_are_tuned(folder, whole):
    settings = deepcopy(SETTINGS)
    settings["methods"] = {"layers": settings["methods"]["layers"]}
    settings["methods"]["layers"]["tune"] = {"reparameterization.scale": [0.5, 1]}
    settings |= {"experiments": settings["experiments"][1:], "tune_images": 2, "images": 1}
    table(folder, "own-tuned", settings, "--tune", **IMPORTS)
    assert len(rows_of(folder / "own-tuned" / "tuning")) >= 2


def test_operator_that_takes_out_the_mean(folder, whole):
    snr = {"class_path": "flowprior.physics.SNR", "init_args": {"db": 20.0}}
    experiment = {"labels": {}, "operator": "my_extension.Differences", "noise": snr}
    settings = {**SETTINGS, "experiments": [experiment], "images": 1, "iterations": 1}
    assert len(table(folder, "differences", settings, **IMPORTS)) == 4


def test_own_module_sees_the_truth_only_where_it_is_known(folder, whole):
    np.save(folder / "y.npy", torch.rand(2, 1, 16, 16).numpy())
    settings = {name: SETTINGS[name] for name in ("priors", "methods", "measures")}
    settings |= {"observations": "y.npy", "experiments": SETTINGS["experiments"][1:]}
    rows = table(folder, "measured", {**settings, "iterations": 1}, **IMPORTS)
    assert all("brightness" in row["metrics"] and "psnr" not in row["metrics"] for row in rows)


def test_networks_drawn_by_a_config_are_the_same_when_resumed(folder, whole, capsys):
    settings = deepcopy(SETTINGS)
    network = {"class_path": "deepinv.models.DnCNN", "init_args": {"pretrained": None}}
    network["init_args"] |= {"in_channels": 1, "out_channels": 1, "depth": 2, "nf": 2}
    denoiser = solver("PlugAndPlay", denoiser=network, stages=2)
    settings["methods"] = {"untrained": {"solver": denoiser}}
    settings["experiments"] = settings["experiments"][1:]
    for word in ("untrained", "Already finished"):
        torch.seed()  # as some libraries do when they are imported
        table(folder, "drawn", settings, **IMPORTS)
        assert word in capsys.readouterr().out


TWO_CHANNELS = """
from torch import nn
from flowprior.priors import Module, Prior


def velocity_and_density() -> Prior:
    net = nn.Sequential(nn.Linear(4, 288), nn.Sigmoid(), nn.Unflatten(1, (2, 12, 12)))
    return Module(net, (2, 12, 12), [4])
"""


def test_images_of_two_channels_have_figures_curves_and_results(tmp_path):
    (tmp_path / "physical.py").write_text(TWO_CHANNELS)
    truth = np.random.default_rng(0).random((3, 2, 12, 12)).astype("float32")
    np.savez(tmp_path / "measured.npz", y=truth, truth=truth)
    settings = {
        "priors": {"p": {"class_path": "physical.velocity_and_density"}},
        "observations": "measured.npz",
        "iterations": 2,
        "methods": {"csgm": latent_norm()},
        "experiments": [{"labels": {}, "operator": "denoising", "noise": noise(0.1)}],
    }
    table(tmp_path, "two", settings, imports=["physical"])
    output = tmp_path / "two"
    assert (output / "report.html").is_file()
    assert {path.stem for path in (output / "figures").iterdir()} >= {"recovered", "latents"}
    assert (output / "tensorboard" / "method-csgm").is_dir()
    with np.load(next((output / "recovered").glob("*csgm.npz"))) as kept:
        assert kept["x"].shape == (3, 2, 12, 12)


class Stripes(Inpainting):
    """Every other row is measured."""

    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape, mask=(torch.arange(image_shape[1]) % 2 * 1.0).view(1, -1, 1))


def observed(operator: str, images: int = 2) -> torch.Tensor:
    data = LayerModels(image_size=16, num_test=images)
    experiment = Experiment({}, f"{__name__}.{operator}", noise=Gaussian(0.5))
    return SimulatedData(data, images).observed(experiment, range(images), seed=0)


def test_mask_of_a_class_derived_from_deepinv_tells_where_noise_is():
    y = observed("Stripes")
    assert (y[:, :, ::2] == 0).all()
    assert y[:, :, 1::2].std() > 0.4


class OnGrid(Stripes):
    def __init__(self, image_shape: tuple[int, int, int], refine: int = 1) -> None:
        super().__init__(image_shape)
        self.refine = refine


class Sharpened(Stripes):
    """What it calls `refine` has nothing to do with a grid."""

    def __init__(self, image_shape: tuple[int, int, int], refine: bool = True) -> None:
        super().__init__(image_shape)
        self.refine = refine


@pytest.mark.parametrize(
    ("operator", "given", "expected"),
    [("OnGrid", {}, 4), ("OnGrid", {"refine": 1}, 1), ("Sharpened", {}, True)],
)
def test_own_operator_on_a_grid_makes_data_on_a_finer_one(operator, given, expected):
    experiment = Experiment({}, f"{__name__}.{operator}", data_options=given)
    assert experiment.data_physics((1, 16, 16)).refine is expected
    assert int(experiment.physics((1, 16, 16)).refine) == 1


def test_what_is_no_prior_is_named():
    with pytest.raises(ValueError, match=r"^priors.mine: expected a folder .*, got Linear$"):
        PriorSource({"mine": torch.nn.Linear(2, 2)})


OWN_TABLE = """
import torch

from datamodules import LayerModels
from evaluation.inversion import InversionEvaluation


class Own(LayerModels):
    def unit_images(self, split, indices):
        return super().unit_images(split, indices)


class Measured(InversionEvaluation):
    def evaluate(self, cell, images, arrays):
        return [{**found, "psnr": 1.0} for found in super().evaluate(cell, images, arrays)]


def with_two(function):
    def wrapper(self, *given):
        return [{**found, "psnr": 1.0} for found in function(self, *given)]

    return wrapper


class Decorated(InversionEvaluation):
    @with_two
    def evaluate(self, *given):
        return super().evaluate(*given)


class Replaced(InversionEvaluation):
    evaluate = with_two(InversionEvaluation.evaluate)


class Bare(InversionEvaluation):
    compares = bool(1.0)


class Drawn(InversionEvaluation):
    title = "One"

    def figures(self, table, results):
        self.drawn = self.count()
        return super().figures(table, results)

    def count(self):
        return 1
"""


def run_own_table(folder: Path, source: str, data: str, kind: str) -> int:
    (folder / "my_table.py").write_text(source)
    settings = {
        **{name: SETTINGS[name] for name in ("images", "batch_size", "shown")},
        "priors": {"glow": "weights"},
        "data": {**DATA, "class_path": data},
        "methods": {"tv": {"solver": solver("TotalVariation", weight=10.0)}},
        "experiments": SETTINGS["experiments"][1:],
        "iterations": 2,
    }
    evaluation = {"class_path": kind, "init_args": settings}
    config = {"imports": ["my_table"], "evaluation": evaluation}
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    try:
        return run_here(folder, "--config", "own.yaml", "--output", "own")
    finally:
        sys.modules.pop("my_table", None)


@pytest.mark.parametrize(
    ("data", "kind", "before", "after", "status"),
    [
        (
            "my_table.Own",
            "evaluation.inversion.InversionEvaluation",
            "return super().unit",
            "return 1 - super().unit",
            2,
        ),
        *(
            ("datamodules.LayerModels", f"my_table.{name}", "1.0", "2.0", 2)
            for name in ("Measured", "Decorated", "Replaced", "Bare")
        ),
        # What only shows results may be changed.
        ("datamodules.LayerModels", "my_table.Drawn", "return 1", "return 2", 0),
    ],
)
def test_changed_code_of_data_or_table_is_noticed(
    tmp_path, capsys, data, kind, before, after, status
):
    folder = make_folder(tmp_path)
    assert run_own_table(folder, OWN_TABLE, data, kind) == 0
    kept = (folder / "own" / "records.jsonl").read_bytes()
    assert run_own_table(folder, OWN_TABLE, data, kind) == 0
    capsys.readouterr()
    assert run_own_table(folder, OWN_TABLE.replace(before, after), data, kind) == status
    assert (folder / "own" / "records.jsonl").read_bytes() == kept
    assert ("choose another output folder" in capsys.readouterr().err) == (status == 2)
