"""Training: one network under one set of masks, from a given state; no tracking, no pruning.

The order of the images in epoch e, and how each is cropped and mirrored, comes from (seed, e) and
from nothing else.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import isfinite
from time import perf_counter

import torch

from datasets import Split, Splits
from experiments.training.engine import Engine, Recipe
from pruning.masks import Masks, State


class DivergedError(ValueError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Evaluation:
    """The network evaluated in training. `train_loss` is the mean over the epoch so far."""

    epoch: int  # from 1
    iteration: int  # from 1
    ends_epoch: bool
    train_loss: float
    valid_loss: float = float("nan")  # until it is evaluated
    valid_accuracy: float = float("nan")
    test_accuracy: float = float("nan")  # at the end of an epoch, given test images; only reported
    is_candidate: bool = False  # whether early stopping may choose this iteration


@dataclass(frozen=True)
class Trained:
    """The result of training: the last state, the one of minimum validation loss, evaluations."""

    state: State
    best_state: State
    best_iteration: int
    snapshot: State | None  # after `snapshot_epoch` epochs, if there was one
    evaluations: tuple[Evaluation, ...]
    seconds: float  # in training steps, evaluations excluded

    @property
    def best(self) -> Evaluation:
        """The evaluation of minimum validation loss."""
        return next(each for each in self.evaluations if each.iteration == self.best_iteration)


def derive_seed(seed: int, *path: str | int) -> int:
    """A seed for one random stream, such as `derive_seed(seed, round, "batches")`, in [0, 2^63)."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def train(
    engine: Engine,
    state: State,
    masks: Masks,
    data: Splits,
    recipe: Recipe,
    seed: int,
    snapshot_epoch: int | None = None,
) -> Generator[Evaluation, None, Trained]:
    """Train from `state` under `masks`; yields every evaluation, returns the result.

    Raises:
        DivergedError: If the training or validation loss is not finite.
    """
    engine.start(state, masks, recipe)
    torch.manual_seed(seed)  # for layers that are random themselves, such as dropout
    best, best_state, best_iteration = float("inf"), state, 0
    snapshot = engine.snapshot() if snapshot_epoch == 0 else None
    evaluations: list[Evaluation] = []
    seconds, began = 0.0, perf_counter()
    for stop in _stops(engine, data.train, recipe, seed):
        seconds += perf_counter() - began
        valid_loss, valid_accuracy = engine.evaluate(data.valid)
        evaluation = replace(
            stop,
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            is_candidate=_is_candidate(stop, recipe),
        )
        if stop.ends_epoch and data.test is not None:
            evaluation = replace(evaluation, test_accuracy=engine.evaluate(data.test)[1])
        _check_finite(evaluation)
        if valid_loss < best and evaluation.is_candidate:
            best, best_state, best_iteration = valid_loss, engine.snapshot(), stop.iteration
        if stop.ends_epoch and stop.epoch == snapshot_epoch:
            snapshot = engine.snapshot()
        evaluations.append(evaluation)
        yield evaluation
        began = perf_counter()
    final = engine.snapshot()
    return Trained(final, best_state, best_iteration, snapshot, tuple(evaluations), seconds)


def _stops(engine: Engine, split: Split, recipe: Recipe, seed: int) -> Iterator[Evaluation]:
    """Train, and stop wherever an epoch ends or `eval_every` asks for an evaluation."""
    per_epoch = -(-len(split) // recipe.batch_size)
    total, iteration = recipe.epochs * per_epoch, 0
    for epoch in range(1, recipe.epochs + 1):
        loss_sum = torch.zeros((), device=split.labels.device)
        batches = engine.batches(split, recipe.batch_size, derive_seed(seed, epoch))
        seen = 0
        while seen < per_epoch:
            steps = per_epoch - seen
            if recipe.eval_every:
                steps = min(steps, recipe.eval_every - iteration % recipe.eval_every)
            rates = (recipe.lr(step / total) for step in range(iteration, iteration + steps))
            engine.train(batches, rates, loss_sum)
            seen, iteration = seen + steps, iteration + steps
            yield Evaluation(epoch, iteration, seen == per_epoch, float(loss_sum) / seen)


def _is_candidate(evaluation: Evaluation, recipe: Recipe) -> bool:
    """Whether early stopping may choose this iteration: it is on the grid, or the very last."""
    last = evaluation.ends_epoch and evaluation.epoch == recipe.epochs
    return last or not recipe.eval_every or evaluation.iteration % recipe.eval_every == 0


def _check_finite(evaluation: Evaluation) -> None:
    for loss in (evaluation.train_loss, evaluation.valid_loss):
        if not isfinite(loss):
            where = f"epoch {evaluation.epoch}, iteration {evaluation.iteration}"
            raise DivergedError(f"the loss is {loss} in {where}")
