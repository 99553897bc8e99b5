"""Optimizers: PyTorch's fused updates, over plain lists of tensors.

The functional interface of `torch.optim` is used without its `Optimizer` classes: for a network as
small as LeNet-300-100 their bookkeeping takes as long as the update. Call
`OPTIMIZERS[name].start(parameters, momentum, weight_decay)`, then the result with the gradients and
the learning rate. To add one: write it here, add a line to `OPTIMIZERS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

Update = Callable[[Sequence[Tensor], float], None]


def start_adam(parameters: list[Tensor], momentum: float, weight_decay: float) -> Update:
    """Adam with beta 0.9 and 0.999, epsilon 1e-8. Kingma & Ba 2015, arXiv:1412.6980."""
    del momentum
    return _start_adaptive(adam, parameters, weight_decay)


def start_adamw(parameters: list[Tensor], momentum: float, weight_decay: float) -> Update:
    """Adam with decoupled weight decay: each step shrinks parameters by lr * weight_decay.

    Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    del momentum
    return _start_adaptive(adamw, parameters, weight_decay)


def _start_adaptive(
    method: Callable[..., None], parameters: list[Tensor], weight_decay: float
) -> Update:
    first = [torch.zeros_like(value) for value in parameters]
    second = [torch.zeros_like(value) for value in parameters]
    steps = [torch.zeros((), device=value.device) for value in parameters]

    def update(gradients: Sequence[Tensor], lr: float) -> None:
        method(
            parameters,
            list(gradients),
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    return update


def start_sgd(parameters: list[Tensor], momentum: float, weight_decay: float) -> Update:
    """Stochastic gradient descent with heavy-ball momentum."""
    buffers: list[Tensor | None] = [None] * len(parameters)

    def update(gradients: Sequence[Tensor], lr: float) -> None:
        sgd(
            parameters,
            list(gradients),
            buffers,
            fused=True,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    return update


@dataclass(frozen=True)
class Optimizer:
    """A way to update parameters in place, and its default learning rate.

    `has_kernel` says whether the sparse engine has it too (`UPDATES` in sparse.py).
    """

    start: Callable[[list[Tensor], float, float], Update]
    default_lr: float
    has_kernel: bool = False


OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Optimizer(start_adam, default_lr=1.2e-3, has_kernel=True),
    "adamw": Optimizer(start_adamw, default_lr=1e-3, has_kernel=True),
    "sgd": Optimizer(start_sgd, default_lr=0.1, has_kernel=True),
}
