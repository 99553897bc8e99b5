"""Training: one network under one set of masks, from a given state; no tracking, no pruning.

The loop keeps one invariant in one place: pruned weights are multiplied by zero after every
optimizer step, because momentum, Adam and weight decay move a weight whose gradient is zero. The
order of the images in epoch e is a permutation drawn from (seed, e), whatever went before.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import Split, Splits
from experiments.optimizers import OPTIMIZERS
from pruning.masks import Masks, State, apply_masks

EVAL_BATCH = 2000  # images; the fastest on a CPU, and small enough for any GPU
GATHER = 50  # batches copied out of the training set at once, which is faster than one by one


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


@dataclass(frozen=True)
class Look:
    """A look at the network in training. `train_loss` is the mean over the epoch so far."""

    epoch: int  # 1 is the first
    epochs: int
    iteration: int  # 1 is the first
    ends_epoch: bool
    train_loss: float
    valid_loss: float
    valid_accuracy: float


@dataclass(frozen=True)
class Trained:
    """What training leaves: the last state, the one of minimum validation loss, and the looks."""

    state: State
    best_state: State
    best_iteration: int
    snapshot: State | None  # after `snapshot_epoch` epochs, if that was asked for
    looks: tuple[Look, ...]


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
) -> Generator[Look, None, Trained]:
    """Train from `state` under `masks`; yields every look, returns what training leaves.

    Raises:
        DivergedError: If the training or validation loss is not finite.
    """
    model.load_state_dict(apply_masks(state, masks))
    torch.manual_seed(seed)  # for layers that are random themselves, such as dropout
    step = _stepper(model, masks, recipe)
    per_epoch = -(-len(data.train) // recipe.batch_size)
    total, every = recipe.epochs * per_epoch, recipe.eval_every or per_epoch
    looks: list[Look] = []
    best, best_state, iteration = float("inf"), state, 0
    best_iteration, snapshot = 0, _snapshot(model, masks) if snapshot_epoch == 0 else None
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        loss_sum = torch.zeros((), device=data.train.labels.device)
        batches = _batches(data.train, recipe.batch_size, derive_seed(seed, epoch))
        for images, labels in batches:
            loss_sum += step(images, labels, recipe.lr(iteration / total))
            iteration += 1
            ends_epoch, looks_now = iteration % per_epoch == 0, iteration % every == 0
            if not (ends_epoch or looks_now):
                continue
            seen = iteration - (epoch - 1) * per_epoch
            look = _look(
                model, data.valid, loss_sum / seen, epoch, recipe.epochs, iteration, ends_epoch
            )
            if (looks_now or iteration == total) and look.valid_loss < best:
                best, best_iteration = look.valid_loss, iteration
                best_state = _snapshot(model, masks)
            looks.append(look)
            yield look
        if epoch == snapshot_epoch:
            snapshot = _snapshot(model, masks)
    return Trained(_snapshot(model, masks), best_state, best_iteration, snapshot, tuple(looks))


@torch.no_grad()
def evaluate(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy in [0, 1]."""
    model.eval()
    loss = torch.zeros((), device=split.labels.device)
    right = torch.zeros((), device=split.labels.device, dtype=torch.int64)
    for images, labels in zip(
        torch.split(split.images, EVAL_BATCH), torch.split(split.labels, EVAL_BATCH), strict=True
    ):
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        right += (logits.argmax(1) == labels).sum()
    return float(loss) / len(split), int(right) / len(split)


def _stepper(
    model: nn.Module, masks: Masks, recipe: Recipe
) -> Callable[[Tensor, Tensor, float], Tensor]:
    parameters = list(model.parameters())
    values = [parameter.detach() for parameter in parameters]
    update = OPTIMIZERS[recipe.optimizer].start(values, recipe.momentum, recipe.weight_decay)
    masked = [
        (value, masks[name].to(value.dtype))
        for (name, _), value in zip(model.named_parameters(), values, strict=True)
        if name in masks and not masks[name].all()
    ]

    def step(images: Tensor, labels: Tensor, lr: float) -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        update(torch.autograd.grad(loss, parameters), lr)
        for value, mask in masked:
            value.mul_(mask)
        return loss.detach()

    return step


def _batches(split: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    for chunk in torch.split(order.to(split.labels.device), GATHER * batch_size):
        images, labels = split.images.index_select(0, chunk), split.labels.index_select(0, chunk)
        yield from zip(
            torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
        )


def _look(
    model: nn.Module,
    valid: Split,
    loss: Tensor,
    epoch: int,
    epochs: int,
    iteration: int,
    ends: bool,
) -> Look:
    valid_loss, valid_accuracy = evaluate(model, valid)
    model.train()
    look = Look(epoch, epochs, iteration, ends, float(loss), valid_loss, valid_accuracy)
    if not (isfinite(look.train_loss) and isfinite(look.valid_loss)):
        raise DivergedError(
            f"the loss is {look.train_loss} in epoch {epoch}, iteration {iteration}"
        )
    return look


def _snapshot(model: nn.Module, masks: Masks) -> State:
    return apply_masks({name: value.detach() for name, value in model.state_dict().items()}, masks)
