"""Runs whose networks have twins, in a real MLflow."""

import mlflow
import pandas as pd
import pytest

from experiments.config.experiment import config_from
from experiments.run import run_experiment
from experiments.tracking.log import Run
from tests.conftest import QUICK, working_in
from tests.test_rounds_twin import NAMES
from tests.test_tracking_resume import account

TWINS = QUICK | {"twin": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory, empty_store):
    """A finished run; others are in the same store."""
    with working_in(tmp_path_factory.mktemp("base"), empty_store):
        yield run_experiment(config_from(TWINS))


def rounds(run_id):
    return pd.read_csv(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="rounds.csv")
    )


def test_every_round_has_its_twin_in_mlflow_and_in_the_table(base):
    table, run = rounds(base), mlflow.get_run(base)
    for name in NAMES:
        history = mlflow.MlflowClient().get_metric_history(base, name)
        assert [point.value for point in history] == table[name].tolist()
    assert (table["twin_distance"] > 0).all()
    assert run.info.run_name.endswith("train_limit=300 twin=true seed 0")
    assert run.data.params["twin"] == "true"


def test_a_branch_takes_the_dense_networks_twin_from_its_base(base):
    branched = rounds(run_experiment(config_from(TWINS | {"branch_of": base, "reinit": "random"})))
    alone = rounds(run_experiment(config_from(TWINS | {"reinit": "random"})))
    names = sorted(NAMES)
    assert branched[names].equals(alone[names])
    assert branched["round_seconds"][0] == rounds(base)["round_seconds"][0]


@pytest.mark.parametrize("masks", ["own", "shared"])
def test_a_base_without_twins_is_refused(base, masks):
    asked = QUICK | {"branch_of": base, "masks": masks, "reinit": "random"}
    with pytest.raises(ValueError, match=r"does not match this one: twin \(here false, there true"):
        run_experiment(config_from(asked))


def test_an_interrupted_run_with_twins_ends_the_same(base, monkeypatch):
    calls, real = [], Run._log_metrics

    def cut(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Run, "_log_metrics", cut)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config_from(TWINS))
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (run_id,) = (run.info.run_id for run in found if run.info.status == "KILLED")
    run_experiment(config_from({"resume": run_id}))
    assert account(run_id) == account(base)
