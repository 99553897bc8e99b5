"""Run: config, data, rounds, log. `mlflow run . -P reinit=lottery` runs this file."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from datasets import Splits
from experiments.config.experiment import Config, Resolved
from experiments.config.fields import NONE
from experiments.config.recipes import threads_for
from experiments.processes.locks import run_lock
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.tasks import computing_with
from experiments.processes.terminal import Echo, print_line
from experiments.rounds.data import few_tests_warning, load_data
from experiments.rounds.plan import plan_rounds
from experiments.rounds.rounds import RoundResult, prune_rounds
from experiments.tracking import log, server, summary, ui
from experiments.tracking.branch import open_base_run
from experiments.tracking.environment import COMMIT, environment
from experiments.tracking.fingerprint import code_digest, libraries
from experiments.tracking.paste import command_to_paste
from experiments.tracking.resume import StoredRun, load_run
from experiments.tracking.session import ANY_EXPERIMENT, close_killed_runs
from experiments.training.engine import compile_engine, usable
from experiments.training.loop import Evaluation

DEFAULT_ROOT = Config.model_fields["data_root"].default


def run_experiment(asked: Config, parent: str | None = None, echo: Echo | None = None) -> str:
    """Start or resume an experiment; returns the id of its run.

    Args:
        parent: Id of the run that a new one is nested under.
        echo: Gets a line as each round ends; without it, everything is printed.

    Raises:
        ValueError: If a parameter is invalid, or something that it names is missing.
    """
    server.check_tracking()
    if parent is None:
        (echo or print_line)(ui.logging_to())
    if asked.resume == NONE:
        return _experiment(asked, None, parent, echo)
    with run_lock(asked.resume):  # before it is read, so that no other process adds to it
        return _experiment(asked, load_run(asked), parent, echo)


def run_nested(config: Config, parent: str, digest: str | None, echo: Echo) -> str:
    """Run an experiment as a task of an executor; the id of its run.

    Args:
        digest: Of the data that the command has read; this machine may have different ones.

    Raises:
        ValueError: As `run_experiment`; also if the data of this machine are different.
    """
    if digest and config.resume == NONE and load_data(config)[0].digest != digest:
        raise ValueError(
            f"data_root: the data in {config.data_root} differ between the machines of the cluster"
        )
    return run_experiment(config, parent, echo)


def _experiment(
    asked: Config, stored: StoredRun | None, parent: str | None, echo: Echo | None
) -> str:
    chosen = stored.config if stored else asked
    chosen.resolved(chosen.dataset)  # rejects parameters that contradict each other before reading
    data, why = load_data(chosen)
    config = chosen.resolved(data.name)
    last = len(plan_rounds(config, data))
    show = echo or print_line
    with computing_with(None if parent else threads_for(config.model)):  # else its executor chose
        if not stored and not parent:
            config = config.model_copy(update={"engine": usable(config.engine, show)})
        elif problem := compile_engine(config.engine, show):
            raise ValueError(
                f"engine={config.engine} needs the sparse engine, which cannot be compiled here "
                f"({problem}): use another machine, or a new experiment with engine=dense"
            )
        return _rounds(asked, config, data.to(config.device), why, last, stored, parent, echo)


def _rounds(
    asked: Config,
    config: Resolved,
    data: Splits,
    why: str,
    last: int,
    stored: StoredRun | None,
    parent: str | None,
    echo: Echo | None,
) -> str:
    """Train and log all rounds that are left."""
    show = echo or print_line
    if not stored and asked.dataset != config.dataset:
        level = "" if config.dataset == "mnist" else "WARNING: "
        show(f"{level}dataset={asked.dataset} is {config.dataset} here ({why})")
    if data.test and not echo:
        for warning in few_tests_warning(len(data.test)):
            show(warning)
    if stored:
        for warning in resume_warnings(stored, config, data.digest):
            show(warning)
        why = stored.tags.get("dataset_why", why)
    with (
        open_base_run(config, last, data, stored.network if stored else None) as base,
        log.open_run(config, asked, data, why, last, stored, parent) as run,
        resume_hint(run.run_id, config.data_root, show),
    ):
        show(f"run {run.run_id}: {summary.run_name(config)}, {last} rounds after the dense one")
        if not parent:
            close_killed_runs(run.run_id, ANY_EXPERIMENT)
        events = prune_rounds(config, data, run.network, base)
        for result in with_progress(events, config, run.network is None, shown=echo is None):
            run.log_round(result)
            show(summary.round_line(run.history.rounds[-1], last))
            if emptied := summary.emptied_layers(run.history.rounds):
                names = ", ".join(emptied)
                show(f"WARNING: no weights are left in {names}, so the output there is constant")
        run.finish()
        rounds, _ = run.history.frames()
    if not echo:
        view = ui.how_to_view("this run", run.run_id, "all runs as charts")
        show(f"\n{summary.table(rounds)}\n\n{view}")
    return run.run_id


@contextmanager
def resume_hint(run_id: str, data_root: str, show: Echo) -> Iterator[None]:
    """Show how to resume after an interruption; an invalid parameter would only fail again."""
    moved = {} if data_root == DEFAULT_ROOT else {"data_root": data_root}
    command = command_to_paste("run", {"resume": run_id} | moved)  # the store may be lost later
    try:
        yield
    except ValueError:
        raise
    except BaseException:
        show(f"stopped; to continue after the last complete round: {command}")
        raise


def with_progress(
    events: Iterator[Evaluation | RoundResult], config: Resolved, dense: bool, shown: bool
) -> Iterator[RoundResult]:
    """The rounds among `events`; evaluations go to a progress bar, if there is a terminal."""
    while True:
        epochs = config.epochs if dense else config.retrain_epochs
        name = ("training" if dense else "retraining") + (" with twin" if config.twin else "")
        epochs *= 2 if config.twin else 1
        hide = None if shown else True
        with tqdm(total=epochs, desc=name, disable=hide, leave=False, unit="epoch") as bar:
            for event in events:
                raise_if_interrupted()
                if isinstance(event, RoundResult):
                    break
                bar.update(event.ends_epoch)
                bar.set_postfix(
                    iteration=event.iteration,
                    loss=f"{event.train_loss:.4f}",
                    valid=f"{event.valid_accuracy:.4f}",
                )
            else:
                return
        yield event
        dense = False


def resume_warnings(stored: StoredRun, config: Resolved, digest: str) -> Iterator[str]:
    """Reasons why a resumed run may end with other results than an uninterrupted one.

    Raises:
        ValueError: If the data are not those that the run began with.
    """
    if digest != stored.tags.get("dataset_digest"):
        raise ValueError(
            f"resume: the data are not those that run {stored.run_id} began with; "
            f"it read {stored.tags.get('dataset_source')}"
        )
    absent = [name for row in stored.history.rounds[:1] for name in row if math.isnan(row[name])]
    if absent:
        yield f"WARNING: {', '.join(absent)}: not logged by the version that began the run"
    now = environment(config.device) | {"code": code_digest(config)}
    unused = set() if "numba" in libraries(config) else {"version.numba"}
    for name in sorted(now.keys() - COMMIT - unused):  # what counts of a commit is in `code`
        before = stored.tags.get(name)
        if now[name] != before:
            yield (
                f"WARNING: {name} was {before} when the run began and is {now[name]} now; "
                "results may differ from those of an uninterrupted run"
            )
