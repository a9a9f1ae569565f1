"""The benchmark of a GPU, tried on the CPU in tiny sizes."""

import json
from pathlib import Path

import pytest
import torch
from rich.table import Table

from benchmarks import gpu
from benchmarks.glows import Size, flowprior_glow
from benchmarks.gpu_parts import PARTS, Scale, compared_glows, compiled, tables_of_tests, timed


def run(folder: Path, *arguments: str, device: str = "cpu") -> int:
    with pytest.MonkeyPatch.context() as patch:
        options = ["--device", device, "--tiny", "--output", str(folder), *arguments]
        patch.setattr("sys.argv", ["benchmarks.gpu", *options])
        return gpu.main()


def test_parts_are_kept_and_a_failure_stops_none(tmp_path, capsys):
    assert run(tmp_path, "--parts", "eikonal") == 0
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    (table,) = parts["eikonal"]["tables"]
    assert len(table["rows"]) == 4
    assert all(float(row[1]) > 0 for row in table["rows"])
    capsys.readouterr()
    # All of a part that is done is kept; one that has too little time says so.
    assert run(tmp_path, "--parts", "trumpet", "eikonal", "--limit", "1") == 1
    assert "eikonal: kept" in capsys.readouterr().out
    page = (tmp_path / "page.md").read_text()
    assert "stopped after 1 s" in page
    assert torch.__version__ in page
    assert "| forward, models on CPU |" in page
    again = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert again["eikonal"] == parts["eikonal"]
    assert run(tmp_path, "--parts", "eikonal", device="nowhere") == 1
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert "nowhere" in parts["eikonal"]["error"]


@pytest.mark.slow
def test_every_part_runs(tmp_path):
    assert run(tmp_path, "--limit", "300") == 0, (tmp_path / "page.md").read_text()


def test_peers_run_in_float32_and_as_they_are_by_default():
    size = Size(1, 4, 16, 2)
    table = compared_glows(Scale("cpu", True), size, torch.rand(2, 3, 16, 16) - 0.5)
    rows = list(table.columns[0].cells)
    for name in ("normflows", "FrEIA", "flowprior plain", "flowprior memory-flat"):
        found = [row.removeprefix(f"{name}, ") for row in rows if row.startswith(name)]
        ours = ["bfloat16 nets"] if "flowprior" in name else []
        assert found == ["float32", "TF32", *ours]
    assert "TF32" in table.caption


def test_ratios_are_of_the_minima():
    table = timed("both", {"a": [2.0, 4.0], "b": [3.0, 8.0]}, "a", {"a": 5.0})
    assert isinstance(table, Table)
    cells = [list(column.cells) for column in table.columns]
    assert cells[3] == ["1 (1–1)", "1.5 (1.5–2)"]
    assert cells[4] == ["5", "–"]


@pytest.mark.parametrize("memory_efficient", [True, False])
def test_benchmarked_glow_has_the_library_s_limits(memory_efficient):
    model = flowprior_glow(Size(1, 4, 16, 1), memory_efficient).model
    assert model.memory_efficient is memory_efficient
    assert model.arguments["log_scale_limit"] == 0.5


def test_all_parts_end_within_nine_minutes():
    assert sum(limit for _, limit in PARTS.values()) < 9 * 60


def test_compiled_glow_has_a_table():
    (table,) = compiled(Scale("cpu", True))
    assert list(table.columns[0].cells) == ["plain", "compiled"]
    assert table.caption.startswith("Compiling: ")


PRINTED = """
tests/test_cuda.py::test_a PASSED [ 10%]
tests/test_cuda.py::test_b[x-1] FAILED [ 20%]
tests/test_cuda.py::test_c SKIPPED (there is no GPU) [ 30%]
[gw1] [ 40%] FAILED tests/test_cuda_inversion.py::test_d
[gw0] [ 50%] PASSED tests/test_cuda_inversion.py::test_e
=========================== short test summary info ============================
FAILED tests/test_cuda.py::test_b[x-1] - AssertionError: off by 1
"""


def test_results_of_the_tests_are_counted_and_failures_keep_their_messages():
    counts, failures = tables_of_tests(PRINTED, "1")
    assert "exit status 1" in counts.title
    assert list(counts.columns[1].cells) == ["2", "2", "0", "1"]
    assert list(failures.columns[0].cells) == [
        "tests/test_cuda.py::test_b[x-1]",
        "tests/test_cuda_inversion.py::test_d",
    ]
    assert list(failures.columns[1].cells) == ["AssertionError: off by 1", "see tests.txt"]


def test_the_tests_of_the_gpu_are_a_part(tmp_path):
    assert run(tmp_path, "--parts", "tests") == 0, (tmp_path / "page.md").read_text()
    rows = json.loads((tmp_path / "results.json").read_text())["parts"]["tests"]["tables"][0][
        "rows"
    ]
    assert int(rows[0][1]) > 0
    assert [row[1] for row in rows[1:3]] == ["0", "0"]
    assert "passed" in (tmp_path / "tests.txt").read_text()
