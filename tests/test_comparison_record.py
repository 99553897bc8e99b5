import time

import mlflow
import pytest

from experiments.comparison import record as comparisons
from experiments.config.comparison import CompareConfig, arms_of
from experiments.config.parameters import validated
from experiments.tracking.server import without_login
from experiments.tracking.session import PARENT


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/", "http://host:5000"),
        ("https://host/mlflow", "https://host/mlflow"),
    ],
)
def test_an_address_is_shown_without_its_login(uri, shown):
    assert without_login(uri) == shown


def test_a_comparison_without_a_finished_arm_has_nothing_to_report():
    failed = {"label": "keep", "seed": 0, "run_id": None, "reason": "the loss is nan"}
    made = comparisons.Record({}, {}, 1, [1, 8, 8], {}, "digits", [failed])
    with pytest.raises(ValueError, match="no arm of this comparison succeeded"):
        comparisons.read_table(made, "rounds.csv")


def test_a_setting_that_depends_on_the_method_has_the_value_of_each():
    def setting(**changes):
        config = validated(
            CompareConfig, {"reinits": "lottery", "device": "cpu", "baselines": "none"} | changes
        )
        first = config.config_of(arms_of(config)[0]).resolved("digits")
        return comparisons.setting_of(config, first)

    assert setting()["scope"] == "layer"
    assert setting(criterion="snip")["scope"] == "global"
    both = setting(criterion="magnitude,movement,snip")
    assert both["scope"] == "layer (lottery magnitude and lottery movement), global (lottery snip)"
    assert both["retrain_epochs"] == 10
    assert setting(criterion="magnitude,snip", scope="global")["scope"] == "global"


def adopted(kind, status, running=False):
    """Whether a child is taken over from a parent of this kind and status."""
    client = mlflow.MlflowClient()
    mlflow.set_experiment("weight-loss")
    ids = []
    for parent in (None, None, "first"):
        run = mlflow.start_run(parent_run_id=ids[0] if parent else None)
        ids.append(run.info.run_id)
        mlflow.end_run()
    former, new, child = ids
    if kind:
        client.set_tag(former, "kind", kind)
    if running:
        client.set_tag(former, "weight_loss.lock", "another machine's")
        client.set_tag(former, "weight_loss.heartbeat", str(time.time() + 1000))
    client.set_terminated(former, status)
    comparisons.adopt(client.get_run(child), new)
    ended = client.get_run(former).info.status
    return client.get_run(child).data.tags[PARENT] == new, ended


def test_arms_are_taken_over_from_interrupted_comparisons_only(store):
    assert adopted("comparison", "KILLED") == (True, "KILLED")
    assert adopted("comparison", "RUNNING") == (True, "KILLED")
    assert adopted("comparison", "RUNNING", running=True) == (False, "RUNNING")
    assert adopted("comparison", "FINISHED") == (False, "FINISHED")
    assert adopted(None, "RUNNING") == (False, "RUNNING")
