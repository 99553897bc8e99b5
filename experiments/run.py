"""Run: config, data, rounds, log. `mlflow run . -P reinit=lottery` comes down to this file."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from experiments import server, summary, tracking
from experiments.command import obey
from experiments.config import Config, Resolved, parse_config
from experiments.data import load_data
from experiments.environment import environment
from experiments.fields import NONE
from experiments.liveness import check_stop, sole_worker
from experiments.removals import plan
from experiments.rounds import RoundResult, prune_rounds
from experiments.stored_run import StoredRun, find_run
from experiments.training import Look
from experiments.trunk import open_trunk

Tell = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> None:
    """Run one experiment from the command line."""
    obey(lambda: experiment(parse_config(argv)))


def experiment(asked: Config, parent: str | None = None, tell: Tell | None = None) -> str:
    """Run, or resume, what was asked for; the id of its run.

    Args:
        parent: Run that it is nested under.
        tell: Told a line as each round ends, instead of the terminal being told everything.

    Raises:
        ValueError: If something asked for is wrong, missing or impossible.
    """
    server.check_tracking()
    if asked.resume == NONE:
        return _experiment(asked, None, parent, tell)
    with sole_worker(asked.resume):  # before it is read, so that nobody adds to it meanwhile
        return _experiment(asked, find_run(asked), parent, tell)


def _experiment(
    asked: Config, stored: StoredRun | None, parent: str | None, tell: Tell | None
) -> str:
    wanted = stored.config if stored else asked
    wanted.resolved(wanted.dataset)  # tells what does not go together before anything is read
    data, why = load_data(wanted)
    config = wanted.resolved(data.name)
    data = data.to(config.device)
    last = len(plan(config, data))
    say = tell or print_line
    if not stored and asked.dataset != config.dataset:
        loud = "" if config.dataset == "mnist" else "WARNING: "
        say(f"{loud}dataset={asked.dataset} is {config.dataset} here ({why})")
    if stored:
        for warning in compare_with_start(stored, data.digest, config.device):
            say(warning)
        why = stored.tags.get("dataset_why", why)
    with (
        open_trunk(config, last, data.digest, stored.network if stored else None) as trunk,
        tracking.open_run(config, asked, data, why, last, stored, parent) as run,
        resume_hint(run.run_id, say),
    ):
        say(f"run {run.run_id}: {summary.run_name(config)}, {last} rounds after the dense one")
        events = prune_rounds(config, data, run.network, trunk)
        for result in with_progress(events, config, run.network is None, shown=tell is None):
            run.log_round(result)
            say(summary.round_line(run.history.rounds[-1], last))
        run.finish()
        rounds, _ = run.history.frames()
    if not tell:
        say(f"\n{summary.table(rounds)}\n\nTo look at it: {server.ui_command()}")
    return run.run_id


@contextmanager
def resume_hint(run_id: str, say: Tell) -> Iterator[None]:
    """Say how to go on after something that will not happen again of itself."""
    try:
        yield
    except ValueError:
        raise
    except BaseException:
        say(f"stopped; -P resume={run_id} goes on after the last complete round")
        raise


def with_progress(
    events: Iterator[Look | RoundResult], config: Resolved, dense: bool, shown: bool
) -> Iterator[RoundResult]:
    """The rounds among `events`; a progress bar each shows the looks, if there is a terminal."""
    while True:
        epochs = config.epochs if dense else config.retrain_epochs
        name = "training" if dense else "retraining"
        hide = None if shown else True
        with tqdm(total=epochs, desc=name, disable=hide, leave=False, unit="epoch") as bar:
            for event in events:
                check_stop()
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


def compare_with_start(stored: StoredRun, digest: str, device: str) -> Iterator[str]:
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


def print_line(text: str) -> None:
    """Print a line for the person who waits, at once."""
    tqdm.write(text)
    sys.stdout.flush()
