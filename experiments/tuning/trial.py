"""Trial: one choice of parameters, pruned and retrained round by round.

The seeds of a trial advance together, round by round, so that their mean can stop it early. They
never see a test image: their data have none. By default a search does not vary what the dense
network of a seed depends on, so each process trains it once.
"""

import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from time import perf_counter

from datasets import Splits
from experiments.config.experiment import Config, Resolved
from experiments.config.space import Value
from experiments.processes.secrets import redact
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import Echo, describe_error
from experiments.rounds.data import load_data
from experiments.rounds.metrics import AVERAGED
from experiments.rounds.rounds import BaseRun, RoundResult, prune_rounds
from experiments.tracking import server
from experiments.tracking.session import TRACKING_ERRORS
from experiments.training.engine import compile_engine
from experiments.training.loop import Evaluation
from experiments.tuning.choose import RESULT, RUN
from experiments.tuning.runs import TrialRun, open_trial
from experiments.tuning.sampling import levels_between
from experiments.tuning.search import Search
from experiments.tuning.storage import Storage
from experiments.tuning.study import Claim, Study, TakenError

DENSE_KEPT = 4  # dense networks of each seed that a process keeps


@dataclass(frozen=True)
class Job:
    """All that a worker on any machine needs to run the trials of a study."""

    search: Search
    study_run: str  # id of the study's run in MLflow
    experiment_id: str
    tracking_uri: str


def claim_and_run(job: Job, echo: Echo) -> str:
    """Run a waiting trial of a study; the id of its run, or "" if none waits.

    Raises:
        ValueError: If the data of this machine are not those of the search, or it cannot compile
            the engine.
        ConnectionError: If the storage does not answer.
    """
    with server.tracking_to(job.tracking_uri, job.experiment_id):
        search = job.search
        engine = search.resolved({}).engine
        if problem := compile_engine(engine, echo):
            raise ValueError(f"engine={engine} cannot be compiled on this machine: {problem}")
        data = [data_of(search, seed) for seed in search.config.seeds()]
        study = Study(search, Storage(search.config.storage, search.config.patience, echo))
        with study.claim() as claim:
            return _run_claimed(job, study, claim, data, echo) if claim else ""


def _run_claimed(job: Job, study: Study, claim: Claim, data: list[Splits], echo: Echo) -> str:
    """Run a trial, and store in its study how it ends."""
    try:
        return _run_tracked(job, study, claim, data, echo)
    except TakenError:
        echo(f"trial {claim.number}: taken over, since its heartbeat had stopped for too long")
        return ""
    except ValueError as error:
        failure = describe_error(error)
    except (KeyboardInterrupt, SystemExit, *TRACKING_ERRORS):  # not the parameters' fault
        study.requeue(claim.id, counted=False)
        raise
    except BaseException as error:
        failure = describe_error(error)
        if "memory" not in failure:  # a bug: show all of it
            print(redact(traceback.format_exc()), file=sys.stderr)
            failure = f"{type(error).__name__}: {failure}"
    study.end(claim, None, failure)
    echo(f"trial {claim.number}: failed: {failure}")
    return "failed"


def _run_tracked(job: Job, study: Study, claim: Claim, data: list[Splits], echo: Echo) -> str:
    search, params = study.search, study.params(claim)
    echo(f"trial {claim.number}: {' '.join(f'{name}={params[name]}' for name in params)}")
    with open_trial(search, claim.number, params, job.study_run, echo) as run:
        study.set_attr(claim, RUN, run.run_id)
        values = run_trial(study, claim, params, data, run)
        complete = values["rounds"] == search.cost(params).rounds
        run.log_result(values)
        study.set_attr(claim, RESULT, values)
        objectives = [values[name] for name in search.objectives]
        if not study.end(claim, objectives if complete else None):
            raise TakenError
        run.end("complete" if complete else "stopped early")
    stopped = "" if complete else f"stopped early at {values['sparsity']:.0%} pruned, "
    echo(
        f"trial {claim.number}: {stopped}valid {values['valid_accuracy']:.4f}, "
        f"{values['total_epochs']} epochs"
    )
    return run.run_id


def run_trial(
    study: Study, claim: Claim, params: Mapping[str, Value], data: list[Splits], run: TrialRun
) -> dict[str, float]:
    """Prune and retrain with each seed, until the end or until the trial is stopped early.

    Returns the trial's `choose.RESULTS`, or how far it got; raises as `prune_rounds`.
    """
    began, search = perf_counter(), study.search
    config = search.resolved(params)
    seeds = [
        _rounds(search.resolved(params, seed), splits, len(data))
        for seed, splits in zip(search.config.seeds(), data, strict=True)
    ]
    before, number = None, -1
    for number, results in enumerate(zip(*seeds, strict=True)):
        means = {name: fmean(each.metrics[name] for each in results) for name in AVERAGED}
        by_seed = {
            f"valid_accuracy/seed_{seed}": each.metrics["valid_accuracy"]
            for seed, each in zip(search.config.seeds(), results, strict=True)
        }
        run.log_round(number, means | by_seed if len(results) > 1 else means)
        now = (means["sparsity"], means["valid_accuracy"])
        should_stop = search.config.objective == "accuracy" and study.record_levels(
            claim, levels_between(before, now)
        )
        before = now
        if should_stop:
            break
    assert before
    retraining = number * config.retrain_epochs
    return {
        "valid_accuracy": before[1],
        "total_epochs": config.epochs + retraining,
        "retraining_epochs": retraining,
        "rounds": number,
        "sparsity": before[0],
        "seconds": round(perf_counter() - began, 3),
    }


def data_of(search: Search, seed: int) -> Splits:
    """The data of a seed, without the test images.

    Raises:
        ValueError: If they are not those of the search.
    """
    config = search.config_of({}, seed)
    data = _load(config.model_copy(update={"dataset": search.dataset, "reinit": "lottery"}))
    if data.digest != search.digests[seed - search.config.seed]:
        raise ValueError(
            f"data_root: the data in {config.data_root} on this machine differ from those that the "
            "search began with"
        )
    return data.to(search.resolved({}).device)


@lru_cache(maxsize=16)
def _load(config: Config) -> Splits:
    return load_data(config)[0].without_test()


_dense: dict[str, RoundResult] = {}


def _rounds(config: Resolved, data: Splits, seeds: int) -> Iterator[RoundResult]:
    """Like `prune_rounds`, with a dense network that may come from an earlier trial."""
    key = json.dumps(config.dense_settings() | {"data": data.digest}, sort_keys=True)
    if key not in _dense:
        _dense[key] = next(_results(prune_rounds(config, data)))
        if len(_dense) > DENSE_KEPT * seeds:
            del _dense[next(iter(_dense))]
    base = BaseRun(_dense[key], network=lambda number: _dense[key].network)
    yield from _results(prune_rounds(config, data, base=base))


def _results(events: Iterator[Evaluation | RoundResult]) -> Iterator[RoundResult]:
    for event in events:
        raise_if_interrupted()
        if isinstance(event, RoundResult):
            yield event
