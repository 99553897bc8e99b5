"""Summary: an experiment in words, for the terminal and for MLflow's list of runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.config.experiment import Config, Resolved
from experiments.config.parameters import as_text
from experiments.processes.terminal import table_text
from experiments.rounds.metrics import HEADLINES, LAYER_PREFIX

UNNAMED = ("device", "data_root", "resume", "branch_of")  # they do not change a result


def run_name(config: Resolved) -> str:
    """A name for lists of runs, such as `lottery mnist lenet_300_100 90% seed 0`.

    It includes every other parameter that is not at its default.
    """
    how_far = f"{config.rounds} rounds" if config.rounds else f"{100 * config.target_sparsity:g}%"
    always = ("reinit", "dataset", "model", "target_sparsity", "rounds", "seed")
    default = _with_defaults(config, "reinit", "model")
    method = ("reinit", "model", "optimizer", "schedule")
    default["lr"] = _with_defaults(config, *method)["lr"]
    follows = _with_defaults(config, *method, "lr", "epochs", "rewind_epoch", "criterion")
    # These follow from others, which are named.
    for name in ("retrain_epochs", "retrain_lr", "warmup_epochs", "scope"):
        default[name] = follows[name]
    default["output_prune_rate"] = config.prune_rate
    default["pixels"] = _with_defaults(config, *method, "pretrained")["pixels"]
    default |= dict.fromkeys(config.streams(), config.seed)
    extras = [
        f"{name}={as_text(value)}"
        for name, value in config.model_dump().items()
        if value != default[name] and name not in (*always, *UNNAMED)
    ]
    words = [config.reinit, config.dataset, config.model, how_far, *extras, f"seed {config.seed}"]
    return " ".join(words)


def _with_defaults(config: Resolved, *given: str) -> dict[str, Any]:
    """The config with these of its parameters, and all others at their defaults."""
    chosen = config.model_dump(include=set(given))
    return Config(**chosen).resolved(config.dataset).model_dump()


def round_line(row: Mapping[str, float], last: int) -> str:
    """One finished round on one line."""
    return (
        f"round {row['round']:>{len(str(last))}.0f}/{last}  "
        f"remaining {1 - row['sparsity']:7.2%}  "
        f"valid {row['valid_accuracy']:.4f}  test {row['test_accuracy']:.4f}  "
        f"loss {row['train_loss']:.4f}  {row['round_seconds']:.1f} s"
    )


def emptied_layers(rounds: Sequence[Mapping[str, float]]) -> list[str]:
    """The layers that lost their last weight in the last of these rounds."""
    before, last = rounds[-2] if len(rounds) > 1 else {}, rounds[-1]
    return [
        name.removeprefix(LAYER_PREFIX)
        for name, share in last.items()
        if name.startswith(LAYER_PREFIX) and share == 1 and before.get(name) != 1
    ]


def table(rounds: pd.DataFrame) -> str:
    """The rounds as a table of at most 80 columns."""
    columns = {
        "round": rounds["round"],
        "weights\nleft": rounds["sparsity"].map(lambda share: f"{1 - share:.2%}"),
        "valid\naccuracy": rounds["valid_accuracy"].map("{:.4f}".format),
        "test\naccuracy": rounds["test_accuracy"].map("{:.4f}".format),
        "early-stop\niteration": rounds["early_stop_iteration"].map("{:,}".format),
        "test at\nearly stop": rounds["early_stop_test_accuracy"].map("{:.4f}".format),
        "fewer\nparams": rounds["compression_ratio"].map("{:.1f}x".format),
        "checkpoint\nsize": rounds["checkpoint_bytes"].map(lambda size: f"{size / 1000:,.0f} kB"),
    }
    return f"{table_text(columns)}\nEarly stop: the iteration with the lowest validation loss."


def headlines(rounds: pd.DataFrame) -> dict[str, float]:
    """The results of the last and of the dense network, as metrics of the whole run."""
    dense, final = rounds.iloc[0], rounds.iloc[-1]
    values = {f"final/{name}": float(final[name]) for name in HEADLINES}
    return {"dense/test_accuracy": float(dense["test_accuracy"])} | values


def description(config: Resolved, rounds: pd.DataFrame, rounds_planned: int, why: str) -> str:
    """A run in a few lines of Markdown: its settings, and its results so far."""
    dense, final = rounds.iloc[0], rounds.iloc[-1]
    change = 100 * (final["test_accuracy"] - dense["test_accuracy"])
    rate = f"{config.prune_rate:g} of the surviving weights a round (scope {config.scope}"
    if config.output_prune_rate != config.prune_rate:
        rate += f", {config.output_prune_rate:g} in the output layer"
    return "\n".join(
        [
            f"**{config.model}** on **{config.dataset}**, seed {config.seed}: "
            f"*{config.criterion}* pruning, {rate}), survivors restart by **{config.reinit}**.",
            "",
            f"Round {final['round']:.0f} of {rounds_planned}: "
            f"**{final['sparsity']:.2%} pruned**, test accuracy "
            f"**{final['test_accuracy']:.4f}** against {dense['test_accuracy']:.4f} dense "
            f"({change:+.2f} points); {final['compression_ratio']:.1f} times fewer parameters, "
            f"{final['theoretical_speedup']:.1f} times fewer multiply-adds, "
            f"{final['checkpoint_bytes'] / 1000:,.0f} kB on disk against "
            f"{dense['checkpoint_bytes'] / 1000:,.0f} kB.",
            "",
            "Networks: `checkpoints/`. Figures: `plots/`. Numbers: `rounds.csv`, `epochs.csv`. "
            f"Data: {why}.",
        ]
    )
