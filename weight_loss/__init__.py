"""Weight Loss in Python: run experiments, load their networks, evaluate and compare them.

In a checkout, import it from the root. Installed by pip, it works everywhere, and our packages are
inside it (`weight_loss.pruning`, `weight_loss.datasets`, ...), so that packages of the same names,
such as Hugging Face's `datasets`, keep theirs. docs/python.md shows it step by step.

Parameters are those of the command line (`run --help`) under the same names. A wrong one raises
ValueError, which names the parameter, the rule and the value.
"""

import os
from collections.abc import Iterator
from typing import Any, Literal

from datasets import Split, Splits
from experiments.config.experiment import config_from
from experiments.config.recipes import threads_for
from experiments.processes.tasks import computing_with
from experiments.processes.terminal import print_line
from experiments.rounds import rounds
from experiments.rounds.data import load_data as _load_data
from experiments.rounds.network import (
    Difference,
    Network,
    Score,
    compare,
    data_of,
    evaluate,
    to_network,
)
from experiments.training.engine import usable

__all__ = [
    "Difference",
    "Network",
    "Score",
    "Split",
    "Splits",
    "compare",
    "data_of",
    "evaluate",
    "load_data",
    "load_network",
    "prune_rounds",
    "run_experiment",
]


def run_experiment(**parameters: Any) -> str:
    """Train, prune and retrain, and log everything to MLflow; returns the id of the run.

    The same as the command `run`. MLflow logs to `MLFLOW_TRACKING_URI`, by default to files in the
    current folder.

    Raises:
        ValueError: If a parameter is invalid, something that it names is missing, or a run of
            MLflow is active.
    """
    from experiments.run import run_experiment as run  # here: it imports MLflow

    return run(config_from(parameters))


def prune_rounds(**parameters: Any) -> Iterator[Network]:
    """Train, prune and retrain without MLflow; yields the network of each round.

    The first is the dense network. Each has its `metrics`, such as `test_accuracy`, and is the one
    that `run_experiment` would store, bit for bit; `Network.save` writes it to a file. Nothing is
    trained until you ask for the next network, so you can stop at any time.

    Raises:
        ValueError: If a parameter is invalid, data are missing, or the loss is not finite. Runs are
            in MLflow, so `resume`, `branch_of` and masks=shared are not possible.
    """
    asked = config_from(parameters)
    stored = {"resume": asked.resume, "branch_of": asked.branch_of}
    if given := {name: value for name, value in stored.items() if value != "none"}:
        raise ValueError(f"prune_rounds reads no run, got {given}: use run_experiment")
    data, _ = _load_data(asked)
    config = asked.resolved(data.name)
    with computing_with(threads_for(config.model)):
        config = config.model_copy(update={"engine": usable(config.engine, print_line)})
    data = data.to(config.device)
    events = rounds.prune_rounds(config, data)
    while True:
        with computing_with(threads_for(config.model)):
            results = (event for event in events if isinstance(event, rounds.RoundResult))
            result = next(results, None)
        if result is None:
            return
        yield to_network(config, data, result.network, result.metrics)


def load_data(**parameters: Any) -> Splits:
    """The data of an experiment: `train`, `valid` and `test`, split by its `split_seed`.

    Args:
        parameters: Of these, `dataset`, `data_root`, `seed`, `split_seed`, `train_limit`, `pixels`
            and `pretrained` count.

    Raises:
        ValueError: If a parameter is invalid or the data are missing; the message says what to do.
    """
    data, _ = _load_data(config_from(parameters))
    return data


def load_network(
    run: str | os.PathLike[str],
    round: int | Literal["last"] = "last",  # noqa: A002
    data: Splits | None = None,
) -> Network:
    """A stored network as a working model.

    Its `module` maps float pixels in [0, 1], [N, channels, height, width], to logits [N, classes].
    Pruned weights are exactly zero. `masks` are bool, True = survives; `class_names` has a name for
    each logit; `metrics` are those of its round.

    Args:
        run: The id of a run, the file of a checkpoint, or a folder of checkpoints.
        round: Number of the round, or "last"; 0 is the dense network. A file has only its own.
        data: The data that it was trained on (`load_data`). Only files that versions before
            `weight_loss` wrote need them.

    Raises:
        ValueError: If there is no such run, file or round, or if the file is damaged.
    """
    from experiments.tracking import networks  # here: it imports MLflow

    return networks.load_network(run, round, data)
