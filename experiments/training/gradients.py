"""Gradients of the loss, and of the flow through a network, with respect to each weight.

They fill `pruning.criteria.Evidence`, for any state of a network::

    gradient(model, <data>, state) -> gradients

The network computes as in evaluation, with the values of `state`; its own are neither used nor
changed, so it may have none (`Architecture.skeleton`). Gradients have the names of
`models.prunable_weights` and the shapes of the weights, and are detached. To add one: write it
here, add a field to `Evidence`, and fill it in experiments/rounds/rounds.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from datasets import Split
from models import prunable_weights
from pruning.masks import State

# In a batch. Unlike evaluation, a gradient keeps all activations: 30 MB for an image of this size
# in lightcnn_9.
GRADIENT_PIXELS = 20 * 128 * 128


def loss_gradient(model: nn.Module, split: Split, state: State) -> State:
    """The gradient of the mean cross-entropy, in nats, over all images of `split`.

    The images are as in evaluation: not cropped or mirrored at random, no dropout, no label
    smoothing, float32 whatever the precision of training. Pruned weights have a gradient too.

    Args:
        state: All tensors of the network, on the device of the labels of `split`.

    Raises:
        ValueError: If a gradient is not finite.
    """
    weights = {name: state[name].detach().requires_grad_() for name in prunable_weights(model)}
    sums = {name: torch.zeros_like(state[name]) for name in weights}
    size = max(1, GRADIENT_PIXELS // prod(split.image_shape))
    with _evaluating(model):
        for rows in torch.split(torch.arange(len(split)), size):
            images, labels = split.stored(rows)
            logits = _call(model, state | weights, split.view.fixed(images))
            loss = F.cross_entropy(logits, labels, reduction="sum") / len(split)
            for name, part in _gradients(loss, weights).items():
                sums[name] += part
    return _finite(sums, "training loss")


def flow_gradient(model: nn.Module, image_shape: tuple[int, ...], state: State) -> State:
    """The gradient of the sum of the logits, for one image of ones, in the network of |parameters|.

    It is the gradient at |w| of Tanaka et al. 2020, arXiv:2006.05467. Buffers stay as they are.
    Computed and returned in float64, whatever the weights are: it is up to 5e38 for
    lightcnn_29_v2 at its initial values, beyond the range of float32.

    Args:
        image_shape: Channels, height and width of an input.
        state: All tensors of the network.

    Raises:
        ValueError: If a gradient is not finite.
    """
    parameters = {name for name, _ in model.named_parameters()}
    positive = {
        name: value.detach().double().abs() if name in parameters else _widened(value)
        for name, value in state.items()
    }
    weights = {name: positive[name].requires_grad_() for name in prunable_weights(model)}
    device = next(iter(weights.values())).device
    image = torch.ones(1, *image_shape, dtype=torch.float64, device=device)
    with _evaluating(model):
        flow = _call(model, positive | weights, image).sum()
    return _finite(_gradients(flow, weights), "flow")


def _call(model: nn.Module, state: State, images: Tensor) -> Tensor:
    # Strict: a value that the state lacks would otherwise be taken from the model.
    logits: Tensor = functional_call(model, state, (images,), strict=True)
    return logits


def _gradients(value: Tensor, weights: State) -> State:
    return dict(zip(weights, torch.autograd.grad(value, list(weights.values())), strict=True))


def _finite(gradients: State, of: str) -> State:
    for name, value in gradients.items():
        if not value.isfinite().all():
            raise ValueError(f"the gradient of the {of} is not finite in {name}")
    return gradients


def _widened(buffer: Tensor) -> Tensor:
    return buffer.double() if buffer.is_floating_point() else buffer


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every layer in evaluation mode until the block ends."""
    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
