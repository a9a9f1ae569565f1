"""Measure a trained flow: python evaluate.py --config density_layers_demo."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from evaluation import Evaluation, run
from evaluation.workers import default_processes
from flowprior.command_line import (
    ROOT,
    UsageError,
    config_name,
    named_config_action,
    one_line,
    run_command,
)

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
    parser.add_subclass_arguments(Evaluation, "evaluation", required=True)
    parser.add_argument("--output", type=Path | None, default=None, help="default: runs/<config>")
    parser.add_argument(
        "--processes",
        type=PositiveInt | None,
        default=None,
        help="that share the images out; default: one for each GPU, or core without one",
    )
    return parser


def main() -> None:
    """Parse, evaluate what has no record yet, write table, figures and report."""
    parser = make_parser()
    config = parser.parse_args()
    output = config.output or Path("runs") / (config_name(sys.argv[1:]) or "unnamed")
    settings = parser.dump(config)
    try:
        evaluation = parser.instantiate(config).evaluation
        processes = config.processes or default_processes(evaluation)
        run(evaluation, output, settings, processes=processes)
    except ValueError as error:
        raise UsageError(one_line(error)) from error


if __name__ == "__main__":
    sys.exit(run_command(main))
