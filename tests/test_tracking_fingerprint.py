"""What makes two experiments the same: settings, data, and the code that they run."""

import re
import shutil

import pytest

from experiments.config.experiment import Config, config_from
from experiments.tracking.code import PACKAGES
from experiments.tracking.fingerprint import REGISTRIES, SCHEME, code_digest, fingerprint
from tests.conftest import QUICK, ROOT

SETTINGS = {"criterion": "snip", "reinit": "random", "optimizer": "adam", "schedule": "cosine"}


def resolved(**changes):
    settings = QUICK | changes
    return config_from(settings).resolved(settings["dataset"])


@pytest.fixture
def copy(tmp_path):
    """A folder with a copy of our packages."""
    folder, no_caches = tmp_path / "copy", shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=no_caches)
    return folder


def change(folder, path, old, new):
    text = (folder / path).read_text()
    assert old in text, f"{old!r} is not in {path}"
    (folder / path).write_text(text.replace(old, new, 1))


def changed(folder, path, old, new, **settings):
    """Whether a change of a file changes the digest of the code."""
    config = resolved(**SETTINGS | settings)
    change(folder, path, old, new)
    return code_digest(config, root=folder) != code_digest(config)


LOOP, ENGINE = "experiments/training/loop.py", "experiments/training/engine.py"
MASKS, CRITERIA = "pruning/masks.py", "pruning/criteria.py"
OPTIMIZERS, SCHEDULES = "experiments/training/optimizers.py", "experiments/training/schedules.py"
ROUNDS, METRICS = "experiments/rounds/rounds.py", "experiments/rounds/metrics.py"
DIFFERENT = {
    "a constant of the engine": (ENGINE, "2000 * 28 * 28", "1000 * 28 * 28"),
    "a constant of the training loop": (LOOP, 'float("inf")', "1e9"),
    "what a metric is": (METRICS, "m: m.best.iteration", "m: m.last.iteration"),
    "how a size is computed": ("pruning/sizes.py", "return", "return 2 *"),
    "what an imported name stands for": (LOOP, "import isfinite", "import isnan as isfinite"),
    "the criterion in use": (CRITERIA, "masked[name] * slopes[name]", "masked[name]"),
    "how often it is used": (CRITERIA, "Criterion(snip, ", "Criterion(snip, steps=2, "),
    "a default of its dataclass": (CRITERIA, "steps: int = 1", "steps: int = 2"),
    "a helper that pruning calls": (MASKS, "stable=True", "stable=False"),
    "a constant of a helper": (MASKS, "REMAINDER = 0.01", "REMAINDER = 0.02"),
    "the control in use": ("pruning/controls.py", "return scores", "return dict(scores)"),
    "the reinit in use": ("pruning/reinit.py", "memory.draw(seed)", "memory.draw(seed + 1)"),
    "where its schedule starts": ("pruning/reinit.py", '(random, schedule="start")', "(random, 0)"),
    "a coefficient of the optimizer": (OPTIMIZERS, "beta2=0.999", "beta2=0.99"),
    "where the schedule ends": (SCHEDULES, "FLOOR = 0.01", "FLOOR = 0.02"),
    "the loader of the data": ("datasets/digits.py", "default_rng(0)", "default_rng(1)"),
    "a method of the data": ("datasets/splits.py", "sub_(self.mean)", "sub_(0)"),
    "how data are split": ("datasets/__init__.py", "1 / 12", "1 / 10"),
    "the model": ("models/lenet.py", "nn.ReLU()", "nn.GELU()"),
    "its initial values": ("models/__init__.py", "xavier_normal_", "kaiming_normal_"),
    "where a rewound schedule is entered": (ROUNDS, "config.rewind_epoch / left", "1 / left"),
    "the random streams": (ROUNDS, 'number, "criterion"', 'number, "scores"'),
    "a setting of PyTorch": ("experiments/training/__init__.py", "denormal(True", "denormal(False"),
}
SAME = {
    "a comment": (ENGINE, "as F\n", "as F  # functions\n"),
    "a new line": (LOOP, "import torch", "\n\n\nimport torch"),
    "a docstring": (MASKS, '"""Prune exactly', '"""Remove exactly'),
    "the docstring of a module": (CRITERIA, '"""Criteria:', '"""Scores:'),
    "the message of an error": (MASKS, "scores must not be", "a score must not be"),
    "a criterion that is not in use": (
        CRITERIA,
        "(trained[name] - start[name]).abs()",
        "start[name]",
    ),
    "one with the name of a parameter": (
        CRITERIA,
        "(evidence.trained, evidence.m",
        "(0, evidence.m",
    ),
    "an optimizer that is not in use": (OPTIMIZERS, "dampening=0.0", "dampening=0.1"),
    "a schedule that is not in use": (SCHEDULES, "return 1.0", "return 2.0"),
    "a reinit that is not in use": ("pruning/reinit.py", "std()", "mean()"),
    "a data set that is not in use": ("datasets/mnist.py", "white=255", "white=256"),
    "a model that is not in use": ("models/lightcnn.py", "group(48, 96)", "group(48, 95)"),
    "published values, which are not used": ("models/published.py", "SHOWN = 3", "SHOWN = 4"),
    "a default, which is a setting": ("experiments/config/recipes.py", "size=60", "size=61"),
    "a description": ("experiments/config/fields.py", "description=", "title='', description="),
    "a new metric": (
        METRICS,
        "] = {\n",
        '] = {\n    "fps": Metric("speed", "ratio", lambda m: 1.0),\n',
    ),
    "a figure": ("experiments/figures/style.py", "import", "x = 1\nimport"),
    "what is logged": ("experiments/tracking/log.py", "import re", "x = 1\nimport re"),
    "a progress bar": ("experiments/run.py", 'unit="epoch"', 'unit="e"'),
}


def test_a_copy_has_the_digest_of_the_original(copy):
    for settings in (SETTINGS, {"masks": "shared", "branch_of": "1" * 32}):
        assert code_digest(resolved(**settings), root=copy) == code_digest(resolved(**settings))


@pytest.mark.parametrize("name", DIFFERENT)
def test_code_that_can_change_a_result_changes_the_digest(copy, name):
    assert changed(copy, *DIFFERENT[name])


def test_code_that_cannot_change_a_result_leaves_the_digest(copy):
    for place in SAME.values():
        change(copy, *place)
    config = resolved(**SETTINGS)
    assert code_digest(config, root=copy) == code_digest(config)


PUBLISHED = {"pretrained": str(ROOT / "README.md")}
SHARED = {"masks": "shared", "branch_of": "1" * 32}
READER = ("experiments/tracking/resume.py", "initial=fetch(INITIAL)", "initial=fetch(REWOUND)")


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"criterion": "movement"}, SAME["a criterion that is not in use"]),
        ({"schedule": "constant"}, SAME["a schedule that is not in use"]),
        ({"model": "lightcnn_29"}, SAME["a model that is not in use"]),
        (PUBLISHED, SAME["published values, which are not used"]),
        (SHARED, READER),
    ],
)
def test_code_counts_once_the_settings_use_it(copy, settings, place):
    assert changed(copy, *place, **settings)
    config = resolved(**SETTINGS)
    assert code_digest(config, root=copy) == code_digest(config)


def test_a_new_method_in_a_new_file_leaves_the_digest(copy):
    (copy / "pruning/newest.py").write_text("def newest(evidence, seed):\n    return {}\n")
    change(copy, CRITERIA, "import torch\n", "import torch\nfrom pruning.newest import newest\n")
    new = '= {\n    "newest": Criterion(newest),'
    assert not changed(copy, CRITERIA, "= {\n", new)


def test_the_order_of_definitions_leaves_the_digest(copy):
    text = (copy / SCHEDULES).read_text()
    start, end = text.index("def constant"), text.index("def cosine")
    moved = text[:start] + text[end:] + "\n\n" + text[start:end]
    assert not changed(copy, SCHEDULES, text, moved)


def test_a_registry_that_is_read_in_another_way_counts_as_a_whole(copy, tmp_path):
    line = "    removals = plan_rounds("
    change(copy, ROUNDS, line, f"    first = next(iter(CRITERIA))\n{line}")
    config = resolved(**SETTINGS)
    before = code_digest(config, root=copy)
    again = shutil.copytree(copy, tmp_path / "again")
    change(again, *SAME["a criterion that is not in use"])
    assert code_digest(config, root=again) != before


def test_a_name_that_is_not_found_counts_as_its_whole_module(copy, tmp_path):
    change(copy, METRICS, "sizes.sparsity(m.masks)", "sizes.made_at_run_time(m.masks)")
    config = resolved(**SETTINGS)
    before = code_digest(config, root=copy)
    again = shutil.copytree(copy, tmp_path / "again")
    change(again, "pruning/sizes.py", "def sparsity", "UNUSED = 1\n\n\ndef sparsity")
    assert code_digest(config, root=again) != before


@pytest.mark.parametrize("registry", REGISTRIES)
def test_every_registry_is_a_literal_dictionary(registry):
    module, _, name = registry.rpartition(".")
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    assert re.search(rf"^{name}(: .*)? = \{{", file.read_text(), re.M)


def test_several_configs_have_the_code_of_all(copy):
    configs = [resolved(**SETTINGS), resolved(**SETTINGS | {"criterion": "movement"})]
    change(copy, *SAME["a criterion that is not in use"])
    assert code_digest(*configs, root=copy) != code_digest(*configs)
    assert code_digest(*configs) == code_digest(*reversed(configs))


def test_the_fingerprint_depends_on_what_decides_the_result():
    def of(digest="d", threads=1, **changes):
        return fingerprint(resolved(**changes), digest, threads)

    assert of() == of(data_root="elsewhere") == of(branch_of="1" * 32)
    assert of() == of(output_prune_rate=0.2)  # what "auto" is
    assert of() == of(pixels="standardised")
    assert of() == of(init_seed=0, order_seed=0, split_seed=0, draw_seed=0)
    assert of() == of(scope="layer") != of(scope="global")
    assert of(criterion="snip") == of(criterion="snip", scope="global")
    assert of(criterion="snip") != of(criterion="snip", scope="layer")
    different = [
        of(),
        of("other data"),
        of(threads=2),
        of(seed=1),
        *(of(**{name: 1}) for name in Config().streams()),
        of(pixels="unit"),
        of(pixels="l2"),
        of(reinit="keep"),
        of(control="inverted"),
        of(pruning="one_shot"),
        of(masks="shared", branch_of="1" * 32),
        of(masks="shared", branch_of="2" * 32),
        of(retrain_lr=0.5),
    ]
    assert len(set(different)) == len(different)
    assert all(re.fullmatch(SCHEME + "[0-9a-f]{32}", each) for each in different)
