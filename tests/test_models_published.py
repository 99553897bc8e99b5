"""Published checkpoints: files of old and new torch.save, and files that must be rejected."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import Architecture, build_model
from models.published import load_published
from tests.hostile import memory_limit

NAME, SHAPE, OUTPUT = "lightcnn_9", (1, 16, 16), "fc2.weight"
HEAD = {"fc2.weight", "fc2.bias"}


@pytest.fixture(scope="module")
def first():
    return Architecture(NAME, SHAPE, 7).draw(0)


def published(classes, name=NAME, shape=SHAPE):
    """The content of a released file: DataParallel names, optimizer state and metrics."""
    state = Architecture(name, shape, classes).draw(1)
    weights = OrderedDict((f"module.{key}", value) for key, value in state.items())
    momentum = {0: {"momentum_buffer": torch.ones(96, 1, 5, 5)}}
    return {
        "epoch": 80,
        "arch": "LightCNN",
        "state_dict": weights,
        "prec1": np.float64(98.7),
        "optimizer": {"state": momentum, "param_groups": [{"lr": np.float32(0.1), "params": [0]}]},
    }


def assert_loaded(loaded, first, content, kept=frozenset()):
    assert list(loaded) == list(first)
    for name, value in loaded.items():
        source = first[name] if name in kept else content["state_dict"][f"module.{name}"]
        assert torch.equal(value, source), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("classes", [7, 11])
def test_a_released_file_loads_for_any_number_of_classes(tmp_path, first, zipped, classes):
    content = published(classes)
    path = tmp_path / "LightCNN_9Layers_checkpoint.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load_published(path, first, OUTPUT)
    assert_loaded(loaded, first, content, HEAD if classes != 7 else frozenset())
    build_model(NAME, SHAPE, 7).load_state_dict(loaded)


@pytest.mark.parametrize(
    "odd",
    [
        lambda value: value.to_sparse(),
        lambda value: value.to("meta"),
        lambda value: value.to(torch.complex64),
        lambda value: value.to(torch.int32),
        lambda value: torch.full_like(value, torch.nan),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_values_that_are_no_plain_numbers_are_rejected(tmp_path, odd):
    first = {"w": torch.zeros(2, 3)}
    torch.save({"w": odd(torch.ones(2, 3))}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"^pretrained must ") as error:
        load_published(tmp_path / "x.pth", first, "w")
    assert "\n" not in str(error.value)


def test_whole_and_half_precision_fit(tmp_path):
    first = {"w": torch.zeros(2, 3), "steps": torch.tensor(0)}
    torch.save({"w": torch.ones(2, 3).half(), "steps": torch.tensor(7)}, tmp_path / "x.pth")
    loaded = load_published(tmp_path / "x.pth", first, "w")
    assert (loaded["w"].dtype, int(loaded["steps"])) == (torch.float32, 7)


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "pickle").write_bytes(b"\x80\x02cbuiltins\nbytearray\n(J\x00\x94\x35\x77tR.")
    torch.save({"w": torch.zeros(1 << 24)}, tmp_path / "stored")
    with (
        zipfile.ZipFile(tmp_path / "stored") as stored,
        zipfile.ZipFile(tmp_path / "compressed", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for each in stored.namelist():
            compressed.writestr(each, stored.read(each))
    for name in ("pickle", "compressed"):
        assert (tmp_path / name).stat().st_size < 100_000
        with memory_limit(), pytest.raises(ValueError, match="is truncated or not a checkpoint"):
            load_published(tmp_path / name, {"w": torch.zeros(1 << 24)}, "w")


def test_an_output_layer_for_79077_people_is_not_loaded(tmp_path):
    first = {"fc1.weight": torch.zeros(2, 3), OUTPUT: torch.zeros(7, 2), "fc2.bias": torch.zeros(7)}
    theirs = {"fc1.weight": torch.ones(2, 3), OUTPUT: torch.ones(79077, 2)}
    torch.save(theirs | {"fc2.bias": torch.ones(79077)}, tmp_path / "x.pth")
    loaded = load_published(tmp_path / "x.pth", first, OUTPUT)
    assert loaded["fc1.weight"].all()
    assert all(torch.equal(loaded[name], first[name]) for name in HEAD)


def test_a_plain_state_dict_and_safetensors_load(tmp_path, first):
    content = published(7)
    bare = {name.removeprefix("module."): v for name, v in content["state_dict"].items()}
    torch.save(bare, tmp_path / "bare.pth")
    save_file(bare, tmp_path / "bare.safetensors")
    for name in ("bare.pth", "bare.safetensors"):
        assert_loaded(load_published(tmp_path / name, first, OUTPUT), first, content)


def test_the_release_without_an_output_bias_loads(tmp_path):
    first = Architecture("lightcnn_29_v2", SHAPE, 7).draw(0)
    content = published(9, "lightcnn_29_v2")
    torch.save(content, tmp_path / "v2.pth.tar")
    loaded = load_published(tmp_path / "v2.pth.tar", first, OUTPUT)
    assert_loaded(loaded, first, content, {OUTPUT})


def test_loading_keeps_the_precision_and_does_not_modify_the_initial_values(tmp_path, first):
    before = {name: value.clone() for name, value in first.items()}
    content = published(7)
    content["state_dict"] = {name: v.half() for name, v in content["state_dict"].items()}
    torch.save(content, tmp_path / "half.pth")
    loaded = load_published(tmp_path / "half.pth", first, OUTPUT)
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert all(torch.equal(before[name], first[name]) for name in first)
    loaded["fc2.bias"].fill_(5)
    assert torch.equal(before["fc2.bias"], first["fc2.bias"])


class Python2Pickler(pickle._Pickler):
    """Writes the format of Python 2 and PyTorch 0.1: byte strings, CUDA storages, old functions."""

    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, file, storages):
        super().__init__(file, protocol=2)
        self.storages = storages

    def save_str(self, text):
        self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode())
        self.memoize(text)

    dispatch[str] = save_str

    def persistent_id(self, value):
        if not isinstance(value, np.ndarray):
            return None
        key = str(len(self.storages))
        self.storages[key] = value
        return ("storage", torch.cuda.FloatStorage, key, "cuda:0", value.size, None)

    def reducer_override(self, value):
        if isinstance(value, torch.Tensor):
            storage = value.numpy().ravel()
            return torch._utils._rebuild_tensor, (storage, 0, tuple(value.shape), value.stride())
        if isinstance(value, OrderedDict):
            return OrderedDict, ([list(item) for item in value.items()],)
        return NotImplemented


def python_2_file(content, path: Path):
    storages: dict[str, np.ndarray] = {}
    file = io.BytesIO()
    sizes = {"short": 2, "int": 4, "long": 8}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    for part in (torch.serialization.MAGIC_NUMBER, 1001, system, content):
        Python2Pickler(file, storages).dump(part)
    Python2Pickler(file, storages).dump(list(storages))
    for storage in storages.values():
        file.write(struct.pack("<q", storage.size) + storage.tobytes())
    path.write_bytes(file.getvalue())


def test_a_file_from_a_gpu_and_python_2_loads(tmp_path, first):
    content = published(11) | {"prec1": 98.7, "optimizer": None}
    python_2_file(content, tmp_path / "old.pth.tar")
    loaded = load_published(tmp_path / "old.pth.tar", first, OUTPUT)
    assert_loaded(loaded, first, content, HEAD)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class ShellTrap(Trap):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("trap", [Trap, ShellTrap])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_file_with_code_is_rejected_without_executing_it(tmp_path, first, form, trap):
    target, path = tmp_path / "created", tmp_path / "trap.pth.tar"
    content = published(7) | {"prec1": trap(target)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["prec1"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = rejection(path, first)
    assert "would execute code" in message
    assert not target.exists()
    pickle.loads(pickle.dumps(content["prec1"]))
    assert target.exists()  # the trap was real


def rejection(path, first):
    with pytest.raises(ValueError, match=r"^pretrained [^\n]*$") as caught:
        load_published(path, first, OUTPUT)
    return str(caught.value)


def test_a_whole_model_is_rejected(tmp_path, first):
    torch.save(build_model(NAME, SHAPE, 7), tmp_path / "model.pth")
    assert "(models.lightcnn.LightCNN9)" in rejection(tmp_path / "model.pth", first)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.999])
def test_a_truncated_file_is_rejected(tmp_path, first, zipped, share):
    path = tmp_path / "cut.pth.tar"
    torch.save(published(7), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "is truncated or not a checkpoint" in rejection(path, first)


@pytest.mark.parametrize("name", ["photo.jpg", "x.safetensors"])
@pytest.mark.parametrize("content", [b"\xff\xd8 not a checkpoint", b"text\n" * 99, b"\x80\x04N."])
def test_a_file_of_another_format_is_rejected(tmp_path, first, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert "is truncated or not a checkpoint" in rejection(path, first)


def test_a_missing_file_and_a_folder_are_rejected(tmp_path, first):
    assert "must be an existing file, got" in rejection(tmp_path / "missing.pth", first)
    assert "must be an existing file, got" in rejection(tmp_path, first)


@pytest.mark.parametrize(("content", "kind"), [([1, 2], "list"), (torch.ones(3), "Tensor")])
def test_a_file_without_named_tensors_is_rejected(tmp_path, first, content, kind):
    torch.save(content, tmp_path / "x.pth")
    assert f"the file is a {kind}" in rejection(tmp_path / "x.pth", first)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fc1.filter.bias": None}, "lacks fc1.filter.bias: use the model"),
        ({"extra.weight": torch.ones(1)}, "has an extra extra.weight"),
        ({"fc1.filter.weight": torch.ones(512, 8192)}, "as 512x8192 instead of 512x128: use"),
        ({"fc2.weight": torch.ones(7, 128)}, "has fc2.weight as 7x128 instead of 7x256"),
        ({"fc2.weight": None}, "lacks fc2.weight"),
    ],
)
def test_tensors_of_another_network_are_named(tmp_path, first, changes, expected):
    tensors = {name: value for name, value in (first | changes).items() if value is not None}
    torch.save(tensors, tmp_path / "x.pth")
    assert expected in rejection(tmp_path / "x.pth", first)


def test_the_checkpoint_of_another_lightcnn_is_rejected(tmp_path, first):
    torch.save(published(7, "lightcnn_29"), tmp_path / "29.pth")
    message = rejection(tmp_path / "29.pth", first)
    assert "lacks features.0.filter.weight, lacks features.0.filter.bias" in message
    assert "more): use the model and image shape that it was trained with" in message
