"""Compare: several methods over several seeds, with statistics, figures and a report page.

mlflow run . -e compare -P reinits=keep,random,lottery -P seeds=5

A comparison is a run with one nested run per method and seed. The dense network of a seed is
trained once; the other methods branch off it. Experiments that have already run are reused, and
interrupted ones are resumed.
"""

from experiments.comparison import record
from experiments.comparison.report import make_report, report_text
from experiments.comparison.schedule import Inputs, run_arms
from experiments.config.comparison import CompareConfig, arms_of, seeds_of
from experiments.processes.tasks import THREADS_PER_WORKER, computing_with
from experiments.processes.terminal import print_line
from experiments.rounds.data import few_tests_warning, load_data
from experiments.rounds.plan import plan_rounds
from experiments.tracking import server, ui
from experiments.tracking.session import close_killed_runs, describe, tracked_run
from experiments.training.engine import usable


def compare_methods(asked: CompareConfig) -> str:
    """Run a comparison and write its report; the id of its run.

    Raises:
        ValueError: If a parameter is wrong, something is missing, or every arm fails.
    """
    config = asked
    if asked.executor == "ray":
        from experiments.processes import ray  # an optional package

        ray.connect(asked.ray_address, server.tracking_uri())
        config = asked.with_absolute_paths()
    server.check_tracking()
    print_line(ui.logging_to())
    inputs = read_inputs(config)
    config = inputs.config
    tags = {"kind": record.COMPARISON, "dataset": inputs.resolved.dataset}
    tags["model"] = inputs.resolved.model
    with tracked_run(record.comparison_name(config, inputs.resolved), tags=tags) as run_id:
        describe(run_id, config.model_dump())
        close_killed_runs(run_id, f"tags.kind = '{record.COMPARISON}'")
        outcomes = run_arms(config, inputs, run_id, print_line)
        made = record.log_record(run_id, inputs.record, outcomes)
        if not any(outcome.run_id for outcome in outcomes.values()):
            raise ValueError(f"every arm failed; {record.failure_lines(outcomes)[0]}")
        folder = make_report(run_id, made)
    arms = [arm["run_id"] for arm in made.finished]
    view = ui.how_to_view("the comparison", run_id, "its arms as charts", arms)
    print_line(f"\n{report_text(folder)}\n\n{view}")
    for line in record.failure_lines(outcomes):
        print_line(f"WARNING: failed: {line}; the same command runs what is missing")
    return run_id


def read_inputs(config: CompareConfig) -> Inputs:
    """Read the data of every seed once, plan the rounds, and compile what they need.

    Raises:
        ValueError: As `load_data` and `plan_rounds`, and if `shown_round` is not one of these.
    """
    arms, digests = {arm.seed: arm for arm in reversed(arms_of(config))}, {}
    dataset = config.dataset
    for seed in seeds_of(config.seeds):
        first = config.config_of(arms[seed], dataset=dataset)
        data, why = load_data(first)
        if dataset != data.name:
            print_line(f"WARNING: dataset={dataset} is {data.name} here ({why})")
        dataset, digests[seed] = data.name, data.digest
    for warning in few_tests_warning(len(data.test) if data.test else 0):
        print_line(warning)
    resolved = first.resolved(dataset)
    rounds = len(plan_rounds(resolved, data))
    shown = config.shown_round or rounds
    if shown > rounds:
        raise ValueError(f"shown_round must be at most {rounds}, the last, got {shown}")
    with computing_with(THREADS_PER_WORKER):  # workers then load what is compiled here
        if usable(resolved.engine, print_line) != resolved.engine:
            config = config.model_copy(update={"engine": "dense"})
            resolved = resolved.model_copy(update={"engine": "dense"})
    made = record.Record(
        config=config.model_dump(),
        setting=record.setting_of(config, resolved),
        shown_round=shown,
        image_shape=list(data.image_shape),
        images={part: len(getattr(data, part)) for part in ("train", "valid", "test")},
        data_source=data.source,
        arms=[],
    )
    return Inputs(config, digests, resolved, made)
