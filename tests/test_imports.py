import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ROOMS = ["flowprior", "lightning_modules", "datamodules", "callbacks", "evaluation"]
GROUND = ["flows", "gaussianization", "physics", "metrics"]
ABOVE_GROUND = ["flowprior.inversion", "flowprior.posterior"]
TOP = ["train", "evaluate"]

# What the files of a room or floor must not import.
FORBIDDEN = {
    "flowprior": [
        *["pytorch_lightning", "lightning", "lightning_fabric"],
        *["datamodules", "lightning_modules", "callbacks", "evaluation", "benchmarks", "tests"],
        *TOP,
    ],
    **{room: ["evaluation", "benchmarks", "tests", *TOP] for room in ROOMS[1:4]},
    "evaluation": ["benchmarks", "tests", *TOP],
    **{
        f"flowprior.{floor}": [
            *(f"flowprior.{other}" for other in GROUND if other != floor),
            *ABOVE_GROUND,
        ]
        for floor in GROUND
    },
}


def imported(source, module, is_package):
    """Absolute names that a module's source imports, wherever the statement stands."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name, room):
    return name == room or name.startswith(f"{room}.")


def violations(root):
    found = []
    for path in sorted(file for room in ROOMS for file in (root / room).rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if is_package else parts)
        names = set(imported(path.read_text(), module, is_package))
        found += [
            f"{path.relative_to(root)} imports {name}"
            for room, forbidden in FORBIDDEN.items()
            if within(module, room)
            for name in sorted(names)
            if any(within(name, other) for other in forbidden)
        ]
    return found


def test_no_import_runs_upwards():
    assert len(list((PROJECT / "flowprior").rglob("*.py"))) > 10
    assert violations(PROJECT) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flowprior/flows/glow.py", "from flowprior.metrics import bits_per_dim"),
        ("flowprior/flows/glow.py", "from flowprior import metrics"),
        ("flowprior/flows/glow.py", "from .. import metrics"),
        ("flowprior/flows/deep/glow.py", "from ...metrics.density import bits_per_dim"),
        ("flowprior/flows/__init__.py", "from ..physics import born"),
        ("flowprior/physics/born.py", "import flowprior.flows.glow as glow"),
        ("flowprior/metrics/psnr.py", "def f():\n    import flowprior.inversion"),
        ("flowprior/io.py", "import pytorch_lightning as pl"),
        ("flowprior/io.py", "from lightning.pytorch import Trainer"),
        ("flowprior/inversion/solve.py", "import callbacks.curves"),
        ("flowprior/command_line.py", "if True:\n    from evaluate import main"),
        ("callbacks/curves.py", "from evaluation.table import Table"),
        ("datamodules/base.py", "import train"),
        ("lightning_modules/flow_module.py", "from evaluation import table"),
        ("evaluation/table.py", "import evaluate"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    found = violations(tmp_path)
    assert found
    assert all(line.startswith(f"{path} imports ") for line in found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("flowprior/flows/glow.py", "from flowprior.flows.base import Flow\nimport flowprior.io"),
        ("flowprior/weights.py", "import flowprior.flows"),
        ("flowprior/inversion/solve.py", "from flowprior import flows, metrics"),
        ("callbacks/curves.py", "import training_curves, evaluation_of_others"),
        ("evaluation/table.py", "from datamodules.base import D\nfrom . import records"),
    ],
)
def test_an_allowed_import_passes(tmp_path, path, source):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert violations(tmp_path) == []


HEAVY = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics", "torchvision", "lpips"),
    *("rich", "matplotlib", "numba", "pandas", "jsonargparse", "datasets", "tensorboard"),
)


def test_flowprior_does_not_load_lightning_rich_or_other_heavy_packages():
    code = (
        "import sys, flowprior, flowprior.flows, flowprior.inversion, flowprior.metrics; "
        "import flowprior.physics, flowprior.gaussianization, flowprior.weights; "
        "import flowprior.plotting, flowprior.posterior; "
        f"print(sorted(m for m in sys.modules if m.split('.')[0] in {HEAVY}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
