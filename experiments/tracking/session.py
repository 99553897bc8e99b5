"""Sessions: a run in MLflow that this process works on, from its start to its end.

A process that works on a run holds its lock and renews its heartbeat (experiments/processes/
locks.py), so that others can distinguish a run in progress from one whose process was killed.
"""

import gc
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from traceback import clear_frames

import mlflow
from mlflow.entities import Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from experiments.config.fields import NONE
from experiments.config.parameters import as_text
from experiments.processes.locks import heartbeat, is_alive, lock_name, may_be_starting, run_lock
from experiments.processes.signals import Interrupted, defer_signals, raise_if_interrupted
from experiments.processes.terminal import DISK_FULL, describe_error
from experiments.tracking import orphan
from experiments.tracking.server import attached_run, short_timeouts

# MLflow would print the name of each run as it is; control characters act on a terminal.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
PARENT = "mlflow.parentRunId"
TRACKING_ERRORS = (OSError, MlflowException)  # a store or a server that does not answer
INTERNAL = "weight_loss."  # prefix of the tags that the program reads, which the UI lists last
ANY_EXPERIMENT = "tags.rounds_planned LIKE '%'"  # filter for all runs that `log.open_run` creates
NAME_CHARS = 250  # of a run's name, at most, in MLflow's databases
_DEFAULT_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # MLflow's, such as brawny-fox-12


@contextmanager
def tracked_run(
    name: str,
    resume: str = NONE,
    parent: str | None = None,
    tags: Mapping[str, str] | None = None,
    locked: bool = True,
) -> Iterator[str]:
    """The id of the run to log to: the one `mlflow run` has opened, a new one, or `resume`'s.

    On exit the run is marked FINISHED; KILLED if it was interrupted; FAILED, with the reason in
    the tag `error`, on any other exception.

    Args:
        name: Of a new run, or of one that has MLflow's default name.
        resume: Id of a run to continue, whose lock the caller holds (`run_lock`).
        parent: Id of the run that a new one is nested under.
        tags: Of a new run, from its first moment.
        locked: Whether the run gets a lock and a heartbeat; a trial's run does not, since the
            trial has both.

    Raises:
        ValueError: If this thread already logs to a run of MLflow.
    """
    if active := mlflow.active_run():
        raise ValueError(
            f"the MLflow run {active.info.run_id} is active: end it first (mlflow.end_run()), "
            "because this has a run of its own"
        )
    attached = attached_run()
    with ExitStack() as held, _marked_on_exit():
        with defer_signals():
            run_id = _start(name[:NAME_CHARS], resume, parent, tags or {})
        if resume == NONE:
            if locked:
                held.enter_context(run_lock(run_id))
        elif attached and attached != run_id and orphan.is_disposable(attached):
            orphan.label(attached, run_id)
            held.callback(orphan.delete_when_closed, attached)
        with heartbeat(lambda: write_heartbeat(run_id)) if locked else nullcontext():
            yield run_id
            raise_if_interrupted()


@contextmanager
def claim_run(run_id: str) -> Iterator[bool]:
    """Whether an existing run is now ours, since no other process works on it.

    If so, it is marked on exit, like a `tracked_run`.
    """
    run = mlflow.get_run(run_id)
    with ExitStack() as held:
        try:
            held.enter_context(run_lock(run_id))
        except ValueError:
            yield False
            return
        if is_running_elsewhere(run):
            yield False
            return
        mlflow.MlflowClient().update_run(run_id, status="RUNNING")
        _unmark(run)
        with _marked_on_exit(run_id), heartbeat(lambda: write_heartbeat(run_id)):
            yield True


@contextmanager
def _marked_on_exit(run_id: str | None = None) -> Iterator[None]:
    """Mark a run, by default MLflow's active one, with how the block ended."""
    status, tags = "FAILED", {}
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt as stop:
        signal = stop.signal_name if isinstance(stop, Interrupted) else "SIGINT"
        status, tags = "KILLED", {"interrupted": signal}
        # In the middle of a write to SQLite: what the frames hold would keep the file locked.
        clear_frames(stop.__traceback__)
        gc.collect()
        raise
    except BaseException as error:
        tags = {"error": describe_error(error)}
        raise
    finally:
        _close(run_id, status, tags)


def _close(run_id: str | None, status: str, tags: dict[str, str]) -> None:
    """Mark a run; a server that does not answer must not hide why the block ended."""
    client, active = mlflow.MlflowClient(), mlflow.active_run()
    if run_id is None and active is None:  # the block has ended its run itself
        return
    closing = run_id or str(active and active.info.run_id)
    try:
        with short_timeouts():
            if run_id is None:
                mlflow.end_run(status)
            else:
                client.set_terminated(run_id, status)
            for tag in tags.items():
                client.set_tag(closing, *tag)
    except TRACKING_ERRORS as error:
        if status == "FINISHED":
            raise
        reason = describe_error(error)
        if reason.startswith(DISK_FULL) and tags.get("error", "").startswith(DISK_FULL):
            return  # that line is the one that the user needs
        print(f"run {closing} could not be marked {status}: {reason}", file=sys.stderr)


def _unmark(run: MlflowRun) -> None:
    """Remove what `_marked_on_exit` wrote when an earlier command stopped."""
    for tag in {"error", "interrupted"} & run.data.tags.keys():
        mlflow.MlflowClient().delete_tag(run.info.run_id, tag)


def _start(name: str, resume: str, parent: str | None, tags: Mapping[str, str]) -> str:
    if resume != NONE:
        os.environ.pop("MLFLOW_RUN_ID", None)
        _unmark(mlflow.start_run(run_id=resume))
        return resume
    attached = attached_run()
    process = internal({"host": socket.gethostname(), "pid": str(os.getpid())})
    start = partial(
        mlflow.start_run,
        run_name=None if attached else name,
        parent_run_id=parent,
        tags={**tags, **process},
    )
    try:
        run = start()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # Another process has created the experiment since MLflow looked for it.
        run = start()
    if _DEFAULT_NAME.fullmatch(run.info.run_name):
        mlflow.MlflowClient().update_run(run.info.run_id, name=name)
    if not attached and mlflow.get_tracking_uri().startswith("http"):
        _delete_copies(run)
    return str(run.info.run_id)


def _delete_copies(run: MlflowRun) -> None:
    """Delete what a server made of a request that MLflow repeated because its answer was lost."""
    same = internal({name: tags_of(run)[name] for name in ("host", "pid")})
    where = [f"tags.`{name}` = '{value}'" for name, value in same.items()]
    where.append(f"attributes.start_time = {run.info.start_time}")
    client = mlflow.MlflowClient()
    for copy in client.search_runs([run.info.experiment_id], " AND ".join(where)):
        if copy.info.run_id != run.info.run_id and copy.info.run_name == run.info.run_name:
            client.delete_run(copy.info.run_id)


def describe(
    run_id: str, params: Mapping[str, object], tags: Mapping[str, str] | None = None
) -> None:
    """Log what a run is, params as a user types them.

    Params that `mlflow run` has already logged cannot change, and stay.
    """
    client = mlflow.MlflowClient()
    known = client.get_run(run_id).data.params
    new = [Param(name, as_text(value)) for name, value in params.items() if name not in known]
    client.log_batch(run_id, params=new, tags=[RunTag(*tag) for tag in (tags or {}).items()])


def internal(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that the program reads, as a run has them; `tags_of` is the inverse."""
    return {f"{INTERNAL}{name}": value for name, value in tags.items()}


def tags_of(run: MlflowRun) -> dict[str, str]:
    """The tags of a run without the prefix, which those of older versions do not have."""
    tags = run.data.tags
    return tags | {n.removeprefix(INTERNAL): tags[n] for n in tags if n.startswith(INTERNAL)}


def write_heartbeat(run_id: str) -> None:
    """Write to a run that this process works on it, and when it last did so."""
    tags = {"host": socket.gethostname(), "lock": lock_name(run_id), "heartbeat": f"{time.time()}"}
    with suppress(MlflowException):  # an error shows when a round is logged
        entries = [RunTag(*tag) for tag in internal(tags).items()]
        mlflow.MlflowClient().log_batch(run_id, tags=entries)


def is_running(run: MlflowRun) -> bool:
    """Whether a living process works on a run."""
    return run.info.status == "RUNNING" and is_alive(run.info.run_id, tags_of(run))


def is_running_elsewhere(run: MlflowRun) -> bool:
    """Whether a process that locks of this machine do not show works on a run."""
    return tags_of(run).get("lock") != lock_name(run.info.run_id) and is_running(run)


def dead_runs(experiment_id: str, where: str) -> Iterator[MlflowRun]:
    """The runs that are RUNNING although their process has died.

    Args:
        where: Which of the experiment's runs, as a filter of MLflow.
    """
    for run in mlflow.search_runs(
        [experiment_id],
        filter_string=f"{where} AND attributes.status = 'RUNNING'",
        output_format="list",
    ):
        starting = may_be_starting(tags_of(run), run.info.start_time / 1000)
        if not starting and not is_alive(run.info.run_id, tags_of(run)):
            now = mlflow.get_run(run.info.run_id)  # it may have finished since the search
            if now.info.status == "RUNNING" and not is_alive(run.info.run_id, tags_of(now)):
                yield now


def close_run(run_id: str, status: str, **tags: str) -> None:
    """Set tags of a run, such as `error`, and mark it as ended."""
    client = mlflow.MlflowClient()
    for tag in tags.items():
        client.set_tag(run_id, *tag)
    client.set_terminated(run_id, status)


def close_killed_runs(run_id: str, where: str) -> None:
    """Mark dead runs of this machine KILLED, and experiments nested under one that ended FAILED.

    A process that is killed cannot mark its own run, nor can one whose disk is full. A run that was
    just created is found only if it was created with the tags in `where`. Runs of other machines
    are left alone: a late heartbeat does not prove that their process died.

    Args:
        run_id: Run of this process; only its MLflow experiment is searched.
        where: Which runs to mark, as an MLflow filter string.
    """
    died = "its process died"
    with suppress(*TRACKING_ERRORS):  # not a reason to end the command; the next one tidies up
        experiment = mlflow.get_run(run_id).info.experiment_id
        here = f"tags.`{INTERNAL}host` = '{socket.gethostname()}'"
        for run in dead_runs(experiment, f"{where} AND {here}"):
            number = run.info.run_id
            if _is_visible(run) and number != run_id and PARENT not in run.data.tags:
                close_dead_runs(number, died)
                close_run(number, "KILLED", error=died)
        for run in dead_runs(
            experiment, f"tags.`{PARENT}` LIKE '%' AND {ANY_EXPERIMENT} AND {here}"
        ):
            parent = mlflow.get_run(run.data.tags[PARENT])
            if _is_visible(run) and parent.info.status != "RUNNING":  # else that one marks it
                close_run(run.info.run_id, "FAILED", error=died)


def _is_visible(run: MlflowRun) -> bool:
    """Whether locks of this machine show that a run is dead, not only its heartbeat."""
    return tags_of(run).get("lock") in (None, lock_name(run.info.run_id))


def close_dead_runs(parent: str, reason: str) -> None:
    """Mark the runs nested under `parent` FAILED whose process has died."""
    experiment = mlflow.get_run(parent).info.experiment_id
    for run in dead_runs(experiment, f"tags.`{PARENT}` = '{parent}'"):
        close_run(run.info.run_id, "FAILED", error=reason)
