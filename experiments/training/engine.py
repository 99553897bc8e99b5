"""Engines: how one network is trained and evaluated under one set of masks.

An engine holds a network's values, its masks and the state of its optimizer. The loop in
training/loop.py and the rounds use it through the protocol `Engine` alone. The invariant that every
engine keeps, after every step and every load: a pruned weight is exactly zero.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from math import prod
from threading import Timer
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import Split
from experiments.training.optimizers import OPTIMIZERS
from models import Architecture
from pruning.masks import Masks, State, apply_masks
from pruning.units import Widths, cut, live_units

EVAL_PIXELS = 2000 * 28 * 28  # in an evaluation batch; fast on a CPU, small enough for any GPU
LANES = 64  # as in kernels.py
COMPILING_SECONDS = 2.0  # before a line says so; loading from disk is faster
COMPILING = "compiling the sparse engine, which takes some seconds when it is first used"
GATHER_PIXELS = 10**6  # prepared at once, which is faster than batch by batch

Batch = Any  # whatever an engine's `batches` yields and its `train` takes


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
    grad_clip: float = 0.0  # largest norm of the gradient; 0 is no limit
    label_smoothing: float = 0.0


class Engine(Protocol):
    """Trains, evaluates and copies one network under one set of masks."""

    def start(self, state: State, masks: Masks, recipe: Recipe) -> None:
        """Load `state` under `masks`, with a new optimizer."""

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[Batch]:
        """All images of `split` once, in an order from `seed`; the last batch may be smaller."""

    def train(self, batches: Iterator[Batch], rates: Iterable[float], loss_sum: Tensor) -> None:
        """Take one step for each learning rate, with the next of `batches`.

        Each batch's mean loss is added to `loss_sum` in place.
        """

    def load(self, state: State) -> None:
        """Replace the values; masks and optimizer stay."""

    def evaluate(self, split: Split, correct: Tensor | None = None) -> tuple[float, float]:
        """Mean cross-entropy in nats, and accuracy in [0, 1].

        Args:
            correct: Bool [N], on the device of the labels; gets which images are classified
                correctly, in the order of `split`.
        """

    def snapshot(self) -> State:
        """A copy of all values, pruned weights exactly zero."""


class DenseEngine:
    """Dense products; pruned weights are multiplied by zero after every optimizer step.

    Momentum, Adam and weight decay all move a weight whose gradient is zero, so masking the
    gradient is not enough.

    Args:
        model: On the device where it is to be trained; the engine changes its values.
        bf16: Whether products are taken in bfloat16; weights and sums stay float32.
    """

    def __init__(self, model: nn.Module, bf16: bool = False) -> None:
        self.model, self.bf16, self.masks = model, bf16, Masks()

    def start(self, state: State, masks: Masks, recipe: Recipe) -> None:
        """As in `Engine`."""
        self.masks = masks
        self.load(apply_masks(state, masks))
        self._step = _stepper(self.model, masks, recipe, self.bf16)

    def batches(self, split: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Engine`: images as network inputs [n, channels, height, width], labels [n].

        `seed` also decides how images are cropped and mirrored.
        """
        for rows, generator in shuffled(split, batch_size, seed):
            stored, labels = split.stored(rows)
            images = split.view.varied(stored, generator)
            yield from zip(
                torch.split(images, batch_size), torch.split(labels, batch_size), strict=True
            )

    def train(self, batches: Iterator[Batch], rates: Iterable[float], loss_sum: Tensor) -> None:
        """As in `Engine`."""
        self.model.train()
        for lr, (images, labels) in zip(rates, batches, strict=False):
            loss_sum += self._step(images, labels, lr)

    def load(self, state: State) -> None:
        """As in `Engine`."""
        self.model.load_state_dict(state)

    @torch.no_grad()
    def evaluate(self, split: Split, correct: Tensor | None = None) -> tuple[float, float]:
        """As in `Engine`."""
        self.model.eval()
        loss = torch.zeros((), device=split.labels.device)
        correct = torch.empty_like(split.labels, dtype=torch.bool) if correct is None else correct
        size = max(1, EVAL_PIXELS // prod(split.image_shape))
        for rows in torch.split(torch.arange(len(split)), size):
            images, labels = split.stored(rows)
            with _precision(images, self.bf16):
                logits = self.model(split.view.fixed(images)).float()
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct[rows] = logits.argmax(1) == labels
        return float(loss) / len(split), int(correct.sum()) / len(split)

    def snapshot(self) -> State:
        """As in `Engine`."""
        state = {name: value.detach() for name, value in self.model.state_dict().items()}
        return apply_masks(state, self.masks)


def shuffled(split: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    """All rows of `split` in an order from `seed`, several batches at a time.

    The generator is for what else is random about the images of these rows.
    """
    batch_size = min(batch_size, len(split))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator)
    count = max(1, GATHER_PIXELS // (batch_size * prod(split.image_shape)))
    for rows in torch.split(order, count * batch_size):
        yield rows, generator


def dense(architecture: Architecture, device: str, bf16: bool) -> DenseEngine:
    """A `DenseEngine` on a PyTorch device, in the memory format that convolutions prefer."""
    model = architecture.build()
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return DenseEngine(model, bf16)


def compact(architecture: Architecture, device: str, bf16: bool) -> Engine:
    """A `CompactEngine`."""
    from experiments.training.compact import CompactEngine  # here: it imports this file

    return CompactEngine(architecture, device, bf16)


def sparse(architecture: Architecture, device: str, bf16: bool) -> Engine:
    """A `SparseEngine`.

    Raises:
        ValueError: If it cannot train this network, or not there.
    """
    if device != "cpu" or bf16:
        raise ValueError("engine=sparse needs device=cpu and precision=float32")
    from experiments.training.sparse import SparseEngine  # here: Numba takes long to import

    return SparseEngine(architecture)


ENGINES: dict[str, Callable[[Architecture, str, bool], Engine]] = {
    "dense": dense,
    "compact": compact,
    "sparse": sparse,
}


def choose(engine: str, masks: Masks, batch_size: int, widths: Widths) -> str:
    """The engine that trains a network: `engine`, or if that is "auto" the fastest one.

    Which one that is depends on the network and on the batch size only, so that the same seed gives
    the same bytes; docs/results.md says where the numbers come from.
    """
    if engine in ENGINES:
        return engine
    small = cut(masks, live_units(masks, widths), widths)
    weights = sum(mask.numel() for mask in small.values())
    survivors = sum(int(mask.sum()) for mask in small.values())
    computed = LANES * -(-batch_size // LANES)  # images; the last ones may be empty
    is_sparse = computed * survivors <= 0.35 * (batch_size + 20) * weights + 1_600_000
    return "sparse" if is_sparse else "compact"


def compile_engine(engine: str, show: Callable[[str], None]) -> str:
    """Compile what `engine` needs, once for this process; returns why that fails, or "".

    Args:
        show: Gets a line if compiling takes long, or leaves threads unused.
    """
    if engine in ENGINES and engine != "sparse":
        return ""
    notice = Timer(COMPILING_SECONDS, show, [COMPILING])
    try:
        from experiments.training import sparse as module

        notice.start()
        module.compile_kernels()
    except Exception as error:  # Numba and LLVM raise many kinds
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            return "the disk of Numba's cache is full; NUMBA_CACHE_DIR moves the cache"
        return " ".join(str(error).split()) or type(error).__name__
    finally:
        notice.cancel()
    if module.threads() < torch.get_num_threads():
        show(
            f"WARNING: the sparse engine computes with {module.threads()} of "
            f"{torch.get_num_threads()} threads: Numba has no more here"
        )
    return ""


def usable(engine: str, show: Callable[[str], None]) -> str:
    """Compile what `engine` needs; returns the engine to use.

    That is the same one, or if "auto" cannot be compiled "dense", and `show` gets a line.

    Raises:
        ValueError: If engine=sparse cannot be compiled.
    """
    problem = compile_engine(engine, show)
    if not problem:
        return engine
    if engine in ENGINES:
        raise ValueError(f"engine={engine} cannot be compiled here ({problem}): use engine=dense")
    show(f"WARNING: the sparse engine cannot be compiled here ({problem}): engine=auto is dense")
    return "dense"


def _stepper(
    model: nn.Module, masks: Masks, recipe: Recipe, bf16: bool
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
        with _precision(images, bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        gradients = [
            gradient
            if gradient.stride() == value.stride()
            else torch.empty_like(value).copy_(gradient)
            for gradient, value in zip(torch.autograd.grad(loss, parameters), values, strict=True)
        ]  # fused optimizers require that both have the same strides
        if recipe.grad_clip:
            for number, mask in masked.items():  # pruned weights do not count in the norm
                gradients[number].mul_(mask)
            clip(gradients, recipe.grad_clip)
        update(gradients, lr)
        for number, mask in masked.items():
            values[number].mul_(mask)
        return loss.detach()

    return step


def _precision(images: Tensor, bf16: bool) -> AbstractContextManager[object]:
    return torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext()


def clip(gradients: list[Tensor], largest: float) -> None:
    """Scale gradients in place, so that their joint norm is at most `largest`.

    Pascanu et al. 2013, arXiv:1211.5063.
    """
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1))
