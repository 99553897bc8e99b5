"""Run: config, data, rounds, log. `mlflow run . -P reinit=lottery` comes down to this file."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from datasets import load_splits
from experiments import server, summary, tracking
from experiments.config import NONE, Config, Resolved, parse_config
from experiments.environment import environment
from experiments.liveness import Interrupted, check_stop, sole_worker, stop_signals
from experiments.rounds import RoundResult, plan, prune_rounds
from experiments.stored_run import StoredRun, find_run
from experiments.training import Look, derive_seed

USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run one experiment from the command line; mistakes become one line and a non-zero exit."""
    attached = server.attached_run()
    try:
        with stop_signals():
            experiment(parse_config(argv))
    except Interrupted as stop:
        sys.exit(128 + stop.number)
    except (*tracking.ERRORS, MemoryError, RuntimeError) as error:
        if not isinstance(error, tracking.ERRORS) and "memory" not in summary.explain(error):
            raise  # a mistake of ours, to be seen in full
        print(f"error: {summary.explain(error)}", file=sys.stderr)
        if attached and server.attached_run():  # not started yet, so nobody has marked it
            server.mark_failed(attached, error)
        sys.exit(USER_ERROR)


def experiment(asked: Config) -> str:
    """Run, or resume, what was asked for; the id of its run.

    Raises:
        ValueError: If something asked for is wrong, missing or impossible.
    """
    server.check_tracking()
    if asked.resume == NONE:
        return _experiment(asked, None)
    with sole_worker(asked.resume):  # before it is read, so that nobody adds to it meanwhile
        return _experiment(asked, find_run(asked))


def _experiment(asked: Config, stored: StoredRun | None) -> str:
    wanted = stored.config if stored else asked
    wanted.resolved(wanted.dataset)  # tells what does not go together before anything is read
    seed = derive_seed(wanted.seed, "split")
    raw = wanted.pretrained != NONE  # published networks know pixels in [0, 1]
    data, why = load_splits(
        wanted.dataset, wanted.data_root, seed, wanted.train_limit, standardise=not raw
    )
    config = wanted.resolved(data.name)
    data = data.to(config.device)
    last = len(plan(config, data))
    if not stored and asked.dataset != config.dataset:
        loud = "" if config.dataset == "mnist" else "WARNING: "
        say(f"{loud}dataset={asked.dataset} is {config.dataset} here ({why})")
    if stored:
        compare_with_start(stored, data.digest, config.device)
        why = stored.tags.get("dataset_why", why)
    with tracking.open_run(config, asked, data, why, last, stored) as run, resume_hint(run.run_id):
        say(f"run {run.run_id}: {summary.run_name(config)}, {last} rounds after the dense one")
        events = prune_rounds(config, data, run.network)
        for result in with_progress(events, config, dense=run.network is None):
            run.log_round(result)
            say(summary.round_line(run.history.rounds[-1], last))
        run.finish()
        rounds, _ = run.history.frames()
    say(f"\n{summary.table(rounds)}\n\nTo look at it: {server.ui_command()}")
    return run.run_id


@contextmanager
def resume_hint(run_id: str) -> Iterator[None]:
    """Say how to go on after something that will not happen again of itself."""
    try:
        yield
    except ValueError:
        raise
    except BaseException:
        say(f"stopped; -P resume={run_id} goes on after the last complete round")
        raise


def with_progress(
    events: Iterator[Look | RoundResult], config: Resolved, dense: bool
) -> Iterator[RoundResult]:
    """The rounds among `events`; a progress bar each shows the looks, if there is a terminal."""
    while True:
        epochs = config.epochs if dense else config.retrain_epochs
        name = "training" if dense else "retraining"
        with tqdm(total=epochs, desc=name, disable=None, leave=False, unit="epoch") as bar:
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


def compare_with_start(stored: StoredRun, digest: str, device: str) -> None:
    """Refuse other data than the run began with; say if its end may differ in the last bits.

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
            say(
                f"warning: {name} is {value}, the run began with {stored.tags.get(name)}: "
                "it may not end bit for bit as it would have"
            )


def say(text: str) -> None:
    """Print a line for the person who waits, at once."""
    tqdm.write(text)
    sys.stdout.flush()
