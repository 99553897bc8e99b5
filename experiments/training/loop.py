"""Training: one network under one set of masks, from a given state; no tracking, no pruning.

The loop keeps one invariant in one place: pruned weights are multiplied by zero after every
optimizer step, because momentum, Adam and weight decay move a weight whose gradient is zero. The
order of the images in epoch e, and how each is cropped and mirrored, is drawn from (seed, e),
whatever went before.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from math import isfinite, prod
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import Split, Splits
from experiments.training.optimizers import OPTIMIZERS
from pruning.masks import Masks, State, apply_masks

EVAL_PIXELS = 2000 * 28 * 28  # in an evaluation batch; fast on a CPU, small enough for any GPU
GATHER_PIXELS = 10**6  # made ready at once, which is faster than batch by batch


class DivergedError(ValueError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Recipe:
    """How to train: `lr` maps progress in [0, 1) through this training run to a learning rate."""

    optimizer: str
    lr: Callable[[float], float]
    momentum: float
    weight_decay: float
    batch_size: int
    epochs: int
    eval_every: int  # iterations; 0 is once an epoch
    grad_clip: float = 0.0  # largest norm of the gradient; 0 is any
    label_smoothing: float = 0.0
    bf16: bool = False  # bfloat16 autocast, in evaluation too


@dataclass(frozen=True)
class Evaluation:
    """A look at the network in training. `train_loss` is the mean over the epoch so far."""

    epoch: int  # 1 is the first
    iteration: int  # 1 is the first
    ends_epoch: bool
    train_loss: float
    valid_loss: float = float("nan")  # until somebody looks
    valid_accuracy: float = float("nan")
    test_accuracy: float = float("nan")  # where an epoch ends, if it is there; only reported


@dataclass(frozen=True)
class Trained:
    """What training leaves: the last state, the one of minimum validation loss, and the looks."""

    state: State
    best_state: State
    best_iteration: int
    snapshot: State | None  # after `snapshot_epoch` epochs, if that was asked for
    evaluations: tuple[Evaluation, ...]
    seconds: float  # in training steps, without the looks


def derive_seed(seed: int, *path: str | int) -> int:
    """A seed for one random stream, such as `derive_seed(seed, round, "batches")`, in [0, 2^63)."""
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def train(
    model: nn.Module,
    state: State,
    masks: Masks,
    data: Splits,
    recipe: Recipe,
    seed: int,
    snapshot_epoch: int | None = None,
) -> Generator[Evaluation, None, Trained]:
    """Train from `state` under `masks`; yields every look, returns what training leaves.

    Raises:
        DivergedError: If the training or validation loss is not finite.
    """
    model.load_state_dict(apply_masks(state, masks))
    torch.manual_seed(seed)  # for layers that are random themselves, such as dropout
    best, best_state, best_iteration = float("inf"), state, 0
    snapshot = _snapshot(model, masks) if snapshot_epoch == 0 else None
    evaluations: list[Evaluation] = []
    seconds, began = 0.0, perf_counter()
    for stop in _stops(model, masks, data.train, recipe, seed):
        seconds += perf_counter() - began
        valid_loss, valid_accuracy = evaluate(model, data.valid, recipe.bf16)
        evaluation = replace(stop, valid_loss=valid_loss, valid_accuracy=valid_accuracy)
        if evaluation.ends_epoch and data.test is not None:
            evaluation = replace(
                evaluation, test_accuracy=evaluate(model, data.test, recipe.bf16)[1]
            )
        _check_finite(evaluation)
        if valid_loss < best and _is_candidate(evaluation, recipe):
            best, best_state, best_iteration = (
                valid_loss,
                _snapshot(model, masks),
                evaluation.iteration,
            )
        if evaluation.ends_epoch and evaluation.epoch == snapshot_epoch:
            snapshot = _snapshot(model, masks)
        evaluations.append(evaluation)
        yield evaluation
        began = perf_counter()
    final = _snapshot(model, masks)
    return Trained(final, best_state, best_iteration, snapshot, tuple(evaluations), seconds)


def _stops(
    model: nn.Module, masks: Masks, split: Split, recipe: Recipe, seed: int
) -> Iterator[Evaluation]:
    """Train, and stop wherever an epoch ends or `eval_every` wants a look."""
    step = stepper(model, masks, recipe)
    per_epoch = -(-len(split) // recipe.batch_size)
    iteration = 0
    for epoch in range(1, recipe.epochs + 1):
        loss_sum = torch.zeros((), device=split.labels.device)
        model.train()
        batches = shuffled_batches(split, recipe.batch_size, derive_seed(seed, epoch))
        for seen, (images, labels) in enumerate(batches, start=1):
            progress = iteration / (recipe.epochs * per_epoch)
            loss_sum += step(images, labels, recipe.lr(progress))
            iteration += 1
            if seen == per_epoch or (recipe.eval_every and iteration % recipe.eval_every == 0):
                yield Evaluation(epoch, iteration, seen == per_epoch, float(loss_sum) / seen)
                model.train()


def _is_candidate(evaluation: Evaluation, recipe: Recipe) -> bool:
    """Whether early stopping may choose this iteration: it is on the grid, or the very last."""
    last = evaluation.ends_epoch and evaluation.epoch == recipe.epochs
    return last or not recipe.eval_every or evaluation.iteration % recipe.eval_every == 0


def _check_finite(evaluation: Evaluation) -> None:
    for loss in (evaluation.train_loss, evaluation.valid_loss):
        if not isfinite(loss):
            where = f"epoch {evaluation.epoch}, iteration {evaluation.iteration}"
            raise DivergedError(f"the loss is {loss} in {where}")


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, bf16: bool = False) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy in [0, 1]."""
    model.eval()
    loss = torch.zeros((), device=split.labels.device)
    right = torch.zeros((), device=split.labels.device, dtype=torch.int64)
    for rows in torch.split(
        torch.arange(len(split)), max(1, EVAL_PIXELS // prod(split.image_shape))
    ):
        images, labels = split.stored(rows)
        with _precision(images, bf16):
            logits = model(split.view.fixed(images)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        right += (logits.argmax(1) == labels).sum()
    return float(loss) / len(split), int(right) / len(split)


def _precision(images: Tensor, bf16: bool) -> AbstractContextManager[object]:
    """Where products are taken in bfloat16, if they are; weights and sums stay float32."""
    return torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext()


def stepper(
    model: nn.Module, masks: Masks, recipe: Recipe
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """A training step: images, labels and learning rate in, the batch's loss out."""
    parameters = list(model.parameters())
    values = [parameter.detach() for parameter in parameters]
    update = OPTIMIZERS[recipe.optimizer].start(values, recipe.momentum, recipe.weight_decay)
    masked = {
        number: torch.empty_like(values[number]).copy_(masks[name])
        for number, (name, _) in enumerate(model.named_parameters())
        if name in masks and not masks[name].all()
    }

    def step(images: Tensor, labels: Tensor, lr: float) -> Tensor:
        with _precision(images, recipe.bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        gradients = [
            gradient
            if gradient.stride() == value.stride()
            else torch.empty_like(value).copy_(gradient)
            for gradient, value in zip(torch.autograd.grad(loss, parameters), values, strict=True)
        ]  # fused optimizers take it for granted that both lie in memory alike
        if recipe.grad_clip:
            for number, mask in masked.items():  # pruned weights have no part in the norm
                gradients[number].mul_(mask)
            clip(gradients, recipe.grad_clip)
        update(gradients, lr)
        for number, mask in masked.items():
            values[number].mul_(mask)
        return loss.detach()

    return step


def clip(gradients: list[Tensor], largest: float) -> None:
    """Scale gradients in place, so that their common norm is `largest` at most.

    Pascanu et al. 2013, arXiv:1211.5063.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1))


def shuffled_batches(split: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, ready for the network, and labels; the last batch may be smaller.

    Their order, and how images are cropped and mirrored, is what `seed` says.
    """
    batch_size = min(batch_size, len(split))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator)
    batches = max(1, GATHER_PIXELS // (batch_size * prod(split.image_shape)))
    for rows in torch.split(order, batches * batch_size):
        stored, labels = split.stored(rows)
        images = split.view.varied(stored, generator)
        yield from zip(
            torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
        )


def _snapshot(model: nn.Module, masks: Masks) -> State:
    return apply_masks({name: value.detach() for name, value in model.state_dict().items()}, masks)
