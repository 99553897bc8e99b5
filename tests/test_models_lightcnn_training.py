"""Training a LightCNN: dropout, gradients of the MFM, and bfloat16."""

import pytest
import torch

from models.lightcnn import max_feature_map
from tests.test_models_lightcnn import SMALL, drawn, each_model


@each_model
def test_dropout_zeroes_half_of_the_features_in_training_only(name):
    model, _ = drawn(name)
    faces = []
    model.get_submodule("fc2").register_forward_pre_hook(lambda _, inputs: faces.append(inputs[0]))
    images = torch.rand(8, *SMALL)
    with torch.no_grad():
        model(images)
        model(images)
        model.train()(images)
    whole, again, dropped = faces
    assert torch.equal(whole, again)
    kept = dropped != 0
    assert torch.allclose(dropped[kept], 2 * whole[kept], rtol=1e-4, atol=1e-5)
    assert 0.4 < kept.float().mean() < 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8), (2, 6, 4, 5)])
def test_max_feature_map_and_its_gradient_match_the_maximum_of_the_halves(shape, dtype):
    values = torch.randn(shape).to(dtype).requires_grad_()
    gradient = torch.randn(shape[0], shape[1] // 2, *shape[2:]).to(dtype)
    first, second = values.chunk(2, dim=1)
    untied = (first != second).repeat(1, 2, *[1] * len(shape[2:]))
    expected = torch.maximum(first, second)
    (by_torch,) = torch.autograd.grad(expected, values, gradient)
    got = max_feature_map(values)
    (ours,) = torch.autograd.grad(got, values, gradient)
    assert torch.equal(got, expected)
    assert torch.equal(max_feature_map(values.detach()), expected)
    assert torch.equal(ours[untied], by_torch[untied])
    assert torch.equal(sum(ours.chunk(2, dim=1)), gradient)


def test_ties_of_max_feature_map_pass_the_gradient_to_the_second_half():
    values = torch.tensor([[1.0, 2.0, 1.0, 3.0]], requires_grad=True)
    max_feature_map(values).sum().backward()
    assert values.grad.tolist() == [[0.0, 0.0, 1.0, 1.0]]


@each_model
def test_bfloat16_and_channels_last_are_close_to_float32(name):
    model, _ = drawn(name)
    images = torch.rand(2, *SMALL)
    plain = model(images)
    model = model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        quick = model(images.to(memory_format=torch.channels_last))
    assert quick.dtype == torch.bfloat16
    assert (quick - plain).abs().max() < 0.1 * plain.abs().max()
    quick.float().logsumexp(1).sum().backward()
    assert all(value.grad.isfinite().all() and value.grad.any() for value in model.parameters())
