"""Tune: for these data and this size, how fast can we prune, and how long must we retrain?

mlflow run . -e tune -P reinit=all -P trials=50

Each reinit method has a study of its own in Optuna's storage. Any number of these commands, on any
number of machines, work on the same studies, and a later command continues them. Trials are chosen
by their accuracy on validation images; the recommended ones and the defaults are retrained with
fresh seeds, and only then tested.
"""

import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from shlex import quote
from typing import ClassVar

from tqdm import tqdm

from experiments.config.fields import NONE
from experiments.config.space import format_space, parse_space
from experiments.config.tune import TuneConfig, methods_of
from experiments.processes.executors import EXECUTORS, Needs
from experiments.processes.program import program_path
from experiments.processes.retry import retry
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.tasks import (
    STOPPED,
    THREADS_PER_WORKER,
    Executor,
    Outcome,
    Work,
    computing_with,
)
from experiments.processes.terminal import Echo, print_line
from experiments.rounds.data import load_data
from experiments.tracking import server, ui
from experiments.tracking.session import claim_run, close_killed_runs, tracked_run
from experiments.training.engine import usable
from experiments.tuning import runs
from experiments.tuning.choose import RUN, baseline_of, latest_failures, recommend
from experiments.tuning.confirm import Recommendation, confirm
from experiments.tuning.report import report
from experiments.tuning.search import Search
from experiments.tuning.storage import (
    Storage,
    absolute_url,
    is_file,
    parse_url,
)
from experiments.tuning.study import Study
from experiments.tuning.trial import Job, claim_and_run

RECLAIM_SECONDS = 10.0  # between searches for trials whose process died
POLL_SECONDS = 1.0  # while only other commands run trials
MOST_FAILURES = 10  # in a row, before the search ends


def run_search(asked: TuneConfig) -> str:
    """Search, then retrain, test and report what is recommended; the id of the search's run.

    Raises:
        ValueError: If a parameter is invalid, a study was begun with other settings, or too many
            trials fail.
        ConnectionError: If the storage or the tracking server does not answer in time.
    """
    config = asked.model_copy(update={"storage": absolute_url(asked.storage)})
    if config.search != NONE:  # a file may change or move while the search runs
        ranges = format_space(parse_space(config.search, {}))
        config = config.model_copy(update={"search": ranges})
    if config.executor == "ray":
        connect(config)
        config = config.with_absolute_paths()
    retry("the tracking server", server.ping, (Exception,), config.patience, print_line)
    print_line(ui.logging_to())
    searches = plan_searches(config)
    config = searches[0].config
    storage = Storage(config.storage, config.patience, print_line)
    studies = {search.method: Study(search, storage) for search in searches}
    for study in studies.values():
        study.check_settings()
    name = f"tune {config.reinit} {searches[0].dataset} {searches[0].model}"
    with tracked_run(name, tags={"kind": runs.SEARCH}) as run_id, ExitStack() as claims:
        runs.describe_search(run_id, config, searches[0])
        close_killed_runs(run_id, f"tags.kind = '{runs.SEARCH}'")
        jobs = {method: job_of(study, run_id) for method, study in studies.items()}
        ours = {m for m in jobs if claim_study(studies[m], jobs[m], claims)}
        needs = Needs(config.workers, searches[0].resolved({}).device, server.tracking_uri())
        with EXECUTORS[config.executor](needs) as workers:
            run_trials(studies, jobs, workers)
            for method in jobs.keys() - ours:  # the command that had claimed it may be gone
                if claim_study(studies[method], jobs[method], claims):
                    ours.add(method)
            recommended = recommend_all(studies, jobs, ours)
            tested = confirm(recommended, workers, print_message)
        report(run_id, recommended, tested)
    for method in studies.keys() - ours:
        print_line(f"{method}: all trials are done; another command reports them")
    print_line(f"\n{ui.how_to_view('the search', run_id)}")
    dashboard = quote(program_path("optuna-dashboard"))
    print_line(f"To see the studies: {dashboard} {quote(config.storage)}")
    return run_id


def plan_searches(config: TuneConfig) -> list[Search]:
    """Read the data of every seed once, and compile what is needed; the search for each method.

    Raises:
        ValueError: As `load_data` and `plan_rounds`.
    """
    methods, dataset, digests = methods_of(config.reinit), config.dataset, []
    for seed in config.seeds():
        data, why = load_data(config.config_of(methods[0], {"dataset": dataset}, seed))
        if dataset != data.name:
            print_line(f"WARNING: dataset={dataset} is {data.name} here ({why})")
        dataset = data.name
        digests.append(data.digest)
    engine = config.config_of(methods[0], {}, config.seed).resolved(dataset).engine
    with computing_with(THREADS_PER_WORKER):  # workers then load what is compiled here
        if usable(engine, print_line) != engine:
            config = config.model_copy(update={"engine": "dense"})
    searches = [
        Search(
            config=config,
            method=method,
            dataset=dataset,
            model=config.config_of(method, {}, config.seed).resolved(dataset).model,
            image_shape=data.image_shape,
            classes=data.classes,
            digests=tuple(digests),
        )
        for method in methods
    ]
    for search in searches:
        search.cost(search.baseline)  # raises before anything starts if it is impossible
    return searches


def job_of(study: Study, search_run: str) -> Job:
    """What workers need to know of a study; creates its run if it has none."""
    study_run = study.get_or_create_attr(
        RUN, lambda: runs.create_study_run(study.search, search_run)
    )
    return Job(
        search=study.search,
        study_run=study_run,
        experiment_id=runs.experiment_of(study_run, study.search),
        tracking_uri=server.tracking_uri(),
    )


def claim_study(study: Study, job: Job, claims: ExitStack) -> bool:
    """Claim a study's run until `claims` closes; False if another command has."""
    with study.storage.lock():
        return claims.enter_context(claim_run(job.study_run))


def run_trials(studies: dict[str, Study], jobs: dict[str, Job], workers: Executor) -> None:
    """Run trials until every study has as many as were asked for."""
    trials = next(iter(studies.values())).search.config.trials
    several = f"{len(studies)} studies of " if len(studies) > 1 else ""
    print_line(f"{several}{trials} trials, {workers.count} at a time")
    progress = Progress(studies, jobs, workers, print_message)
    with tqdm(total=trials * len(studies), disable=None, unit="trial", leave=False) as bar:
        while progress.advance():
            bar.n = sum(study.ended() for study in studies.values())
            bar.refresh()


@dataclass
class Progress:
    """Starts trials and waits for them, here or in other commands, until none is left."""

    studies: dict[str, Study]  # by method
    jobs: dict[str, Job]
    workers: Executor
    echo: Echo
    ended_before: dict[str, set[int]] = field(init=False)  # numbers of trials
    reclaimed: float = 0.0  # monotonic time of the last `reclaim_dead`
    submitted: Counter[str] = field(default_factory=Counter)  # tasks, by method
    work: ClassVar[Work] = staticmethod(claim_and_run)

    def __post_init__(self) -> None:
        self.ended_before = {
            method: {trial.number for trial in study.trials() if trial.state.is_finished()}
            for method, study in self.studies.items()
        }

    def advance(self) -> bool:
        """Start the trials that there is room for, and wait a little; False once all have ended."""
        if time.monotonic() - self.reclaimed > RECLAIM_SECONDS:
            self.reclaim_dead()
        self._submit()
        if self.workers.running:
            for name, outcome in self.workers.wait(self.echo, RECLAIM_SECONDS).items():
                self._handle(name.partition("#")[0], outcome)
            return True
        if all(study.ended() >= study.search.config.trials for study in self.studies.values()):
            self.reclaim_dead()
            return False
        raise_if_interrupted()
        time.sleep(POLL_SECONDS)
        return True

    def _submit(self) -> None:
        waiting = {method: study.waiting() for method, study in self.studies.items()}
        while self.workers.has_room and any(waiting.values()):
            # All methods advance at the same pace.
            method = min((m for m in waiting if waiting[m]), key=lambda m: self.submitted[m])
            waiting[method] -= 1
            self.submitted[method] += 1
            name = f"{method}#{self.submitted[method]}"
            self.workers.submit(name, self.work, self.jobs[method])

    def _handle(self, method: str, outcome: Outcome) -> None:
        if outcome.died or outcome.reason == STOPPED:
            end = f"died ({outcome.reason})" if outcome.died else "was stopped"
            self.echo(f"{method}: a worker {end}; its trial is retried{' once' * outcome.died}")
            self.reclaim_dead()
        elif outcome.reason:
            raise ValueError(f"{outcome.reason}; run the same command again to continue")
        failures = latest_failures(self.studies[method].trials(), self.ended_before[method])
        if len(failures) >= MOST_FAILURES:
            raise ValueError(
                f"the last {MOST_FAILURES} trials of {self.studies[method].search.name} failed, "
                f"the latest with: {failures[-1]}"
            )

    def reclaim_dead(self) -> None:
        """Reclaim the trials of dead processes, close their runs, and enqueue missing trials."""
        for method, study in self.studies.items():
            study.reclaim_dead()
            study.enqueue_missing()
            runs.close_dead(self.jobs[method].study_run, study.table())
        self.reclaimed = time.monotonic()


def recommend_all(
    studies: dict[str, Study], jobs: dict[str, Job], ours: set[str]
) -> list[Recommendation]:
    """The recommended trials of our studies, with the ranges that these have in the storage.

    Warns of a study without a complete trial.

    Raises:
        ValueError: If no study recommends a trial.
    """
    recommended: list[Recommendation] = []
    for method, mine in studies.items():
        if method not in ours:
            continue
        study = mine.with_stored_space()
        table = study.table()
        try:
            number = int(recommend(table, study.search)["number"])
        except ValueError as error:
            if len(ours) == 1:
                raise
            print_line(f"WARNING: {error}")
            continue
        params, run, default = (
            study.trials()[number].params,
            jobs[method].study_run,
            baseline_of(table),
        )
        recommended.append(
            Recommendation(
                study, number, params, run, None if default is None else int(default["number"])
            )
        )
    if ours and not recommended:
        raise ValueError("no trial of any study is complete, so none can be recommended")
    return recommended


def print_message(line: str) -> None:
    """Print a message of a worker without the number of its task."""
    sender, colon, message = line.partition(": ")
    print_line(f"{sender.partition('#')[0]}{colon}{message}")


def connect(config: TuneConfig) -> None:
    """Connect to the Ray cluster.

    Raises:
        ValueError: If there is no cluster, or its machines cannot reach the storage or the
            tracking server.
    """
    from experiments.processes import ray  # an optional package

    if is_file(parse_url(config.storage)):
        raise ValueError(
            "executor=ray needs a storage that all machines can reach, such as "
            f"postgresql+psycopg://<user>@<host>/optuna, got storage={config.storage}"
        )
    ray.connect(config.ray_address, server.tracking_uri(), config.storage)
