"""Measure flows, or recover images with them: python evaluate.py --config NAME."""

import sys

if __name__ == "__main__":
    from flowprior.extras import need_pipeline

    need_pipeline()
    from flowprior.command_line import stop_quietly

    stop_quietly()

import json
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console

from evaluation import Evaluation, run
from evaluation.records import OtherSettings
from evaluation.runner import RECORDS, ProcessPool
from flowprior.command_line import (
    ROOT,
    UsageError,
    add_imports_option,
    imported_beside,
    named_config_action,
    one_line,
    output_folder,
    run_command,
)
from flowprior.extras import MissingExtra

CONFIGS = ROOT / "configs" / "evaluate"


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=__doc__)
    parser.add_argument(
        "-c",
        "--config",
        action=named_config_action(CONFIGS),
        help="name of a config in configs/evaluate/, or the path of a YAML file",
    )
    add_imports_option(parser)
    parser.add_subclass_arguments(Evaluation, "evaluation", required=True)
    parser.add_argument("--output", type=Path | None, default=None, help="default: runs/<config>")
    parser.add_argument(
        "--processes",
        type=PositiveInt,
        default=1,
        help="number of processes, which start slowly; says when more would help (default: 1)",
    )
    parser.add_argument(
        "--cluster",
        type=str | None,
        default=None,
        metavar="ADDRESS_OR_FILE",
        help="address or file of a Dask scheduler, whose workers measure: docs/clusters.md",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="choose the options of methods that have `tune` on validation images first",
    )
    return parser


def main() -> None:
    """Parse, evaluate what has no record yet, write table, figures and report."""
    parser = make_parser()
    config = parser.parse_args(_nested_nulls(sys.argv[1:]))
    _check_one_experiment(sys.argv[1:], config)
    output = output_folder(config)
    settings = parser.dump(config)
    try:
        torch.manual_seed(0)  # networks without weights of their own are the same when resumed
        evaluation = parser.instantiate(config).evaluation
        with _workers(config) or nullcontext() as pool:
            if config.tune:
                evaluation = _tuned(evaluation, output / "tuning", settings, pool)
            run(evaluation, output, settings, Console(), pool)
    except OtherSettings as error:
        tuned = not config.tune and (output / "tuning").exists()
        hint = ". If --tune has chosen these options, give it again" if tuned else ""
        raise UsageError(f"{one_line(error)}{hint}") from error
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def _workers(config: Namespace) -> Executor | None:
    """What measures, other than this process."""
    if config.cluster is None:
        several = config.processes > 1
        return ProcessPool(config.processes, imported_beside(config)) if several else None
    if config.processes > 1:
        raise UsageError("--processes is the number on this machine: give it or --cluster")
    try:
        from evaluation.cluster import ClusterExecutor
    except MissingExtra as error:
        raise UsageError(f"--cluster: {error}") from error
    cluster = ClusterExecutor(config.cluster, imported_beside(config))
    workers = f"{cluster.workers} workers" if cluster.workers != 1 else "1 worker"
    Console().print(f"{workers} at {config.cluster}; more may come.", highlight=False)
    return cluster


def _tuned(
    evaluation: Evaluation, output: Path, settings: str, pool: Executor | None
) -> Evaluation:
    from evaluation.tuning import check_none_measured, tuned

    if not evaluation.tunable:
        raise UsageError(f"--tune: {type(evaluation).__name__} has nothing to tune")
    evaluation.check()
    check_none_measured(evaluation, output.parent / RECORDS, output / RECORDS)
    return tuned(evaluation, lambda other: run(other, output, settings, Console(), pool))


def _check_one_experiment(arguments: Sequence[str], config: Namespace) -> None:
    """Refuse an option of `experiments` where there are several: it would change the last alone."""
    experiments = config.get("evaluation.init_args.experiments") or []
    for argument in arguments:
        option = argument.partition("=")[0]
        inside = re.match(r"--evaluation\.(init_args\.)?experiments\.", option)
        if inside and len(experiments) > 1:
            raise UsageError(
                f"{option}: there are {len(experiments)} experiments, and it would change one: "
                "change them in a copy of the config file"
            )


def _nested_nulls(arguments: Sequence[str]) -> list[str]:
    """`--evaluation.data.n_bits null` as JSON, for jsonargparse takes it for text there."""
    found: list[str] = []
    for argument in arguments:
        option = re.fullmatch(r"--evaluation\.([\w.]+)", found[-1]) if found else None
        if argument != "null" or not option:
            found.append(argument)
            continue
        first, *inner = option[1].replace("init_args.", "").split(".")
        if first in ("methods", "priors", "experiments"):
            raise UsageError(f"{found[-1]} null: write the null into a config file instead")
        tree = None
        for name in reversed(inner):
            tree = {"init_args": {name: tree}}
        found[-1] = f"--evaluation.{first}={json.dumps(tree)}"
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
