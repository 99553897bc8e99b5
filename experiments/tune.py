"""Tune: for these data and this size, how fast can we prune, and how long must we retrain?

mlflow run . -e tune -P reinit=all -P trials=50

Each reinit method has a study of its own in Optuna's storage. Any number of these commands, on any
number of machines, work on the same studies, and a later command continues them. Trials are chosen
by their accuracy on validation images; the recommended ones are retrained with fresh seeds, and
only then tested.
"""

from contextlib import ExitStack

from tqdm import tqdm

from experiments.config.tune import TuneConfig, methods_of
from experiments.processes.executors import EXECUTORS, Needs
from experiments.processes.retry import retry
from experiments.processes.tasks import Executor
from experiments.processes.terminal import print_line
from experiments.rounds.data import load_data
from experiments.tracking import server
from experiments.tracking.session import claim_run, tracked_run
from experiments.tuning import runs
from experiments.tuning.choose import RUN, recommend
from experiments.tuning.confirm import Recommendation, confirm
from experiments.tuning.progress import Progress
from experiments.tuning.report import report
from experiments.tuning.search import Search
from experiments.tuning.storage import absolute_url, is_file, open_storage, parse_url, redacted
from experiments.tuning.study import Study
from experiments.tuning.trial import Job


def run_search(asked: TuneConfig) -> str:
    """Search, then retrain, test and report what is recommended; the id of the search's run.

    Raises:
        ValueError: If a parameter is invalid, a study was begun with other settings, or too many
            trials fail.
        ConnectionError: If the storage or the tracking server does not answer in time.
    """
    config = asked.model_copy(update={"storage": absolute_url(asked.storage)})
    if config.executor == "ray":
        connect(config)
        config = config.with_absolute_paths()
    retry("the tracking server", server.ping, (Exception,), config.patience, print_line)
    searches = plan_searches(config)
    storage = open_storage(config.storage, config.patience, print_line)
    studies = {search.method: Study(search, storage) for search in searches}
    for study in studies.values():
        study.check_settings()
    name = f"tune {config.reinit} {searches[0].dataset} {searches[0].model}"
    with tracked_run(name) as run_id, ExitStack() as claims:
        runs.describe_search(run_id, config, searches[0])
        runs.close_dead_searches(run_id)
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
    print_line(f"\nTo see the runs: {server.ui_command()}")
    print_line(f"To see the studies: optuna-dashboard {redacted(asked.storage)}")
    return run_id


def plan_searches(config: TuneConfig) -> list[Search]:
    """Read the data of every seed once; the search for each method.

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


def recommend_all(
    studies: dict[str, Study], jobs: dict[str, Job], ours: set[str]
) -> list[Recommendation]:
    """The recommended trials of our studies; warns of a study without a complete trial.

    Raises:
        ValueError: If no study recommends a trial.
    """
    recommended: list[Recommendation] = []
    for method, study in studies.items():
        if method not in ours:
            continue
        try:
            number = int(recommend(study.table(), study.search)["number"])
        except ValueError as error:
            if len(ours) == 1:
                raise
            print_line(f"WARNING: {error}")
            continue
        params = study.params_of(number)
        recommended.append(Recommendation(study, number, params, jobs[method].study_run))
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
            f"postgresql+psycopg://user@host/optuna, got storage={config.storage}"
        )
    ray.connect(config.ray_address, server.tracking_uri(), redacted(config.storage))
