"""Clusters: a few values that all weights of a tensor share.

Trained quantisation of Han et al. 2016, arXiv:1510.00149: k-means finds the values of each tensor,
which are then trained, while each weight keeps its value's number.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from tqdm import tqdm

from datasets import Split, Splits
from experiments.processes.signals import raise_if_interrupted
from experiments.training.engine import DenseEngine, dense
from experiments.training.loop import derive_seed
from models.serving import NetworkSpec
from pruning.masks import Masks, State

LR = 2e-4  # of Adam, at first; it falls to zero (cosine)
BATCH = 60


@dataclass
class _Shared:
    """A tensor whose survivors share `values` [k]; pruned weights have number 0."""

    values: Tensor
    numbers: Tensor  # of each weight's value, from 1; int64, of the tensor's shape

    def tensor(self) -> Tensor:
        """All values, rounded to float16, zero where pruned."""
        rounded = self.values.half().float()
        return torch.cat([torch.zeros(1), rounded])[self.numbers]

    def gradient(self, whole: Tensor) -> Tensor:
        """The gradient of the values [k], from that of the tensor."""
        size = len(self.values) + 1
        return torch.bincount(self.numbers.flatten(), whole.flatten(), size)[1:]


def train_shared(
    spec: NetworkSpec, state: State, masks: Masks, data: Splits, count: int, epochs: int
) -> State:
    """The network with at most `count` values in each tensor, and zero; biases included.

    The values are those of float16.

    Args:
        epochs: In which the values are trained, from those of k-means. The network with the highest
            validation accuracy is returned; of equal ones that with the lowest loss.
    """
    shared = {name: _share(value, masks.get(name), count) for name, value in state.items()}
    engine = dense(spec.architecture, "cpu", bf16=False)
    values = [each.values for each in shared.values()]
    optimizer = torch.optim.Adam(values, lr=LR)
    steps = epochs * -(-len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    best, best_score = _tensors(shared), _score(engine, _tensors(shared), data.valid)
    for epoch in tqdm(range(epochs), "shared values", disable=None, leave=False):
        seed = derive_seed(epoch, "shared values")
        torch.manual_seed(seed)  # of dropout
        for images, labels in engine.batches(data.train, BATCH, seed):
            raise_if_interrupted()
            engine.load(_tensors(shared))
            _step(engine.model.train(), images, labels, shared)
            optimizer.step()
            schedule.step()
        score = _score(engine, _tensors(shared), data.valid)
        if score > best_score:
            best, best_score = _tensors(shared), score
    return best


def _share(tensor: Tensor, mask: Tensor | None, count: int) -> _Shared:
    """The values of k-means, which begins with values at equal distances, as in the paper."""
    some = tensor != 0 if mask is None else mask
    numbers = torch.zeros(tensor.shape, dtype=torch.int64)
    weights = tensor[some].numpy()
    different = len(np.unique(weights))
    if different <= count:
        values, found = np.unique(weights, return_inverse=True)
    else:
        start = np.linspace(weights.min(), weights.max(), count)[:, None]
        means = KMeans(count, init=start, n_init=1).fit(weights[:, None].astype(np.float64))
        values, found = means.cluster_centers_[:, 0], means.labels_
    numbers[some] = torch.from_numpy(found.astype(np.int64)) + 1
    return _Shared(torch.from_numpy(values.astype(np.float32)), numbers)


def _tensors(shared: dict[str, _Shared]) -> State:
    return {name: each.tensor() for name, each in shared.items()}


def _score(engine: DenseEngine, state: State, valid: Split) -> tuple[float, float]:
    engine.load(state)
    loss, accuracy = engine.evaluate(valid)
    return accuracy, -loss


def _step(model: nn.Module, images: Tensor, labels: Tensor, shared: dict[str, _Shared]) -> None:
    """Set the gradients of the values."""
    named = dict(model.named_parameters())
    loss = F.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, list(named.values()))
    for name, gradient in zip(named, gradients, strict=True):
        shared[name].values.grad = shared[name].gradient(gradient)
