"""Run: config, data, rounds, log. `mlflow run . -P reinit=lottery` comes down to this file."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from experiments.config.experiment import Config, Resolved
from experiments.config.fields import NONE
from experiments.processes.locks import run_lock
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import Echo, print_line
from experiments.rounds.data import load_data
from experiments.rounds.plan import plan_rounds
from experiments.rounds.rounds import RoundResult, prune_rounds
from experiments.tracking import log, server, summary
from experiments.tracking.branch import open_base_run
from experiments.tracking.environment import environment
from experiments.tracking.resume import StoredRun, load_run
from experiments.training.loop import Evaluation


def run_experiment(asked: Config, parent: str | None = None, echo: Echo | None = None) -> str:
    """Run, or resume, what was asked for; the id of its run.

    Args:
        parent: Run that it is nested under.
        tell: Told a line as each round ends, instead of the terminal being told everything.

    Raises:
        ValueError: If something asked for is wrong, missing or impossible.
    """
    server.check_tracking()
    if asked.resume == NONE:
        return _experiment(asked, None, parent, echo)
    with run_lock(asked.resume):  # before it is read, so that nobody adds to it meanwhile
        return _experiment(asked, load_run(asked), parent, echo)


def _experiment(
    asked: Config, stored: StoredRun | None, parent: str | None, echo: Echo | None
) -> str:
    wanted = stored.config if stored else asked
    wanted.resolved(wanted.dataset)  # tells what does not go together before anything is read
    data, why = load_data(wanted)
    config = wanted.resolved(data.name)
    data = data.to(config.device)
    last = len(plan_rounds(config, data))
    say = echo or print_line
    if not stored and asked.dataset != config.dataset:
        loud = "" if config.dataset == "mnist" else "WARNING: "
        say(f"{loud}dataset={asked.dataset} is {config.dataset} here ({why})")
    if stored:
        for warning in resume_warnings(stored, data.digest, config.device):
            say(warning)
        why = stored.tags.get("dataset_why", why)
    with (
        open_base_run(config, last, data.digest, stored.network if stored else None) as base,
        log.open_run(config, asked, data, why, last, stored, parent) as run,
        resume_hint(run.run_id, say),
    ):
        say(f"run {run.run_id}: {summary.run_name(config)}, {last} rounds after the dense one")
        events = prune_rounds(config, data, run.network, base)
        for result in with_progress(events, config, run.network is None, shown=echo is None):
            run.log_round(result)
            say(summary.round_line(run.history.rounds[-1], last))
        run.finish()
        rounds, _ = run.history.frames()
    if not echo:
        say(f"\n{summary.table(rounds)}\n\nTo look at it: {server.ui_command()}")
    return run.run_id


@contextmanager
def resume_hint(run_id: str, say: Echo) -> Iterator[None]:
    """Say how to go on after something that will not happen again of itself."""
    try:
        yield
    except ValueError:
        raise
    except BaseException:
        say(f"stopped; -P resume={run_id} goes on after the last complete round")
        raise


def with_progress(
    events: Iterator[Evaluation | RoundResult], config: Resolved, dense: bool, shown: bool
) -> Iterator[RoundResult]:
    """The rounds among `events`; a progress bar each shows the looks, if there is a terminal."""
    while True:
        epochs = config.epochs if dense else config.retrain_epochs
        name = "training" if dense else "retraining"
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


def resume_warnings(stored: StoredRun, digest: str, device: str) -> Iterator[str]:
    """Refuse other data than the run began with; yields why its end may differ in the last bits.

    Raises:
        ValueError: If the data are not those the run began with.
    """
    if digest != stored.tags.get("dataset_digest"):
        raise ValueError(
            f"resume: the data are not those that run {stored.run_id} began with; "
            f"it read {stored.tags.get('dataset_source')}"
        )
    for name, value in environment(device).items():
        if value != stored.tags.get(name):
            yield (
                f"warning: {name} is {value}, the run began with {stored.tags.get(name)}: "
                "it may not end bit for bit as it would have"
            )
