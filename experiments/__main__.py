"""`python -m experiments COMMAND`: the commands.

A command checks its parameters, and prints its help, before it imports anything slow. To add one,
write a function here whose docstring describes it, and add it to `COMMANDS`.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence

from experiments.processes.signals import Interrupted, handle_signals
from experiments.processes.terminal import describe_error, is_user_error

EXIT_USER_ERROR = 2
Arguments = Sequence[str]


def run(argv: Arguments) -> None:
    """Prune, retrain and track one network, round by round (the main entry point)."""
    from experiments.config.experiment import Config
    from experiments.config.parameters import parse

    config = parse(Config, "run", argv)
    from experiments.run import run_experiment

    run_experiment(config)


def compare(argv: Arguments) -> None:
    """Compare methods over several seeds, with statistics, figures and a report page."""
    from experiments.config.comparison import CompareConfig
    from experiments.config.parameters import parse

    config = parse(CompareConfig, "compare", argv)
    from experiments.compare import compare_methods

    compare_methods(config)


def tune(argv: Arguments) -> None:
    """Search prune rate, retrain epochs and more for each reinit method, with Optuna."""
    from experiments.config.parameters import parse
    from experiments.config.tune import TuneConfig

    config = parse(TuneConfig, "tune", argv)
    from experiments.tune import run_search

    run_search(config)


def report(argv: Arguments) -> None:
    """Rebuild the report page of a comparison."""
    from experiments.config.comparison import ReportConfig
    from experiments.config.parameters import parse

    config = parse(ReportConfig, "report", argv)
    from experiments.report import rebuild_report

    rebuild_report(config)


def prepare_faces(argv: Arguments) -> None:
    """Turn folders of photographs into a data set of faces."""
    from experiments.config.faces import FacesConfig
    from experiments.config.parameters import parse

    config = parse(FacesConfig, "prepare_faces", argv)
    from experiments.prepare_faces import prepare_photographs

    prepare_photographs(config)


def bench(argv: Arguments) -> None:
    """Time a training step against the plain loop and against the floor."""
    from experiments.bench.steps import main

    main(argv)


def bench_tuning(argv: Arguments) -> None:
    """Measure the trials per minute of a search that does not train."""
    from experiments.bench.tuning import main

    main(argv)


def mlproject(argv: Arguments) -> None:
    """Rewrite MLproject from the parameters in experiments/config/."""
    from experiments.mlproject import main

    main(argv)


COMMANDS: dict[str, Callable[[Arguments], None]] = {
    "run": run,
    "compare": compare,
    "tune": tune,
    "report": report,
    "prepare_faces": prepare_faces,
    "bench": bench,
    "bench_tuning": bench_tuning,
    "mlproject": mlproject,
}
RESUMABLE = ("compare", "tune", "prepare_faces")  # the same command continues where it stopped


def run_command(name: str, argv: Arguments) -> None:
    """Run a command; print a user error as one line.

    Raises:
        SystemExit: With status 2 after a user error, 128 + n after signal n.
    """
    attached = os.environ.get("MLFLOW_RUN_ID")  # the run that `mlflow run` opened for this process
    try:
        with handle_signals():
            COMMANDS[name](argv)
    except Interrupted as stop:
        if name in RESUMABLE:
            print("stopped; the same command continues from here", file=sys.stderr)
        sys.exit(128 + stop.number)
    except Exception as error:
        if not is_user_error(error):
            raise
        print(f"error: {describe_error(error)}", file=sys.stderr)
        if attached and os.environ.get("MLFLOW_RUN_ID"):  # the command has not started it
            from experiments.tracking.server import mark_failed

            mark_failed(attached, error)
        sys.exit(EXIT_USER_ERROR)


def main() -> None:
    """Run the command that `sys.argv` names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        run_command(name, sys.argv[2:])
        return
    print("usage: python -m experiments COMMAND [--help]\n")
    for command, function in COMMANDS.items():
        print(f"  {command:<14} {inspect.getdoc(function)}")
    sys.exit(0 if name in ("-h", "--help") else EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
