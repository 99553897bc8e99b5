"""Checklist: what do Blalock et al. ask of a pruning experiment, and is it here?

Blalock et al. 2020, "What is the State of Neural Network Pruning?", arXiv:2003.03033, section 6
and the appendix, in our words. To add an item: a function of a `Comparison` that returns the answer
and its reason, and a line in `ITEMS`; an answer that never changes is written there directly.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from experiments.comparison.results import Comparison
from experiments.comparison.statistics import methods_of
from experiments.comparison.text import count, listed, ratio
from pruning.reinit import REINITS

Answer = Literal["yes", "partly", "no"]
Reply = tuple[Answer, str]
OPERATING_POINTS = (2, 4, 8, 16, 32)
NEAR = 1.12  # ratio: half a step of the customary 20% a round
SUBSTANTIAL = 0.02  # of accuracy
CLASSIC = {"magnitude", "random"}


def checklist(comparison: Comparison) -> dict[str, Reply]:
    """Each request, whether the comparison meets it, and why."""
    return {
        request: reply(comparison) if callable(reply) else reply for request, reply in ITEMS.items()
    }


def _pairs(comparison: Comparison) -> Reply:
    return "no", f"One pair: {comparison.setting['dataset']} and {comparison.setting['model']}."


def _reproducible(comparison: Comparison) -> Reply:
    commit, dirty = (comparison.environment[name] for name in ("git_commit", "git_dirty"))
    clean = commit != "unknown" and ", " not in commit and dirty == "false"
    return "yes" if clean else "partly", (
        "Command, settings, versions, processor and commit are on this page"
        f"{'' if clean else f', but git_commit is {commit} and git_dirty is {dirty}'}."
    )


def _operating_points(comparison: Comparison) -> Reply:
    summary = comparison.summary
    sizes = summary.loc[summary["round"] > 0, "compression_ratio"]
    near = [at for at in OPERATING_POINTS if (abs(np.log(sizes / at)) <= np.log(NEAR)).any()]
    found = listed([ratio(at) for at in near]) if near else "none"
    return "yes" if len(near) == len(OPERATING_POINTS) else "partly" if near else "no", (
        f"Covered within {NEAR - 1:.0%}: {found}; "
        f"{count(summary['round'].nunique() - 1, 'pruned size')} in all."
    )


def _extremes(comparison: Comparison) -> Reply:
    means = comparison.summary.pivot(index="round", columns="method", values="test_accuracy_mean")
    drop = float(np.nanmax((means.loc[0] - means).to_numpy(dtype=float)))
    return "yes" if drop >= SUBSTANTIAL else "no", (
        f"The largest drop below the dense network's mean is {100 * drop:.2f} points (this list "
        f"requires {100 * SUBSTANTIAL:.0f})."
    )


def _curves(comparison: Comparison) -> Reply:
    methods = comparison.methods
    return "yes" if len(methods) > 1 else "no", (
        f"{count(len(methods), 'method')}: {listed(methods)}."
    )


def _random_baseline(comparison: Comparison) -> Reply:
    at_random = "criterion == 'random' or control == 'random_mask'"
    found = methods_of(comparison.summary.query(at_random))
    return ("yes", f"{listed(found)}.") if found else ("no", "No method prunes at random.")


def _magnitude_baseline(comparison: Comparison) -> Reply:
    by_magnitude = "criterion == 'magnitude' and control == 'none'"
    found = methods_of(comparison.summary.query(by_magnitude))
    if not found:
        return "no", "No method prunes by magnitude."
    return "yes", f"{listed(found)} (scope: {comparison.setting['scope']})."


def _other_methods(comparison: Comparison) -> Reply:
    newer = sorted(set(comparison.summary["criterion"]) - CLASSIC)
    besides = f"Besides magnitude: {listed(newer)}. " if newer else ""
    return "partly" if newer else "no", (
        f"{besides}All are this project's own implementations; no published number is quoted."
    )


def _seeds(comparison: Comparison) -> Reply:
    fewest, most = comparison.summary["n"].min(), comparison.summary["n"].max()
    few = "" if fewest >= 3 else " Use at least three."
    return "yes" if fewest >= 3 else "partly" if most >= 2 else "no", (
        f"n = {fewest if fewest == most else f'{fewest} to {most}'} seeds.{few}"
    )


def _error_bars(comparison: Comparison) -> Reply:
    known = comparison.summary["test_accuracy_std"].notna()
    few = "" if known.all() else "; a mean of one seed has no spread"
    return "yes" if known.all() else "partly" if known.any() else "no", (
        f"{known.sum()} of {len(known)} means have a standard deviation (n \N{MINUS SIGN} 1) and "
        f"Student's 95% interval of the mean{few}."
    )


def _same_recipe(comparison: Comparison) -> Reply:
    starts = {name: REINITS[name].schedule for name in comparison.rounds["reinit"].unique()}
    epochs = comparison.retrain_epochs
    if len(set(epochs.values())) > 1:
        times = [f"{method} ({count(int(number), 'epoch')})" for method, number in epochs.items()]
        return "partly", (
            "Code, data, splits and optimizer are the same; how long a method retrains, and where "
            "its learning-rate schedule starts, is part of it: "
            f"{listed(times)}."
        )
    shared = "Code, data, splits, optimizer and epochs are the same"
    rates = {
        (REINITS[one["reinit"]].schedule, comparison.retrain_lr[one["method"]])
        for one in comparison.rounds.drop_duplicates("method").to_dict("records")
    }
    if len(rates) > len(set(starts.values())):
        own = [f"{method} ({rate:g})" for method, rate in comparison.retrain_lr.items()]
        return "partly", f"{shared}; learning rates of retraining differ: {listed(own)}."
    if len(set(starts.values())) == 1:
        return "yes", f"{shared}, and so is the learning-rate schedule."
    return "partly", (
        f"{shared}; where the learning-rate schedule starts is part of the method: "
        f"{listed([f'{name} ({where})' for name, where in starts.items()])}."
    )


ITEMS: dict[str, Callable[[Comparison], Reply] | Reply] = {
    "At least three pairs of data set and architecture, including large modern ones": _pairs,
    "Exact architecture, data, pre-processing and metrics, in one place": (
        "partly",
        "Names, settings and numbers of images are on this page; pre-processing and the metrics' "
        "definitions are in the project's docs/method.md.",
    ),
    "All hyperparameters, source code, libraries and hardware": _reproducible,
    "The same metrics for the network before pruning, and raw values at every point": (
        "yes",
        "Round 0 is the dense network of the same seed.",
    ),
    "Compression ratio (old size / new) and theoretical speed-up (multiply-adds)": (
        "yes",
        "Both are in the tables. Neither is a measured time.",
    ),
    "At least five operating points, such as 2, 4, 8, 16 and 32 times smaller": _operating_points,
    "Sizes so small that accuracy drops substantially": _extremes,
    "Trade-off curves beside those of competing methods": _curves,
    "Top-1 accuracy, and top-5 where there are many classes": (
        "partly",
        "Top-1 is reported; top-5 is not measured.",
    ),
    "A baseline of random pruning": _random_baseline,
    "A baseline of magnitude pruning, global or layer by layer": _magnitude_baseline,
    "Comparison with recent methods, and with methods from before 2010": _other_methods,
    "Several runs, each with its own seed and initial values": _seeds,
    "Means and sample standard deviations; error bars that say what they are": _error_bars,
    "The same code, data and fine-tuning recipe for every method": _same_recipe,
    "Claims no wider than the experiments": (
        "partly",
        "The sentences at the top are about this data set, this network and these seeds only. "
        "Wider conclusions are the reader's own.",
    ),
}
