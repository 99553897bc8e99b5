"""Trial: one choice of parameters, pruned and retrained round by round, and judged.

The seeds of a trial go round by round side by side, so that it can be stopped early by their mean.
They never see a test image: the data they are given have none. The dense network of a seed depends
on nothing that is searched by default, and is trained once a process.
"""

import json
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from time import perf_counter

from datasets import Splits
from experiments.config.experiment import Config, Resolved
from experiments.config.space import Value
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import Echo, describe_error
from experiments.rounds.data import load_data
from experiments.rounds.metrics import AVERAGED
from experiments.rounds.rounds import BaseRun, RoundResult, prune_rounds
from experiments.tracking import server
from experiments.tracking.session import TRACKING_ERRORS
from experiments.training.loop import Evaluation
from experiments.tuning.runs import TrialRun, open_trial
from experiments.tuning.sampling import levels_between
from experiments.tuning.search import Search
from experiments.tuning.storage import open_storage
from experiments.tuning.study import Claim, Study, TakenError
from experiments.tuning.table import RESULT, RUN

DENSE_KEPT = 4  # dense networks of each seed that a process remembers


@dataclass(frozen=True)
class Job:
    """All that a worker, on whatever machine, must know to do the trials of a study."""

    search: Search
    study_run: str  # id of the study's run in MLflow
    experiment_id: str
    tracking_uri: str


@dataclass(frozen=True)
class TrialResult:
    """What a trial came to, or how far it got."""

    complete: bool  # else stopped early
    result: dict[str, float]  # `valid_accuracy`, what it cost, and how far it went


def claim_and_run(job: Job, echo: Echo) -> str:
    """Do a trial of a study that waits to be done; the id of its run, or "" if none waits.

    Raises:
        ValueError: If this machine has other data than those that the study began with.
        ConnectionError: If the storage is gone.
    """
    with server.tracking_to(job.tracking_uri, job.experiment_id):
        return _claim_and_do(job, echo)


def _claim_and_do(job: Job, echo: Echo) -> str:
    search = job.search
    data = [data_of(search, seed) for seed in search.config.seeds()]
    storage = open_storage(search.config.storage, search.config.patience, echo)
    study = Study(search, storage)
    with study.claim() as claim:
        if claim is None:
            return ""
        try:
            return _do(job, study, claim, data, echo)
        except TakenError:
            echo(f"trial {claim.number}: taken away, since it gave no sign of life for too long")
            return ""
        except ValueError as error:
            failure = describe_error(error)
        except (KeyboardInterrupt, SystemExit, *TRACKING_ERRORS):  # not the parameters' fault
            study.lose(claim.id, counted=False)
            raise
        except BaseException as error:
            failure = describe_error(error)
            if "memory" not in failure:  # a mistake of ours, to be seen in full
                traceback.print_exc()
                failure = f"{type(error).__name__}: {failure}"
        study.end(claim, None, failure)
        echo(f"trial {claim.number}: failed: {failure}")
        return "failed"


def _do(job: Job, study: Study, claim: Claim, data: list[Splits], echo: Echo) -> str:
    search = job.search
    params = study.params(claim)
    said = " ".join(f"{name}={value}" for name, value in params.items())
    echo(f"trial {claim.number}: {said}")
    with open_trial(search, claim.number, params, job.study_run, echo) as run:
        study.write(claim, RUN, run.run_id)
        judged = run_trial(search, params, data, run, study, claim)
        run.log_result(judged.result)
        study.write(claim, RESULT, judged.result)
        values = [judged.result["valid_accuracy"], judged.result["total_epochs"]]
        single = search.config.objective == "accuracy"
        told = (values[:1] if single else values) if judged.complete else None
        if not study.end(claim, told):
            raise TakenError
        run.end("complete" if judged.complete else "stopped early")
    how = "" if judged.complete else f"stopped early at {judged.result['sparsity']:.0%} pruned, "
    echo(
        f"trial {claim.number}: {how}valid {judged.result['valid_accuracy']:.4f}, "
        f"{judged.result['total_epochs']} epochs"
    )
    return run.run_id


def run_trial(
    search: Search,
    params: Mapping[str, Value],
    data: list[Splits],
    run: TrialRun,
    study: Study,
    claim: Claim,
) -> TrialResult:
    """Prune and retrain with each of the seeds; raises as `prune_rounds`."""
    began, config = perf_counter(), search.resolved(params)
    networks = [
        _rounds(search.resolved(params, seed), splits, len(data))
        for seed, splits in zip(search.config.seeds(), data, strict=True)
    ]
    before, hopeless, number = None, False, -1
    for number, results in enumerate(zip(*networks, strict=True)):
        means = {name: fmean(each.metrics[name] for each in results) for name in AVERAGED}
        run.log_round(number, means | _by_seed(search, results))
        now = (means["sparsity"], means["valid_accuracy"])
        if search.config.objective == "accuracy":
            hopeless = study.report(claim, levels_between(before, now))
        before = now
        if hopeless:
            break
    cost = search.cost(params)
    assert before
    retraining = number * config.retrain_epochs
    result = {
        "valid_accuracy": before[1],
        "total_epochs": config.epochs + retraining,
        "retraining_epochs": retraining,
        "rounds": number,
        "sparsity": before[0],
        "seconds": round(perf_counter() - began, 3),
    }
    return TrialResult(complete=number == cost.rounds, result=result)


def _by_seed(search: Search, results: tuple[RoundResult, ...]) -> dict[str, float]:
    if len(results) == 1:
        return {}
    return {
        f"valid_accuracy/seed_{seed}": result.metrics["valid_accuracy"]
        for seed, result in zip(search.config.seeds(), results, strict=True)
    }


def data_of(search: Search, seed: int) -> Splits:
    """The data of a seed, without the test images.

    Raises:
        ValueError: If they are not those that the search began with.
    """
    config = search.config_of({}, seed)
    data = _load(config.model_copy(update={"dataset": search.dataset, "reinit": "lottery"}))
    if data.digest != search.digests[seed - search.config.seed]:
        raise ValueError(
            f"data_root: {config.data_root} on this machine has other data than those that the "
            "search began with"
        )
    return data.to(search.resolved({}).device)


@lru_cache(maxsize=16)
def _load(config: Config) -> Splits:
    return load_data(config)[0].without_test()


def _rounds(config: Resolved, data: Splits, seeds: int) -> Iterator[RoundResult]:
    key = json.dumps(config.dense_settings() | {"data": data.digest}, sort_keys=True)
    if key not in _dense:
        _dense[key] = next(_ended(prune_rounds(config, data)))
        if len(_dense) > DENSE_KEPT * seeds:
            del _dense[next(iter(_dense))]
    base = BaseRun(_dense[key], network=lambda number: _dense[key].network)
    yield from _ended(prune_rounds(config, data, base=base))


def _ended(events: Iterator[Evaluation | RoundResult]) -> Iterator[RoundResult]:
    for event in events:
        raise_if_interrupted()
        if isinstance(event, RoundResult):
            yield event


_dense: dict[str, RoundResult] = {}
