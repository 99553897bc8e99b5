import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruning.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from pruning.masks import apply_masks

ROOT = Path(__file__).parent.parent


def network(density, shape=(300, 784), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    masks = {"fc.weight": torch.rand(shape, generator=generator) < density}
    state = {
        "fc.weight": torch.randn(shape, generator=generator).to(dtype),
        "fc.bias": torch.randn(shape[:1], generator=generator).to(dtype),
    }
    return apply_masks(state, masks), masks


def same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    return a.reshape(-1).view(torch.uint8).tolist() == b.reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("density", [0.0, 0.001, 0.02, 0.1, 0.12, 0.13, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_round_trip_is_bit_exact(tmp_path, density, dtype):
    state, masks = network(density, shape=(30, 41), dtype=dtype)
    metadata = {"round": 3, "metrics": {"loss": 0.1 + 0.2}, "config": {"reinit": "lottery"}}
    size = save_checkpoint(tmp_path / "x.safetensors", state, masks, metadata)
    back = load_checkpoint(tmp_path / "x.safetensors")
    assert size == (tmp_path / "x.safetensors").stat().st_size
    assert back.metadata == metadata
    assert set(back.state) == set(state)
    assert all(same_bits(back.state[name], state[name]) for name in state)
    assert torch.equal(back.masks["fc.weight"], masks["fc.weight"])
    assert back.masks["fc.weight"].dtype == torch.bool


def test_odd_values_and_shapes_survive(tmp_path):
    odd = torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45, 0.0]).reshape(1, 5, 1)
    state = {"w": odd, "steps": torch.tensor(7), "none": torch.zeros(0, 3)}
    masks = {"w": torch.ones(1, 5, 1, dtype=torch.bool)}
    save_checkpoint(tmp_path / "x", state, masks, {})
    back = load_checkpoint(tmp_path / "x")
    assert all(same_bits(back.state[name], state[name]) for name in state)


@pytest.mark.parametrize("distance", [1, 254, 255, 256, 509, 510, 511, 1021])
def test_long_gaps_between_survivors_survive(tmp_path, distance):
    mask = torch.zeros(20_000, dtype=torch.bool)
    mask[distance - 1 :: distance * 7] = True
    state = {"w": mask.float()}
    save_checkpoint(tmp_path / "x", state, {"w": mask}, {})
    assert torch.equal(load_checkpoint(tmp_path / "x").masks["w"], mask)


def test_a_sparse_network_is_small_on_disk(tmp_path):
    sizes = {}
    for density in (1.0, 0.1, 0.02):
        state, masks = network(density)
        sizes[density] = save_checkpoint(tmp_path / "x", state, masks, {})
    assert sizes[1.0] / sizes[0.1] > 7
    assert sizes[1.0] / sizes[0.02] > 35


def test_the_smaller_encoding_is_chosen(tmp_path):
    for density, encoding in ((0.3, "bits"), (0.2, "bits"), (0.1, "gaps"), (0.01, "gaps")):
        save_checkpoint(tmp_path / "x", *network(density), {})
        with safe_open(tmp_path / "x", framework="pt") as file:
            header = json.loads(file.metadata()["weight_loss"])
        assert header["masks"]["fc.weight"]["encoding"] == encoding


def test_the_same_network_gives_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from tests.test_pruning_checkpoint import *\n"
        "save_checkpoint(sys.argv[1], *network(0.2), {'b': 1, 'a': {'d': 2, 'c': 3}})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, check=True)
    save_checkpoint(tmp_path / "b", *network(0.2), {"b": 1, "a": {"d": 2, "c": 3}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_pruned_weights_must_be_zero(tmp_path):
    state, masks = network(0.5)
    state["fc.weight"] += 1
    with pytest.raises(ValueError, match=r"fc\.weight must be zero"):
        save_checkpoint(tmp_path / "x", state, masks, {})
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "no" / "x", *network(0.5), {})
    with pytest.raises(IsADirectoryError):
        save_checkpoint(tmp_path, *network(0.5), {})
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, *network(0.3, shape=(20, 20)), {"round": 1})
    return path


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.safetensors is truncated or not"):
        load_checkpoint(saved)


def test_every_altered_byte_is_noticed(saved):
    content = saved.read_bytes()
    for place in range(len(content)):
        flipped = bytes([content[place] ^ (1 << place % 8)])
        saved.write_bytes(content[:place] + flipped + content[place + 1 :])
        with pytest.raises(ValueError, match=r"x\.safetensors (is|has) "):
            load_checkpoint(saved)


def test_foreign_files_are_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="not a Weight Loss checkpoint"):
        load_checkpoint(tmp_path / "foreign")
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign", metadata={"weight_loss": "[]"})
    with pytest.raises(ValueError, match="has been altered"):
        load_checkpoint(tmp_path / "foreign")
    torch.save({"w": torch.zeros(2)}, tmp_path / "pickle")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_checkpoint(tmp_path / "pickle")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent")


def test_another_format_is_named(saved):
    header = {"format": "weight-loss/99", "masks": {}, "metadata": {}, "digest": ""}
    save_file(load_file(saved), saved, metadata={"weight_loss": json.dumps(header)})
    with pytest.raises(ValueError, match=f"'weight-loss/99'; this version reads {FORMAT}"):
        load_checkpoint(saved)
