import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from experiments.config.comparison import Arms, CompareConfig, ReportConfig
from experiments.config.experiment import Config, config_from, has_bf16
from experiments.config.faces import FacesConfig
from experiments.config.fields import Execution
from experiments.config.parameters import as_text, default_text, parse
from experiments.config.predict import PredictConfig
from experiments.config.recipes import RECIPES
from experiments.config.tune import TuneConfig, Tuning
from experiments.mlproject import mlproject, parameters_page
from experiments.tracking.summary import run_name
from experiments.training.optimizers import OPTIMIZERS
from models import MODELS
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA
from pruning.reinit import REINITS

ROOT = Path(__file__).parent.parent

INVALID = [
    ("reinit", "lotery", f"reinit must be one of {', '.join(REINITS)}, got lotery"),
    (
        "dataset",
        "cifar",
        "dataset must be one of auto, mnist, fashion_mnist, digits, faces, olivetti, got cifar",
    ),
    ("model", "resnet_20", "lightcnn_29, lightcnn_29_v2, got resnet_20"),
    ("model", "lenet_999999999999999999999", "model is too large for any memory, got lenet_999"),
    ("seed", "1\nx", "seed must be a valid integer"),
    ("model", "lenet_0", "model lenet requires layer sizes such as lenet_300_100, got lenet_0"),
    ("criterion", "x", f"criterion must be one of {', '.join(CRITERIA)}, got x"),
    ("control", "x", f"control must be one of {', '.join(CONTROLS)}, got x"),
    ("pruning", "x", "pruning must be one of iterative, one_shot, got x"),
    ("branch_of", "x", "branch_of must be the id of a run, 32 hexadecimal digits, got x"),
    ("masks", "shared", "masks=shared needs branch_of, the run whose masks are used"),
    ("scope", "x", "scope must be one of layer, global, got x"),
    ("prune_rate", "0", "prune_rate must be greater than 0, got 0"),
    ("prune_rate", "1", "prune_rate must be less than 1, got 1"),
    ("prune_rate", "nan", "prune_rate must be a finite number, got nan"),
    ("prune_rate", "a lot", "prune_rate must be a valid number, unable to parse"),
    ("output_prune_rate", "1", "output_prune_rate must be less than 1, got 1"),
    ("target_sparsity", "1.0", "target_sparsity must be less than 1, got 1.0"),
    ("rounds", "-1", "rounds must be greater than or equal to 0, got -1"),
    ("rounds", "1.5", "rounds must be a valid integer"),
    ("epochs", "0", "epochs must be greater than 0, got 0"),
    ("retrain_epochs", "0", "retrain_epochs must be greater than 0, got 0"),
    ("optimizer", "lion", "optimizer must be one of adam, adamw, sgd, got lion"),
    ("lr", "0", "lr must be greater than 0, got 0"),
    ("lr", "inf", "lr must be a finite number, got inf"),
    ("retrain_lr", "-1", "retrain_lr must be greater than 0, got -1"),
    ("schedule", "x", "schedule must be one of constant, cosine, got x"),
    ("warmup_epochs", "-1", "warmup_epochs must be greater than or equal to 0, got -1"),
    ("grad_clip", "-1", "grad_clip must be greater than or equal to 0, got -1"),
    ("label_smoothing", "1", "label_smoothing must be less than 1, got 1"),
    ("pixels", "l1", "pixels must be one of auto, standardised, unit, l2, got l1"),
    ("draw_seed", "-1", "draw_seed must be greater than or equal to 0, got -1"),
    ("precision", "fp8", "precision must be one of auto, float32, bf16, got fp8"),
    ("weight_decay", "-1", "weight_decay must be greater than or equal to 0, got -1"),
    ("batch_size", "0", "batch_size must be greater than 0, got 0"),
    ("seed", "-1", "seed must be greater than or equal to 0, got -1"),
    ("device", "tpu", "device must be one of auto, cpu, cuda, got tpu"),
    ("data_root", "", "data_root must"),
    ("resume", "../x", "resume must be the id of a run, 32 hexadecimal digits, got ../x"),
]


@pytest.mark.parametrize(("name", "value", "message"), INVALID)
def test_an_invalid_value_is_one_line_with_parameter_rule_and_value(name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(Config, "run", [f"--{name}", value])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argv",
    [
        ["--prune_rate", "0.3", "--data_root", "-my data"],
        ["--prune-rate", "0.3", "--data-root", "-my data"],
        ["--prune_rate=0.3", "--data_root=-my data"],
        ["--prune-rate=0.3", "--data-root=-my data"],
    ],
)
def test_names_take_dashes_or_underscores_and_values_follow_as_word_or_after_equals(argv):
    config = parse(Config, "run", argv)
    assert (config.prune_rate, config.data_root) == (0.3, "-my data")


def test_a_parameter_is_given_once():
    """`mlflow run -P prune-rate=0.3` gives both names, and logs the value of the other."""
    with pytest.raises(ValueError, match=r"^prune_rate is given twice \(mlflow run takes names"):
        parse(Config, "run", ["--prune_rate=0.2", "--prune-rate", "0.3"])
    with pytest.raises(ValueError, match=r"^prune_rate is given twice;"):
        parse(Config, "run", ["--prune-rate", "0.2", "--prune-rate=0.3"])


def test_help_shows_one_spelling(capsys):
    with pytest.raises(SystemExit):
        parse(Config, "run", ["--help"])
    shown = set(re.findall(r"--(\S+) \.\.\.", capsys.readouterr().out))
    assert shown == set(Config.model_fields)


MISSPELT = [
    (Config, "--prun_rate=0.3", "there is no parameter prun_rate (did you mean prune_rate?); "),
    (Config, "--prun-rate=0.3", "there is no parameter prun_rate (did you mean prune_rate?); "),
    (Config, "--x=1", "there is no parameter x; python -m experiments x --help lists the"),
    (Config, "reinit=keep", "parameters must be given as --name value, got reinit=keep; python"),
    (Config, "--reinit=lotery", "random_scaled, got lotery (did you mean lottery?)"),
    (Config, "--dataset=MNSIT", "olivetti, got MNSIT (did you mean mnist?)"),
    (Config, "--dataset=x", "olivetti, got x"),
    (Config, "--lr=atuo", "got atuo (did you mean auto?)"),
    (Config, "--model=lightcnn9", "lightcnn_29_v2, got lightcnn9 (did you mean lightcnn_9?)"),
    (Config, "--model=lenet300_100", "got lenet300_100 (did you mean lenet_300_100?)"),
    (Config, "--model=lenet_30-10", "such as lenet_300_100, got lenet_30-10"),
    (TuneConfig, "--twin=true", "there is no parameter twin"),
    (Config, "--twin=maybe", "twin must be true or false, got maybe"),
    (CompareConfig, "--reinit=keep", "there is no parameter reinit (did you mean reinits?); "),
    (CompareConfig, "--reinits=keep,lotery", "got keep,lotery (did you mean lottery?)"),
    (CompareConfig, "--executor=inlin", "ray, inline, got inlin (did you mean inline?)"),
    (TuneConfig, "--reinit=keep,lotery", "got keep,lotery (did you mean lottery?)"),
    (TuneConfig, "--search=l=1..2", "l cannot be searched (did you mean lr?); these can: "),
    (TuneConfig, "--search=criterion=snap/random", "got snap (did you mean snip?)"),
    (FacesConfig, "--which_face=bigest", "or 'all', got bigest (did you mean largest?)"),
    (FacesConfig, "--align=flase", "got flase (did you mean false?)"),
]


@pytest.mark.parametrize(("kind", "word", "message"), MISSPELT)
def test_what_is_misspelt_comes_with_the_nearest_name(kind, word, message):
    needed = ["--source=a", "--out=b"] if kind is FacesConfig else []
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(kind, "x", [*needed, word])
    assert "\n" not in str(caught.value)
    assert ("did you mean" in str(caught.value)) == ("did you mean" in message)


def test_an_unknown_name_comes_with_the_nearest_and_with_all():
    with pytest.raises(ValueError, match=r"prun_rate \(did you mean prune_rate\?\); the param"):
        config_from({"prun_rate": 0.3})


CONFLICTS = [
    ({"momentum": 0.9}, "momentum is for optimizer=sgd, got 0.9 with adam"),
    (
        {"reinit": "rewind", "rewind_epoch": 10},
        "rewind_epoch must be less than epochs (10), after which nothing is left to train, got 10",
    ),
    ({"reinit": "lr_rewind", "rewind_epoch": 11}, "rewind_epoch must be less than epochs (10)"),
    (
        {"masks": "shared", "branch_of": "0" * 32, "control": "inverted"},
        "masks=shared uses the masks of another run and cannot be combined with control=inverted",
    ),
    (
        {"masks": "shared", "branch_of": "0" * 32, "pruning": "one_shot"},
        "cannot be combined with control=inverted or pruning=one_shot",
    ),
    ({"pretrained": "x", "pixels": "l2"}, "networks were trained on, got pixels=l2"),
    ({"pretrained": "x", "pixels": "standardised"}, "pretrained needs pixels=unit, which"),
    ({"warmup_epochs": 10}, "warmup_epochs must be less than epochs (10), got 10"),
]


@pytest.mark.parametrize(("values", "message"), CONFLICTS)
def test_conflicts_with_defaults_are_rejected(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config_from(values).resolved("mnist")


def test_rewinding_past_the_end_of_training_is_rejected():
    with pytest.raises(ValueError, match=r"rewind_epoch must be less than epochs \(2\)"):
        parse(Config, "run", ["--reinit", "rewind", "--epochs", "2", "--rewind_epoch", "3"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_rejected():
    with pytest.raises(ValueError, match="device must be cpu or auto on this machine: "):
        parse(Config, "run", ["--device", "cuda"])


def test_defaults_typed_in_full_give_the_default_config():
    argv = [
        word
        for name, field in Config.model_fields.items()
        for word in (f"--{name}", default_text(field))
    ]
    assert parse(Config, "run", argv) == parse(Config, "run", []) == Config()


def test_a_config_can_be_restored_from_its_text():
    config = parse(Config, "run", ["--reinit", "keep", "--lr", "0.5", "--output_prune_rate", "0"])
    text = {name: as_text(value) for name, value in config.model_dump().items()}
    assert config_from(text) == config


def test_resolving_fills_in_every_auto():
    config = parse(Config, "run", ["--device", "cpu"]).resolved("mnist")
    values = config.model_dump()
    assert values.pop("engine") == "auto"  # for each network
    assert not {None, "auto"} & set(values.values())
    assert (config.dataset, config.device, config.output_prune_rate) == ("mnist", "cpu", 0.2)
    assert (config.lr, config.retrain_lr) == (0.0012, 0.0012)
    assert config.resolved("mnist") == config


def test_pretrained_networks_get_the_pixels_that_they_know():
    assert config_from({}).resolved("digits").pixels == "standardised"
    for pixels in ("auto", "unit"):
        asked = config_from({"pretrained": "x", "pixels": pixels})
        assert asked.resolved("digits").pixels == "unit"


def test_every_seed_is_the_seed_unless_it_is_given():
    streams = {"init_seed": 3, "order_seed": 3, "split_seed": 3, "draw_seed": 3}
    assert config_from({"seed": 3}).streams() == streams
    auto, given = (config_from({"seed": 3} | each).resolved("digits") for each in ({}, streams))
    assert auto == given
    assert auto.streams() == streams
    other = config_from({"seed": 3, "draw_seed": 0})
    assert other.streams() == streams | {"draw_seed": 0}
    assert other.dense_settings() == config_from({"seed": 3}).dense_settings()
    assert config_from({"seed": 4}).dense_settings() != config_from({"seed": 3}).dense_settings()


@pytest.mark.parametrize(
    "given",
    [{"model": "lightcnn_9"}, {"precision": "bf16"}, {"optimizer": "sgd"}],
)
def test_the_sparse_engine_is_for_fully_connected_networks_in_float32(given, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "sgd", replace(OPTIMIZERS["sgd"], has_kernel=False))
    given |= {"device": "cpu"}
    assert config_from(given).resolved("digits").engine == "compact"
    with pytest.raises(ValueError, match=r"^engine=sparse needs a fully connected model .* got "):
        config_from(given | {"engine": "sparse"}).resolved("digits")
    for engine in ("auto", "sparse"):
        config = config_from({"device": "cpu", "engine": engine})
        assert config.resolved("digits").engine == engine


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scope_is_global_for_the_criteria_that_are_global_in_their_papers(criterion):
    config = config_from({"criterion": criterion})
    is_global = criterion in ("snip", "synflow")
    assert config.resolved("digits").scope == ("global" if is_global else "layer")
    for scope in ("layer", "global"):
        given = config_from({"criterion": criterion, "scope": scope})
        assert given.resolved("digits").scope == scope


@pytest.mark.parametrize("reinit", ["rewind", "lr_rewind"])
def test_rewinding_retrains_for_the_rest_of_the_schedule_by_default(reinit):
    def epochs(**given):
        return config_from({"reinit": reinit} | given).resolved("digits").retrain_epochs

    assert epochs() == 9
    assert epochs(rewind_epoch=4) == 6
    assert epochs(rewind_epoch=0, epochs=7) == 7
    assert epochs(rewind_epoch=2, epochs=7) == 5
    assert epochs(rewind_epoch=2, epochs=7, retrain_epochs=3) == 3
    assert epochs(model="lightcnn_9", rewind_epoch=10) == 30


def test_face_images_default_to_a_lightcnn_and_its_recipe():
    config = parse(Config, "run", ["--device", "cpu"]).resolved("faces")
    assert (config.model, config.optimizer, config.lr) == ("lightcnn_9", "adamw", 0.001)
    assert config.warmup_epochs == config.epochs / 4
    assert config.precision == ("bf16" if has_bf16("cpu") else "float32")
    small = config_from({"model": "lenet_20", "epochs": 3}).resolved("faces")
    assert (small.model, small.epochs, small.precision) == ("lenet_20", 3, "float32")


@pytest.mark.parametrize("family", MODELS)
def test_every_family_of_models_has_a_recipe(family):
    assert family in RECIPES


@pytest.mark.parametrize(
    ("argv", "retrain_lr"),
    [
        (["--reinit", "keep", "--schedule", "cosine", "--lr", "0.1"], 0.03),
        (["--reinit", "keep", "--schedule", "constant", "--lr", "0.1"], 0.03),
        (["--reinit", "keep", "--schedule", "cosine", "--retrain_lr", "0.3"], 0.3),
        (["--reinit", "lottery", "--schedule", "cosine", "--lr", "0.1"], 0.1),
        (["--optimizer", "sgd"], 0.1),
        (["--reinit", "keep", "--model", "lightcnn_9"], 0.001),
    ],
)
def test_the_default_retraining_rate_depends_on_the_method(argv, retrain_lr):
    assert parse(Config, "run", argv).resolved("digits").retrain_lr == retrain_lr


@pytest.mark.parametrize(
    ("command", "kind"), [("main", Config), ("compare", CompareConfig), ("tune", TuneConfig)]
)
def test_mlproject_lists_the_parameters_of_each_command(command, kind):
    assert (ROOT / "MLproject").read_text() == mlproject(), "run python -m experiments mlproject"
    point = yaml.safe_load(mlproject())["entry_points"][command]
    assert list(point["parameters"]) == list(kind.model_fields)
    for name, field in kind.model_fields.items():
        assert point["parameters"][name] == {"type": "string", "default": default_text(field)}
        assert f"--{name}={{{name}}}" in point["command"]


def test_the_page_of_parameters_lists_each_with_its_default_and_description():
    page = (ROOT / "docs/parameters.md").read_text()
    assert page == parameters_page(), "run python -m experiments mlproject"
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", page, re.MULTILINE)
    for kind in (Config, Arms, Execution, Tuning, ReportConfig, PredictConfig, FacesConfig):
        for name, field in kind.model_fields.items():
            default = "required" if field.is_required() else f"`{default_text(field)}`"
            assert (name, default, field.description) in rows


COMMANDS = ("run", "compare", "tune", "report", "predict", "prepare_faces")
SLOW = ("mlflow", "pandas", "matplotlib", "sklearn", "torchvision", "optuna", "scipy", "PIL", "ray")


def lines_of(code):
    """What Python prints for some code, line by line."""
    argv = [sys.executable, "-c", f"import sys\nfrom experiments.__main__ import *\n{code}"]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def test_help_and_rejected_parameters_import_nothing_slow():
    lines = lines_of(f"""
for name in {COMMANDS}:
    for argv in (["--help"], ["--device=tpu"]):
        try:
            run_command(name, argv)
        except SystemExit as end:
            print(name, end.code)
print(sorted(sys.modules.keys() & {set(SLOW)}))
""")
    ends = [line for line in lines if re.fullmatch(r"\w+ \d", line)]
    assert ends == [f"{name} {code}" for name in COMMANDS for code in (0, 2)]
    assert lines[-1] == "[]"


def test_the_list_of_commands_needs_no_package():
    lines = lines_of("""
main()
try:
    sys.argv[1:] = ["comparee"]
    main()
except SystemExit as end:
    print(end.code)
print(sorted(sys.modules.keys() & {"numpy", "torch", "pydantic", "tqdm"}))
""")
    assert lines[0] == "usage: python -m experiments COMMAND [--help]"
    assert lines[-2:] == ["2", "[]"]


def test_an_unknown_command_is_one_clear_line():
    for given, end in (("lottery", "lottery"), ("comparee", "comparee (did you mean compare?)")):
        argv = [sys.executable, "-m", "experiments", given]
        ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: command must be one of run, compare, tune, ")
        assert ended.stderr.endswith(f", mlproject, got {end}\n")
        assert ended.stderr.count("\n") == 1
        assert not ended.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"criterion": "snip"}, ["criterion=snip"]),
        ({"criterion": "snip", "scope": "layer"}, ["criterion=snip", "scope=layer"]),
        ({"scope": "global"}, ["scope=global"]),
    ],
)
def test_the_name_of_a_run_has_the_scope_only_if_it_is_not_that_of_its_criterion(given, words):
    name = run_name(config_from(given | {"device": "cpu"}).resolved("digits"))
    assert set(name.split()) >= set(words)
    assert ("scope=" in name) == ("scope" in given)
