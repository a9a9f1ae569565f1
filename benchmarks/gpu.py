"""Everything that a GPU is good for, in one command of a few minutes: `python -m benchmarks.gpu`.

Parts run one after another, each in a process of its own that has a limit. Their tables are kept in
a folder as they are done: results.json and page.md. A second run makes the parts that are missing.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.gpu_parts import PARTS, ROOT, Scale
from flowprior.io import atomic_write


def main() -> int:
    """Run the parts, or in a process of its own one of them; returns the exit status."""
    arguments = _parser().parse_args()
    if arguments.one:
        return _one(arguments)
    results = _kept(arguments)
    for name in arguments.parts:
        before = results["parts"].get(name)
        if before and not before["error"] and not arguments.again:
            print(f"{name}: kept from an earlier run")
            continue
        results["parts"][name] = _bounded(name, arguments)
        _write(arguments.output, results)
        section = results["parts"][name]
        print(f"{name}: {section['error'] or 'done'}, {section['seconds']:.0f} s", flush=True)
    _write(arguments.output, results)
    print((arguments.output / "page.md").read_text())
    return 1 if any(results["parts"][name]["error"] for name in arguments.parts) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a trial of the script: tiny sizes")
    parser.add_argument("--again", action="store_true", help="also parts that are done")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gpu"), help="folder of the results"
    )
    parser.add_argument("--limit", type=int, help="seconds of each part, in place of its own")
    parser.add_argument("--one", choices=list(PARTS), help=argparse.SUPPRESS)
    return parser


def _one(arguments: argparse.Namespace) -> int:
    """Make one part here; its tables are in its file as soon as they are done."""
    torch.manual_seed(0)
    section: dict[str, Any] = {"tables": [], "error": None}
    scale = Scale(arguments.device, arguments.tiny, arguments.output)
    try:
        for table in PARTS[arguments.one][0](scale):
            section["tables"].append(_plain(table))
            atomic_write(_part_file(arguments, arguments.one), json.dumps(section))
    except Exception as error:  # whatever it is, the other parts go on
        traceback.print_exc()
        section["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    atomic_write(_part_file(arguments, arguments.one), json.dumps(section))
    return 0


def _bounded(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process that ends in time, and read what it has made."""
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = _part_file(arguments, name)
    path.unlink(missing_ok=True)
    call = [sys.executable, "-m", "benchmarks.gpu", "--one", name, "--device", arguments.device]
    call += ["--output", str(arguments.output.resolve()), *(["--tiny"] if arguments.tiny else [])]
    limit, start, error = arguments.limit or PARTS[name][1], time.monotonic(), None
    with (arguments.output / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            call, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
            error = f"ended with status {status}, see {name}.log" if status else None
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit} s"
            os.killpg(process.pid, 9)  # with the processes that it has started
            process.wait()
    section = json.loads(path.read_text()) if path.exists() else {"tables": [], "error": None}
    section["error"] = error or section["error"]
    return {**section, "seconds": time.monotonic() - start}


def _part_file(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.output / f"{name}.json"


def _plain(table: Table) -> dict[str, Any]:
    """A table as JSON values."""
    columns = [list(map(str, column.cells)) for column in table.columns]
    return {
        "title": str(table.title or ""),
        "caption": str(table.caption or ""),
        "headings": [str(column.header) for column in table.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def _kept(arguments: argparse.Namespace) -> dict[str, Any]:
    """The results so far, if they are of this machine and of these sizes."""
    machine = _machine(arguments)
    path = arguments.output / "results.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    parts = kept.get("parts", {}) if kept.get("machine") == machine else {}
    command = shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]])
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"machine": machine, "command": command, "date": date, "parts": parts}


def _machine(arguments: argparse.Namespace) -> dict[str, str]:
    found = {"device": arguments.device, "sizes": "tiny" if arguments.tiny else "full"}
    if arguments.device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found["CUDA, cuDNN"] = f"{torch.version.cuda}, {torch.backends.cudnn.version()}"
    cores = len(os.sched_getaffinity(0))
    found["CPU"] = f"{platform.machine()}, {cores} cores"
    return {**found, "torch": torch.__version__, "Python": platform.python_version()}


def _write(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "results.json", json.dumps(results, indent=1))
    atomic_write(folder / "page.md", _page(results))


def _page(results: dict[str, Any]) -> str:
    lines = ["# flowprior on one GPU", "", f"`{results['command']}`, {results['date']}", ""]
    lines += [f"- {name}: {value}" for name, value in results["machine"].items()]
    lines += ["", "Functions of a table took turns. Ratios are of the minima; in brackets: their"]
    lines += ["range over the repeats."]
    for name, section in results["parts"].items():
        lines += ["", f"## {name}", "", f"{section['seconds']:.0f} s."]
        lines += [f"**{section['error']}**"] if section["error"] else []
        for table in section["tables"]:
            lines += ["", f"{table['title']}:", "", _row(table["headings"])]
            lines += [_row(["---"] * len(table["headings"])), *map(_row, table["rows"])]
            lines += ["", table["caption"]] if table["caption"] else []
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
