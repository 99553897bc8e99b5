"""Tune: for these data and this size, how fast may one prune, and how long must one retrain?

mlflow run . -e tune -P reinit=all -P trials=50

Each reinit method is searched in a study of its own. Studies are kept in Optuna's storage, and any
number of these commands, on any number of machines, work on the same ones: what one has begun, the
next goes on with. Validation images alone choose; what is recommended is trained anew with fresh
seeds, and only that is tested.
"""

from contextlib import AbstractContextManager, ExitStack

from tqdm import tqdm

from experiments.config.tune import TuneConfig, methods_of
from experiments.processes.executors import EXECUTORS, Executor, Needs
from experiments.processes.retry import retry
from experiments.processes.terminal import print_line
from experiments.rounds.data import load_data
from experiments.tracking import server
from experiments.tracking.session import claim_run, tracked_run
from experiments.tuning import report, runs
from experiments.tuning.choose import recommend
from experiments.tuning.confirm import Chosen, confirm
from experiments.tuning.progress import Progress
from experiments.tuning.search import Search
from experiments.tuning.storage import absolute_url, is_file, open_storage, parse_url, redacted
from experiments.tuning.study import Study
from experiments.tuning.table import RUN
from experiments.tuning.trial import Job


def run_search(asked: TuneConfig) -> str:
    """Search as was asked for, confirm and report what is found; the id of the search's run.

    Raises:
        ValueError: If something asked for is wrong, missing or impossible, a study was begun with
            other settings, or too many trials fail.
        ConnectionError: If the storage or the tracking server does not answer in time.
    """
    config = asked.model_copy(update={"storage": absolute_url(asked.storage)})
    if config.executor == "ray":
        connect(config)
        config = config.with_absolute_paths()
    retry("the tracking server", server.ping, (Exception,), config.patience, print_line)
    searches = look_ahead(config)
    storage = open_storage(config.storage, config.patience, print_line)
    studies = {search.method: Study(search, storage) for search in searches}
    for study in studies.values():
        study.check_settings()
    name = f"tune {config.reinit} {searches[0].dataset} {searches[0].model}"
    with tracked_run(name) as run_id, ExitStack() as held:
        runs.describe_search(run_id, config, searches[0])
        runs.close_dead_searches(run_id)
        jobs = {method: job_of(study, run_id) for method, study in studies.items()}
        ours = {m for m in jobs if hold(studies[m], jobs[m], held)}
        with open_executor(config, searches) as workers:
            do_trials(studies, jobs, workers)
            for method in jobs.keys() - ours:  # whoever held it may be done, or dead
                if hold(studies[method], jobs[method], held):
                    ours.add(method)
            chosen = chosen_of(studies, jobs, ours)
            tested = confirm(chosen, workers, say)
        report.make(run_id, [(studies[each.search.method], each) for each in chosen], tested)
    for method in studies.keys() - ours:
        print_line(f"{method}: all trials are done; another command is about to report them")
    print_line(f"\nTo look at the runs: {server.ui_command()}")
    print_line(f"To look at the studies: optuna-dashboard {redacted(asked.storage)}")
    return run_id


def look_ahead(config: TuneConfig) -> list[Search]:
    """Read the data of every seed once; the search for each method.

    Raises:
        ValueError: As `load_data` and `plan`.
    """
    methods, dataset, digests = methods_of(config.reinit), config.dataset, []
    for seed in config.seeds():
        asked = config.config_of(methods[0], {"dataset": dataset}, seed)
        data, why = load_data(asked)
        if dataset != data.name:
            print_line(f"WARNING: dataset={dataset} is {data.name} here ({why})")
        dataset = data.name
        digests.append(data.digest)
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
        search.cost(search.baseline)  # tells what is impossible before anything begins
    return searches


def job_of(study: Study, search_run: str) -> Job:
    """What workers must know of a study, whose run is made if it has none."""
    study_run = study.noted(RUN, lambda: runs.new_study(study.search, search_run))
    return Job(
        search=study.search,
        study_run=study_run,
        experiment_id=runs.experiment_of(study_run, study.search),
        tracking_uri=server.tracking_uri(),
    )


def hold(study: Study, job: Job, held: ExitStack) -> bool:
    """Hold the run of a study to the end, unless another command does; whether it is ours."""
    with study.storage.sole():
        return held.enter_context(claim_run(job.study_run))


def do_trials(studies: dict[str, Study], jobs: dict[str, Job], workers: Executor) -> None:
    """See that every study gets as many trials as were asked for."""
    first = next(iter(studies.values())).search.config
    print_line(
        f"{len(studies)} studies of {first.trials} trials, {workers.count} at a time"
        if len(studies) > 1
        else f"{first.trials} trials, {workers.count} at a time"
    )
    progress = Progress(studies, jobs, workers, say)
    total = first.trials * len(studies)
    with tqdm(total=total, disable=None, unit="trial", leave=False) as bar:
        while progress.go_on():
            bar.n = sum(study.ended() for study in studies.values())
            bar.refresh()


def chosen_of(studies: dict[str, Study], jobs: dict[str, Job], ours: set[str]) -> list[Chosen]:
    """What our studies recommend; a study without a complete trial is told, and left out.

    Raises:
        ValueError: If no study recommends anything.
    """
    chosen: list[Chosen] = []
    for method in (method for method in jobs if method in ours):
        try:
            chosen.append(choose(studies[method], jobs[method]))
        except ValueError as error:
            if len(ours) == 1:
                raise
            print_line(f"WARNING: {error}")
    if ours and not chosen:
        raise ValueError("no trial of any study is complete, so nothing can be recommended")
    return chosen


def choose(study: Study, job: Job) -> Chosen:
    """What a study recommends."""
    row = recommend(study.table(), study.search)
    params = study.params_of(int(row["number"]))
    return Chosen(study.search, int(row["number"]), params, job.study_run)


def say(line: str) -> None:
    """Tell what a worker tells; who it is has a number that is ours alone."""
    who, colon, what = line.partition(": ")
    print_line(f"{who.partition('#')[0]}{colon}{what}")


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
            f"postgresql+psycopg://user@host/optuna, got storage={config.storage}"
        )
    ray.connect(config.ray_address, server.tracking_uri(), redacted(config.storage))


def open_executor(config: TuneConfig, searches: list[Search]) -> AbstractContextManager[Executor]:
    """Where the trials run."""
    device = searches[0].resolved({}).device
    return EXECUTORS[config.executor](Needs(config.workers, device, server.tracking_uri()))
