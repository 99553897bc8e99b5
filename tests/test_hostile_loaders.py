"""No loader unpickles a file that someone may have sent, whatever its name is."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import pytest
import torch

from datasets.photographs.options import FaceOptions
from tests.conftest import ROOT
from tests.test_structure import FILES, IMPORTS

# What reads a file that somebody else may have made: a statement about `path`, in `here`.
LOADERS = {
    "a checkpoint": "pruning.checkpoint.load_checkpoint(path)",
    "a packed file": "pruning.packed.load_packed(path)",
    "a network": "weight_loss.load_network(str(path))",
    "a pretrained network": "models.published.load_published(path, {'w': torch.zeros(1)}, 'w')",
    "a search file": "experiments.config.space.parse_space(str(path))",
    "a picture": "datasets.photographs.pictures.read_picture(path)",
    "a manifest": "datasets.photographs.manifest.read_manifest(path)",
    "a cache of detections": "datasets.photographs.detection.read_detections(path)",
    "options of faces": "datasets.photographs.loading.read_options(here)",
    "MNIST": "datasets.load_splits('mnist', str(here), 0)",
    "Fashion-MNIST": "datasets.load_splits('fashion_mnist', str(here), 0)",
    "Olivetti": "datasets.load_splits('olivetti', str(here), 0)",
    "faces": "datasets.load_splits('faces', str(here), 0)",
}
NAMES = {  # where each looks
    "a search file": "x.yaml",
    "options of faces": "options.json",
    "MNIST": "MNIST/raw/train-images-idx3-ubyte",
    "Fashion-MNIST": "FashionMNIST/raw/train-images-idx3-ubyte",
    "Olivetti": "olivettifaces.mat",
    "faces": "manifest.csv",
}
# Reads each file; prints what came of it, and what was found in a pickle or started meanwhile.
PROGRAM = """
import json, sys
from pathlib import Path

import mlflow, sklearn.datasets, torch, torchvision, yaml  # these may use pickle themselves

names = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
executed, loaded = None, []
torch_load = torch.load
torch.load = lambda *args, **more: loaded.append(args) or torch_load(*args, **more)
sys.addaudithook(lambda event, args: event in names and executed is not None and executed.append(
    f"{event} {args}"))
results = []
for what, statement, place in json.load(sys.stdin):
    path = Path(place)
    here = path.parent.parent.parent if "MNIST" in what else path.parent
    module = statement.partition("(")[0].rpartition(".")[0]
    scope = {"path": path, "here": here, "torch": torch, "Path": Path}
    scope[module.partition(".")[0]] = __import__(module)
    executed = []
    try:
        exec(statement, scope)
        outcome = "read"
    except (ValueError, OSError) as error:
        outcome = type(error).__name__
    except Exception as error:
        outcome = f"CRASH {type(error).__name__}: {error}"
    results.append([what, outcome, executed, len(loaded)])
    loaded.clear()
print(json.dumps(results))
"""


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def traps(folder, target):
    """Files that create `target` if they are unpickled or taken for code."""
    pickled = pickle.dumps({"x": Code(target)})
    with zipfile.ZipFile(folder / "zip", "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3")
    torch.save({"x": Code(target)}, folder / "pth")
    return {
        "pickle": pickled,
        "zip": (folder / "zip").read_bytes(),
        "torch": (folder / "pth").read_bytes(),
        "yaml": f"x: !!python/object/apply:os.system ['touch {target}']\n".encode(),
        "numpy": b"\x93NUMPY\x01\x00v\x00" + pickled,
    }


def test_no_loader_gets_to_an_unpickler(tmp_path):
    target, files = tmp_path / "created", []
    for kind, content in traps(tmp_path, target).items():
        for what, statement in LOADERS.items():
            path = tmp_path / "files" / kind / what / NAMES.get(what, "x")
            path.parent.mkdir(parents=True)
            for other in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
                if "MNIST" in what:
                    (path.parent / f"{other}-ubyte").touch()
            if what == "faces":
                options = FaceOptions().model_dump_json()
                (path.parent / "options.json").write_text(options)
            path.write_bytes(content)
            if "MNIST" in what:  # where torchvision's classes look first
                processed = path.parent.parent / "processed"
                processed.mkdir()
                for other in ("training.pt", "test.pt"):
                    (processed / other).write_bytes(content)
            if what == "Olivetti":  # where older versions had scikit-learn look
                (path.parent / "olivetti_py3.pkz").write_bytes(content)
            files.append((what, statement, str(path)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(files),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 5 * len(LOADERS)
    for what, outcome, executed, loads in results:
        assert not executed, what
        assert bool(loads) == (what == "a pretrained network"), what
        assert outcome.endswith("Error") or what == "a cache of detections", (what, outcome)
        assert "CRASH" not in outcome, what
    assert not target.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_the_traps_work(tmp_path, kind):
    """Shows that the check above can fail."""
    target = tmp_path / "created"
    path = tmp_path / "trap"
    path.write_bytes(traps(tmp_path, target)[kind])
    if kind == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


def test_no_module_unpickles():
    """Also in loaders that are missing above; `torch.load` reads published networks only."""
    unpicklers = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for name, modules in IMPORTS.items():
        assert not unpicklers & {module.partition(".")[0] for module in modules}, name
        assert "fetch_olivetti_faces" not in " ".join(modules), name
    calls = [
        (name, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for name in IMPORTS
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert [name for name, _ in calls] == ["models/published.py"]
    assert calls[0][1]["weights_only"] == "True"
    others = (
        r"allow_pickle|read_pickle|unsafe_load|full_load|(Unsafe|Full)Loader|jit\.load|from torch"
    )
    others += r" import load|torch\.hub|load_state_dict_from_url"
    assert not [path for path in FILES if re.search(others, path.read_text())]
