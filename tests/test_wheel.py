"""The wheel holds the library and its weights alone, and works where nothing else is installed."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
MEGABYTES = 40
PIPELINE = {
    *("train", "evaluate", "callbacks", "evaluation", "datamodules", "lightning_modules"),
    *("benchmarks", "tests", "docs", "configs"),
}
# What no part of the library, nor deepinv's operators, may need.
BLOCKED = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "lpips", "datasets"),
    *("tensorboard", "jsonargparse", "yaml", "matplotlib", "pandas", "jinja2", "numba", "bm3d"),
    *("filelock", "sklearn", "skimage", "skfmm", "deepwave", *sorted(PIPELINE)),
)
BLOCK = f"""
import sys

sys.modules |= dict.fromkeys({BLOCKED!r})  # importing these fails as if they were not installed
sys.path.insert(0, sys.argv.pop(1))
"""
USE = """
import resource
import flowprior, flowprior.gaussianization, flowprior.inversion, flowprior.metrics
import flowprior.physics, flowprior.posterior
import torch

used = resource.getrusage(resource.RUSAGE_SELF)
assert used.ru_utime + used.ru_stime < 6, used  # on a quiet machine 1.5 s, nearly all of it torch
assert flowprior.__file__.startswith(sys.path[0]), flowprior.__file__

from flowprior.inversion import MAP, Recording, TotalVariation, invert
from flowprior.metrics import lpips, psnr, ssim
from flowprior.physics import Gaussian, crosshole, gaussian_blur, linearized_born

flow = flowprior.load("glow_mnist")
draws = flow.sample(4, generator=torch.Generator().manual_seed(0))
truth = flow.to_unit_range(draws).clamp(0, 1)
physics = gaussian_blur(flow.image_shape, tau=1.5)
y = Gaussian(0.1).add(physics.A(truth), seed=0, indices=range(4))
recording = Recording(truth)
found = invert(flow, physics, y, sigma=0.1, iterations=30, observers=[recording])
assert list(recording.curves) and "lpips" not in recording.curves
gain = psnr(found.x, truth) - psnr(y, truth)
assert gain.mean() > 3, gain
invert(None, physics, y, sigma=0.1, solver=TotalVariation(1.0), start=y, iterations=3)

model = torch.zeros(1, 1, 12, 12)
wanted = {
    "figures": lambda: flowprior.plot(found),
    "metrics": lambda: ssim(truth, truth),
    "metrics ": lambda: lpips(truth, truth),
    "tomography": lambda: crosshole((1, 12, 12), sources=2).A(model),
    "seismic": lambda: linearized_born((1, 12, 12), sources=2).A(model),
    "pipeline": lambda: __import__("flowprior.command_line"),
}
for name, use in wanted.items():
    try:
        use()
    except ImportError as error:
        line = str(error)
        assert line.endswith(f"is not installed: pip install 'flowprior[{name.strip()}]'"), line
        assert "\\n" not in line
    else:
        raise AssertionError(f"{name} was not missed")
import json
print(json.dumps(flowprior.weights.available()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77")
    tree, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "runs", "data", "build", "dist", "*.egg-info")
    shutil.copytree(PROJECT, tree, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run_python(["-m", "pip", "wheel", *options, "-w", built, tree], built)
    return next(built.glob("*.whl"))


def run_python(arguments, folder):
    command = [sys.executable, *map(str, arguments)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_it_holds_the_library_and_its_weights_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        weights = json.loads(archive.read("flowprior/shipped/index.json"))
    assert {name.partition("/")[0] for name in names} == {"flowprior", "flowprior-0.1.0.dist-info"}
    assert wheel.stat().st_size < MEGABYTES * 10**6
    modules = {name for name in names if name.endswith(".py")}
    library = (PROJECT / "flowprior").rglob("*.py")
    assert modules == {path.relative_to(PROJECT).as_posix() for path in library}
    held = {name.split("/")[2] for name in names if name.startswith("flowprior/shipped/")}
    left_out = {"glow_layers_32_free", "classifier_mnist"}
    left_out |= {"seismic_64", "glow_seismic_64", "conditional_glow_seismic_64", "seismic_cs_64"}
    there = {path.name for path in (PROJECT / "weights").iterdir() if path.is_dir()}
    assert held - {"index.json"} == there - left_out
    assert there <= set(weights)  # each has a line
    assert "flowprior-0.1.0.dist-info/licenses/LICENSE" in names


@pytest.mark.slow
def test_it_works_in_another_folder_without_the_extras(wheel, tmp_path):
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target"]
    run_python(["-m", "pip", "install", *options, tmp_path / "site", wheel], tmp_path)
    assert {path.name for path in (tmp_path / "site").iterdir()} == {
        "flowprior",
        "flowprior-0.1.0.dist-info",
    }
    (tmp_path / "use.py").write_text(BLOCK + USE)
    printed = run_python(["use.py", tmp_path / "site"], tmp_path)
    held = {path.name for path in (tmp_path / "site/flowprior/shipped").iterdir() if path.is_dir()}
    assert set(json.loads(printed)) == held
    assert "glow_mnist" in held


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_scripts_without_the_pipeline_say_so_in_one_line(script, tmp_path):
    path = str(PROJECT / script)
    code = f"{BLOCK}\nimport runpy\nrunpy.run_path({path!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, str(PROJECT)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2, run.stderr
    assert "error: yaml, jsonargparse, pytorch_lightning, " in run.stderr
    assert run.stderr.endswith(" are not installed: pip install --editable '.[pipeline]'\n")
    assert run.stderr.count("\n") == 1
