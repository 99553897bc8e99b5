"""Metrics: what is measured of the network at the end of a round.

One record describes all of a metric. To add one: a record in `METRICS`. It is then logged, written
to rounds.csv, and kept by a resumed run; the flags say where else it appears.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isnan, nan
from typing import Literal

from torch import Tensor

from experiments.rounds.twin import Twin
from experiments.training.loop import Evaluation, Trained
from pruning import sizes
from pruning.masks import Masks

LAYER_PREFIX = "layer_sparsity/"  # of the metrics of each layer


@dataclass(frozen=True)
class TestResult:
    """What a trained network reaches on the test images; only reported, nothing is chosen by it."""

    loss: float
    accuracy: float
    early_stop_accuracy: float  # of the state of minimum validation loss
    correct: Tensor  # [N] bool, on the CPU: which images the network at the end gets right


@dataclass(frozen=True)
class Measured:
    """What a metric is computed from; see `Architecture` for `parameters` and `uses`."""

    trained: Trained
    masks: Masks
    engine: str  # that trained it
    parameters: int
    uses: Mapping[str, int]
    test: TestResult | None  # None where the data have no test images
    dense_valid_loss: float | None  # the dense network's at its early stop, if it is known
    twin: Twin | None  # None without the parameter `twin`

    @property
    def last(self) -> Evaluation:
        """The evaluation at the end of training."""
        return self.trained.evaluations[-1]

    @property
    def best(self) -> Evaluation:
        """The evaluation of minimum validation loss."""
        return self.trained.best


@dataclass(frozen=True)
class Metric:
    """A metric of a round: its name, how it is computed, and where it appears.

    Attributes:
        label: In tables and on axes.
        unit: A key of `UNITS`.
        measure: None for what only the caller knows: times, and the size of the checkpoint. It may
            return None where it has nothing to measure, and NaN for what did not happen.
        whole: Whether it is a whole number.
        required: Whether a stored round without it cannot be continued.
        optional: Whether a run may lack it; it is then left out everywhere.
        split: The images that it is measured on; a search has no test images.
        per_epoch: Whether it is also measured at the end of each epoch (a field of `Evaluation`).
        compared: Place among the metrics that a comparison tests over seeds; 0: not compared.
        averaged: Whether a search averages it over the seeds of a trial.
        headline: Whether its last value is logged for the whole run, as `final/<name>`.
    """

    label: str
    unit: str
    measure: Callable[[Measured], float | None] | None = None
    whole: bool = False
    required: bool = False
    optional: bool = False
    split: Literal["train", "valid", "test"] | None = None
    per_epoch: bool = False
    compared: int = 0
    averaged: bool = False
    headline: bool = False


UNITS = {
    "nats": "cross-entropy, natural logarithm",
    "accuracy": "share of the images that are classified correctly, in [0, 1]",
    "error": "share of the images that are classified incorrectly, in [0, 1]",
    "share": "share of the weights, in [0, 1]",
    "ratio": "times, at least 1",
    "iterations": "training steps",
    "weights": "number of weights",
    "bytes": "bytes",
    "seconds": "seconds",
    "flag": "1 for yes, 0 for no",
    "distance": "square root of the sum of squared differences of all values",
}


def _test(measured: Measured) -> TestResult:
    assert measured.test, "no test images"
    return measured.test


def _catch_up(measured: Measured) -> float | None:
    if measured.dense_valid_loss is None:
        return None
    reached = (
        each.iteration
        for each in measured.trained.evaluations
        if each.is_candidate and each.valid_loss <= measured.dense_valid_loss
    )
    return next(reached, nan)


def _barrier(split: str) -> Callable[[Measured], float | None]:
    return lambda m: m.twin.barrier[split] if m.twin else None


def _twin_accuracy(split: str) -> Callable[[Measured], float | None]:
    return lambda m: m.twin.accuracy[split] if m.twin else None


METRICS: dict[str, Metric] = {
    "train_loss": Metric(
        "training loss",
        "nats",
        lambda m: m.last.train_loss,
        split="train",
        per_epoch=True,
        averaged=True,
    ),
    "valid_loss": Metric(
        "validation loss",
        "nats",
        lambda m: m.last.valid_loss,
        split="valid",
        per_epoch=True,
        averaged=True,
    ),
    "valid_accuracy": Metric(
        "validation accuracy",
        "accuracy",
        lambda m: m.last.valid_accuracy,
        required=True,
        split="valid",
        per_epoch=True,
        compared=4,
        averaged=True,
        headline=True,
    ),
    "early_stop_iteration": Metric(
        "early-stop iteration",
        "iterations",
        lambda m: m.best.iteration,
        whole=True,
        compared=2,
        averaged=True,
    ),
    "early_stop_valid_loss": Metric(
        "validation loss at early stop", "nats", lambda m: m.best.valid_loss, split="valid"
    ),
    "early_stop_valid_accuracy": Metric(
        "validation accuracy at early stop",
        "accuracy",
        lambda m: m.best.valid_accuracy,
        split="valid",
        averaged=True,
    ),
    "catch_up_iteration": Metric(
        "iterations to the dense loss",
        "iterations",
        _catch_up,
        whole=True,
        optional=True,
        compared=5,
    ),
    "sparsity": Metric(
        "sparsity",
        "share",
        lambda m: sizes.sparsity(m.masks),
        required=True,
        averaged=True,
        headline=True,
    ),
    "remaining_weights": Metric(
        "remaining weights",
        "weights",
        lambda m: sizes.remaining_weights(m.masks),
        whole=True,
        averaged=True,
    ),
    "compression_ratio": Metric(
        "compression ratio",
        "ratio",
        lambda m: sizes.compression_ratio(m.parameters, m.masks),
        averaged=True,
        headline=True,
    ),
    "theoretical_speedup": Metric(
        "theoretical speed-up",
        "ratio",
        lambda m: sizes.theoretical_speedup(m.masks, m.uses),
        averaged=True,
        headline=True,
    ),
    "test_loss": Metric("test loss", "nats", lambda m: _test(m).loss, split="test", headline=True),
    "test_accuracy": Metric(
        "test accuracy",
        "accuracy",
        lambda m: _test(m).accuracy,
        required=True,
        split="test",
        per_epoch=True,
        compared=1,
        headline=True,
    ),
    "test_error": Metric("test error", "error", lambda m: 1 - _test(m).accuracy, split="test"),
    "early_stop_test_accuracy": Metric(
        "test accuracy at early stop",
        "accuracy",
        lambda m: _test(m).early_stop_accuracy,
        split="test",
        compared=3,
        headline=True,
    ),
    "train_barrier": Metric(
        "error barrier, training images",
        "error",
        _barrier("train"),
        split="train",
        optional=True,
        compared=7,
    ),
    "valid_barrier": Metric(
        "error barrier, validation images",
        "error",
        _barrier("valid"),
        split="valid",
        optional=True,
    ),
    "test_barrier": Metric(
        "error barrier, test images",
        "error",
        _barrier("test"),
        split="test",
        optional=True,
        compared=6,
    ),
    "twin_distance": Metric(
        "distance to the twin",
        "distance",
        lambda m: m.twin.distance if m.twin else None,
        optional=True,
        compared=8,
    ),
    "twin_valid_accuracy": Metric(
        "validation accuracy of the twin",
        "accuracy",
        _twin_accuracy("valid"),
        split="valid",
        optional=True,
    ),
    "twin_test_accuracy": Metric(
        "test accuracy of the twin",
        "accuracy",
        _twin_accuracy("test"),
        split="test",
        optional=True,
    ),
    "sparse_engine": Metric(
        "trained by the sparse engine",
        "flag",
        lambda m: int(m.engine == "sparse"),
        whole=True,
    ),
    "checkpoint_bytes": Metric("checkpoint", "bytes", whole=True, required=True),
    "round_seconds": Metric("time of the round", "seconds"),
    "train_seconds": Metric("time of its training steps", "seconds"),
}
COMPLETE = "checkpoint_bytes"  # logged last: a round that has it is complete
PER_EPOCH = tuple(name for name, metric in METRICS.items() if metric.per_epoch)
COMPARED = tuple(
    sorted(
        (name for name, metric in METRICS.items() if metric.compared),
        key=lambda name: METRICS[name].compared,
    )
)
AVERAGED = tuple(name for name, metric in METRICS.items() if metric.averaged)
HEADLINES = tuple(name for name, metric in METRICS.items() if metric.headline)


def measure(measured: Measured) -> dict[str, float]:
    """All metrics of a round that can be measured, and the sparsity of each layer."""
    metrics = {
        name: value
        for name, metric in METRICS.items()
        if metric.measure and (measured.test or metric.split != "test")
        if (value := metric.measure(measured)) is not None
    }
    layers = {
        layer_metric(name): sizes.sparsity({name: mask}) for name, mask in measured.masks.items()
    }
    return metrics | layers


def known(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are not NaN, for formats that have no NaN."""
    return {name: value for name, value in metrics.items() if not isnan(value)}


def layer_metric(name: str) -> str:
    """The metric of the sparsity of a prunable tensor."""
    return f"{LAYER_PREFIX}{name.removesuffix('.weight')}"


def in_order(row: Mapping[str, float], prunable: Iterable[str]) -> dict[str, float]:
    """A row of rounds.csv that was read back, in the order in which it is written.

    A metric that it lacks becomes NaN, or is left out if it is `optional`.
    """
    measured = [name for name, metric in METRICS.items() if metric.measure]
    layers = [layer for name in prunable if (layer := layer_metric(name)) in row]
    logged = [name for name, metric in METRICS.items() if not metric.measure]
    names = ("round", *measured, *layers, *logged)
    left_out = {name for name, metric in METRICS.items() if metric.optional} - row.keys()
    return {name: row.get(name, nan) for name in names if name not in left_out}
