"""Compare: several methods, several seeds, and what can be said about them.

mlflow run . -e compare -P reinits=keep,random,lottery -P seeds=5

A comparison is a run with one nested run for each method and seed. The dense network of a seed is
trained once: the first arm of a seed leads, and the others branch off its run. Experiments that
were done before are found by their fingerprint and not done again, interrupted ones are resumed.
"""

from experiments.comparison import record
from experiments.comparison.report import make_report, report_text
from experiments.comparison.schedule import Facts, do_arms
from experiments.config.comparison import CompareConfig, arms_of, seeds_of
from experiments.processes.terminal import print_line
from experiments.rounds.data import load_data
from experiments.rounds.plan import plan_rounds
from experiments.tracking import server
from experiments.tracking.session import tracked_run


def compare_methods(config: CompareConfig) -> str:
    """Do what was asked for, report it, and return the id of the comparison's run.

    Raises:
        ValueError: If something asked for is wrong, missing or impossible, or no arm succeeded.
    """
    server.check_tracking()
    facts = look_ahead(config)
    shown = config.shown_round or facts.rounds
    if shown > facts.rounds:
        raise ValueError(f"shown_round must be at most {facts.rounds}, the last, got {shown}")
    with tracked_run(record.comparison_name(config, facts.resolved)) as run_id:
        record.describe(run_id, config, facts.resolved)
        outcomes = do_arms(config, facts, run_id, print_line)
        made = record.make_record(
            config,
            facts.resolved,
            outcomes,
            shown_round=shown,
            image_shape=list(facts.image_shape),
            images=facts.images,
            data_source=facts.source,
        )
        record.log_record(run_id, made)
        if not any(outcome.run_id for outcome in outcomes.values()):
            raise ValueError(f"every arm failed; {record.failure_lines(outcomes)[0]}")
        folder = make_report(run_id, made)
    print_line(f"\n{report_text(folder)}\n\nTo look at the runs: {server.ui_command()}")
    for line in record.failure_lines(outcomes):
        print_line(f"WARNING: failed: {line}; the same command does what is missing")
    return run_id


def look_ahead(config: CompareConfig) -> Facts:
    """Read the data of every seed once, and see what the arms come to.

    Raises:
        ValueError: As `load_data` and `plan`.
    """
    arms, digests = arms_of(config), {}
    dataset = config.dataset
    for seed in seeds_of(config.seeds):
        asked = config.config_of(arms[0].method, seed, dataset=dataset)
        data, why = load_data(asked)
        if dataset != data.name:
            print_line(f"WARNING: dataset={dataset} is {data.name} here ({why})")
        dataset, digests[seed] = data.name, data.digest
    resolved = asked.resolved(dataset)
    return Facts(
        dataset=dataset,
        digests=digests,
        resolved=resolved,
        rounds=len(plan_rounds(resolved, data)),
        image_shape=data.image_shape,
        images={part: len(getattr(data, part)) for part in ("train", "valid", "test")},
        source=data.source,
    )
