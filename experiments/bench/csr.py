"""A training step with PyTorch's own sparse matrices, for the bench: CSR products, fused Adam.

Autograd's gradient of a CSR matrix takes three times as long as `sampled_addmm`, which computes it
at the survivors only, so that is used here.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models import Architecture, linear_layers
from pruning.masks import Masks, State


class Product(torch.autograd.Function):
    """The product of a CSR matrix [outputs, inputs] and unit by image values [inputs, images]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, matrix: "Matrix") -> Tensor:
        """The product; `weight` has the survivors of `matrix`."""
        ctx.save_for_backward(weight, values)
        ctx.matrix = matrix
        product: Tensor = torch.sparse.mm(matrix.with_values(weight), values)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, errors: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """The gradients of `weight` and, where needed, of `values`."""
        weight, values = ctx.saved_tensors
        pattern = ctx.matrix.with_values(torch.zeros_like(weight))
        gradient = torch.sparse.sampled_addmm(pattern, errors.contiguous(), values.t()).values()
        before = None
        if ctx.needs_input_grad[1]:
            before = torch.sparse.mm(ctx.matrix.transposed(weight), errors)
        return gradient, before, None


class Matrix:
    """Where the survivors of a layer are, in CSR order, and in that of the transposed matrix."""

    def __init__(self, mask: Tensor) -> None:
        self.shape = tuple(mask.shape)
        with warnings.catch_warnings():  # at the first matrix: it is a beta version
            warnings.simplefilter("ignore")
            own = mask.to_sparse_csr()
        self.rows, self.columns = own.crow_indices(), own.col_indices()
        number = mask.double()  # counts the survivors; exact
        number[mask] = torch.arange(1, int(mask.sum()) + 1, dtype=torch.float64)
        other = number.t().to_sparse_csr()
        self.other = other.crow_indices(), other.col_indices()
        self.order = other.values().long() - 1

    def with_values(self, weight: Tensor) -> Tensor:
        """The matrix."""
        return _csr(self.rows, self.columns, weight, self.shape)

    def transposed(self, weight: Tensor) -> Tensor:
        """The same, transposed."""
        return _csr(*self.other, weight[self.order], self.shape[::-1])


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)


def csr_step(
    network: Architecture, state: State, masks: Masks, rate: float
) -> Callable[[Tensor, Tensor], object]:
    """A training step of a fully connected network: takes images as inputs, and labels."""
    matrices, parameters = [], []
    for name in linear_layers(network.skeleton):
        mask = masks[f"{name}.weight"]
        matrices.append(Matrix(mask))
        parameters += [state[f"{name}.weight"][mask].clone(), state[f"{name}.bias"].clone()]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)

    def step(images: Tensor, labels: Tensor) -> None:
        values = images.flatten(1).t().contiguous()
        for number, matrix in enumerate(matrices):
            weight, bias = parameters[2 * number : 2 * number + 2]
            values = values.relu() if number else values
            values = Product.apply(weight, values, matrix) + bias.unsqueeze(1)
        loss = F.cross_entropy(values.t(), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
