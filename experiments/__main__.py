"""`python -m experiments COMMAND`: what can be run, and where it is."""

import sys
from importlib import import_module

COMMANDS = {
    "run": "prune, retrain and track one network, round by round (the main entry point)",
    "compare": "compare methods over several seeds, with statistics, figures and a page",
    "tune": "search prune rate, retrain epochs and more for each reinit method, with Optuna",
    "report": "make the page of a comparison anew",
    "prepare_faces": "make a data set of faces out of folders of photographs",
    "bench": "time a training step against the plain way and against the floor",
    "bench_tuning": "count the trials a minute of a search that does not train",
    "mlproject": "write MLproject anew from the config's fields",
}


def main() -> None:
    """Hand the command line to the module that is named first in it."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command not in COMMANDS:
        print("usage: python -m experiments COMMAND [--help]\n")
        for name, what in COMMANDS.items():
            print(f"  {name:<14} {what}")
        sys.exit(0 if command in ("-h", "--help") else 2)
    import_module(f"experiments.{command}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
