"""`python -m experiments COMMAND`: the commands.

A command checks its parameters, and prints its help, before it imports anything slow. To add one,
add a record to `COMMANDS`; its names are imported when it runs.
"""

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from experiments.processes.program import INSIDE, PROGRAM
from experiments.processes.secrets import redact
from experiments.processes.signals import Interrupted, handle_signals
from experiments.processes.terminal import describe_error, did_you_mean, is_user_error

EXIT_USER_ERROR = 2


@dataclass(frozen=True)
class Command:
    """A command: what it does, the function that does it, and the class of its parameters.

    Without `parameters` the function gets the command line instead.
    """

    summary: str
    function: str
    parameters: str = ""

    def run(self, name: str, argv: Sequence[str]) -> None:
        """Run the command."""
        gc.disable()  # it takes a seventh of the time of the imports and finds nothing
        try:
            given: Any = argv
            if self.parameters:
                from experiments.config.parameters import parse

                given = parse(resolve_name(INSIDE + self.parameters), name, argv)
            function = resolve_name(INSIDE + self.function)
        finally:
            if not gc.get_freeze_count():  # several commands of one process: the first
                gc.freeze()  # no later collection looks through what was imported
                atexit.register(gc.unfreeze)  # but the last one does, or Triton reports leaks
            gc.enable()
        function(given)


COMMANDS = {
    "run": Command(
        "Prune, retrain and track one network, round by round (the main entry point).",
        "experiments.run:run_experiment",
        "experiments.config.experiment:Config",
    ),
    "compare": Command(
        "Compare methods over several seeds, with statistics, figures and a report page.",
        "experiments.compare:compare_methods",
        "experiments.config.comparison:CompareConfig",
    ),
    "tune": Command(
        "Search prune rate, retraining epochs and more for each reinit method, with Optuna.",
        "experiments.tune:run_search",
        "experiments.config.tune:TuneConfig",
    ),
    "report": Command(
        "Rebuild the report page of a comparison.",
        "experiments.report:rebuild_report",
        "experiments.config.comparison:ReportConfig",
    ),
    "predict": Command(
        "Name the faces or digits in pictures with the network of a run.",
        "experiments.predict:predict",
        "experiments.config.predict:PredictConfig",
    ),
    "export": Command(
        "Write the network of a run as smaller or faster files, each checked on all test images.",
        "experiments.export:export",
        "experiments.config.export:ExportConfig",
    ),
    "measure": Command(
        "Measure size, memory, latency and accuracy of a network in several forms side by side.",
        "experiments.measure:measure",
        "experiments.config.export:MeasureConfig",
    ),
    "prepare_faces": Command(
        "Turn folders of photographs into a data set of faces.",
        "experiments.prepare_faces:prepare_photographs",
        "experiments.config.faces:FacesConfig",
    ),
    "bench": Command(
        "Time training steps and face detection, compared with plain PyTorch code.",
        "experiments.bench.steps:main",
    ),
    "bench_tuning": Command(
        "Measure the trials per minute of a search that does not train.",
        "experiments.bench.tuning:main",
    ),
    "bench_sampling": Command(
        "Compare samplers of a search on formulas whose best settings are known.",
        "experiments.bench.sampling:main",
    ),
    "bench_records": Command(
        "Measure how few bytes a network takes at which test error, beside published figures.",
        "experiments.bench.records:main",
    ),
    "mlproject": Command(
        "Rewrite MLproject and docs/parameters.md from experiments/config/.",
        "experiments.mlproject:main",
    ),
}
RESUMABLE = ("compare", "tune", "prepare_faces", "bench_records")  # by the same command


def run_command(name: str, argv: Sequence[str]) -> None:
    """Run a command; print a user error as one line.

    Raises:
        SystemExit: With status 2 after a user error, 1 after another, 128 + n after signal n.
    """
    attached = os.environ.get("MLFLOW_RUN_ID")  # the run that `mlflow run` opened for this process
    try:
        with handle_signals():
            COMMANDS[name].run(name, argv)
    except Interrupted as stop:
        if name in RESUMABLE:
            print("stopped; the same command continues from here", file=sys.stderr)
        sys.exit(128 + stop.number)
    except Exception as error:
        if not is_user_error(error):
            print(redact(traceback.format_exc()), file=sys.stderr)
            sys.exit(1)
        print(f"error: {describe_error(error)}", file=sys.stderr)
        if attached and os.environ.get("MLFLOW_RUN_ID"):  # the command has not started it
            from experiments.tracking.orphan import delete_failed

            delete_failed(attached, describe_error(error))
        sys.exit(EXIT_USER_ERROR)


def main() -> None:
    """Run the command that `sys.argv` names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        run_command(name, sys.argv[2:])
        return
    if name not in ("-h", "--help"):
        hint = did_you_mean(name, COMMANDS)
        known = ", ".join(COMMANDS)
        print(f"error: command must be one of {known}, got {name}{hint}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    print(f"usage: {PROGRAM} COMMAND [--help]\n")
    for known, command in COMMANDS.items():
        print(f"  {known:<14} {command.summary}")


if __name__ == "__main__":
    main()
