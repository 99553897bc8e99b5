"""Bench of a search: trials per minute, and the cost of a trial besides its training.

    python -m experiments bench_tuning --storage postgresql+psycopg://user@host/bench

Its trials do all that a trial does, from the claim to the last metric in MLflow, except training:
their rounds end at once, with made-up accuracies. They are logged to MLFLOW_TRACKING_URI.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any
from uuid import uuid4

from datasets import Splits
from experiments.bench.timing import median_range
from experiments.config.experiment import Resolved
from experiments.config.parameters import validated
from experiments.config.tune import TuneConfig
from experiments.processes.pool import open_pool
from experiments.processes.program import PROGRAM
from experiments.processes.secrets import redact
from experiments.processes.terminal import Echo, print_line
from experiments.rounds.metrics import AVERAGED
from experiments.rounds.plan import plan_rounds
from experiments.rounds.rounds import BaseRun, RoundResult, Snapshot
from experiments.tracking import server
from experiments.tracking.session import claim_run, tracked_run
from experiments.tune import Progress, job_of, plan_searches
from experiments.tuning import trial
from experiments.tuning.storage import Storage
from experiments.tuning.study import Study

WARM_UP = 2  # trials of each worker that are not counted


def main(argv: Sequence[str] | None = None) -> None:
    """Print trials per minute for each number of workers."""
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} bench_tuning")
    parser.add_argument(
        "--storage",
        default="sqlite:///bench.db",
        help="Optuna's database (default: sqlite:///bench.db)",
    )
    parser.add_argument("--workers", default="1,2,4,8", help="worker counts (default: 1,2,4,8)")
    parser.add_argument("--trials", type=int, default=30, help="trials per worker (default: 30)")
    parser.add_argument("--turns", type=int, default=3, help="turns per worker count (default: 3)")
    args = parser.parse_args(argv)
    counts = [int(word) for word in args.workers.split(",")]
    tracking = server.without_login(server.tracking_uri())
    print_line(f"storage {redact(args.storage)}, tracking {tracking}")
    measured: dict[int, list[Measured]] = {count: [] for count in counts}
    for _ in range(args.turns):
        for count in counts:
            measured[count].append(measure(args.storage, count, args.trials * count))
    for count, turns in measured.items():
        print_line(f"{count} workers:")
        for name in ("trials_a_minute", "overhead_ms", "storage_ms"):
            print_line(f"  {name:<16} {median_range([each[name] for each in turns], '8.1f')}")


Measured = dict[str, float]


def measure(url: str, count: int, trials: int) -> Measured:
    """Run `trials` trials with `count` workers.

    Returns:
        `trials_a_minute` of all workers together, the median `overhead_ms` of a trial in its
        worker, and the part of it that is spent on the storage (`storage_ms`).
    """
    asked = {
        "dataset": "digits",
        "model": "lenet_30_20",
        "trials": trials + WARM_UP * count,
        "study": f"bench-{uuid4().hex[:8]}",
        "storage": url,
        "confirm_seeds": 0,
        "search": "prune_rate=0.15..0.3",
    }
    (search,) = plan_searches(validated(TuneConfig, asked))
    study = Study(search, Storage(url, 60, print_line))
    lines: list[str] = []
    with tracked_run("bench") as run_id, open_pool(count) as workers:
        job = job_of(study, run_id)
        progress = Idle({search.method: study}, {search.method: job}, workers, lines.append)
        with claim_run(job.study_run):
            while progress.advance():
                pass
    ended = sorted(t.timestamp() for t in study.table()["ended"])[WARM_UP * count :]
    costs = [line.partition("idle: ")[2].split() for line in lines if "idle: " in line]
    return {
        "trials_a_minute": 60 * (len(ended) - 1) / (ended[-1] - ended[0]),
        "overhead_ms": median(float(whole) for whole, _ in costs[WARM_UP * count :]),
        "storage_ms": median(float(part) for _, part in costs[WARM_UP * count :]),
    }


def idle_trial(job: trial.Job, echo: Echo) -> str:
    """Like `claim_and_run`, without training; prints its milliseconds and the storage's."""
    spent: list[float] = []
    retry = Storage.retry

    def timed(self: Storage, do: Any) -> Any:
        began = time.perf_counter()
        try:
            return retry(self, do)
        finally:
            spent.append(time.perf_counter() - began)

    began = time.perf_counter()
    vars(trial)["prune_rounds"] = at_once
    Storage.retry = timed  # type: ignore[method-assign]
    try:
        run_id = trial.claim_and_run(job, lambda line: None)
    finally:
        Storage.retry = retry  # type: ignore[method-assign]
    echo(f"idle: {1000 * (time.perf_counter() - began):.3f} {1000 * sum(spent):.3f}")
    return run_id


class Idle(Progress):
    """Like `Progress`, with trials that do not train."""

    work = staticmethod(idle_trial)


def at_once(
    config: Resolved, data: Splits, after: Snapshot | None = None, base: BaseRun | None = None
) -> Iterator[RoundResult]:
    """The rounds of an experiment that is not trained, with made-up accuracies."""
    del after, base
    rounds = plan_rounds(config, data)
    network = Snapshot(0, {}, {}, {}, {}, None)
    for number in range(len(rounds) + 1):
        metrics = dict.fromkeys(AVERAGED, 0.0)
        metrics["sparsity"] = config.target_sparsity * number / len(rounds)
        metrics["valid_accuracy"] = 1 - metrics["sparsity"] / (10 + config.retrain_epochs)
        yield RoundResult(network, metrics, (), {})
