"""UI: links straight to what a command has logged, and how to open them.

`workflowType` selects the part of MLflow's UI that is for training; it opens in the one for agents.
A chart view is kept as an experiment's tag, as MLflow does for its own "Share" button.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from shlex import quote
from urllib.parse import quote as quote_url

import mlflow
from mlflow.exceptions import MlflowException

from experiments.processes.program import program_path
from experiments.processes.secrets import has_secret
from experiments.tracking.server import attached_run, without_login

LOCAL = "http://127.0.0.1:5000"  # where `mlflow ui` serves
TRAINING = "workflowType=machine_learning"
VIEW = "mlflow.sharedViewState."  # prefix of the tag of a view
# The tag by which charts group the arms of a comparison. The UI's colours are a hash of name and
# value: as "method", random and lottery would have the same red.
METHOD_TAG = "Method"
X_AXIS = "remaining_weights"
CHARTS = {"test_error": "log", "test_accuracy": "linear", "valid_accuracy": "linear"}  # and y axis


def base() -> str:
    """The address of the UI: the tracking server's, or that of `mlflow ui`."""
    uri = str(mlflow.get_tracking_uri())
    return without_login(uri) if uri.startswith("http") else LOCAL


def command() -> str:
    """The command that starts the UI; empty if a tracking server serves it."""
    uri = str(mlflow.get_tracking_uri())
    if uri.startswith("http"):
        return ""
    shown = "$MLFLOW_TRACKING_URI" if has_secret(uri) else quote(uri)
    return f"{quote(program_path('mlflow'))} ui --backend-store-uri {shown}"


def experiment_name(run_id: str | None = None) -> str:
    """The name of the MLflow experiment of a run; by default, that this process logs to."""
    active, known = mlflow.active_run(), run_id or attached_run()
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if active and not run_id:
        number = active.info.experiment_id
    elif known:
        number = mlflow.get_run(known).info.experiment_id
    if number:
        return str(mlflow.get_experiment(number).name)
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"


def logging_to() -> str:
    """A line that says where this process logs to."""
    where = without_login(str(mlflow.get_tracking_uri()))
    return f"logging to the MLflow experiment {experiment_name()} in {where}"


def run_link(experiment_id: str, run_id: str) -> str:
    """The page of a run."""
    return f"{base()}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def chart_link(experiment_id: str, run_id: str = "", arms: Sequence[str] = ()) -> str:
    """Charts of accuracy against remaining weights, with a line for each method.

    Args:
        run_id: Of a comparison; not used without `arms`.
        arms: Ids of its runs, some of which may be nested under another comparison; without them,
            all runs of the experiment.
    """
    key, by = (run_id, ("tag", METHOD_TAG)) if arms else ("weight-loss", ("param", "reinit"))
    which = f"attributes.run_id IN ({', '.join(map(repr, arms))})" if arms else ""
    link = f"{base()}/#/experiments/{experiment_id}/runs?{TRAINING}&compareRunsMode=CHART"
    view = {
        "searchFilter": which,
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": by[0], "groupByData": by[1]}],
        },
        "compareRunSections": [
            {
                "uuid": key,
                "name": "By remaining weights",
                "display": True,
                "isReordered": False,
                "columns": 1,
                "cardHeight": 420,
            }
        ],
        "compareRunCharts": [_chart(name, scale, key) for name, scale in CHARTS.items()],
    }
    with suppress(MlflowException):  # if the view cannot be stored, the UI draws its own charts
        mlflow.MlflowClient().set_experiment_tag(experiment_id, f"{VIEW}{key}", json.dumps(view))
        return f"{link}&viewStateShareKey={key}"
    return f"{link}&searchFilter={quote_url(which)}"


def _chart(metric: str, scale: str, section: str) -> dict[str, object]:
    """A line chart of the UI; groups of runs are means with bands."""
    return {
        "type": "LINE",
        "uuid": f"{section}-{metric}",
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "yAxisKey": "metric",
        "scaleType": scale,
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": X_AXIS,
        "xAxisScaleType": "linear",
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": False,
        "lineSmoothness": 0,
        "displayPoints": True,
        "range": {},
    }


def how_to_view(what: str, run_id: str, charts: str = "", arms: Sequence[str] = ()) -> str:
    """Lines for the terminal: how to start the UI, and what to open there.

    Args:
        what: Is shown at `run_id`.
        charts: What the charts show, all runs or the `arms`; "" for no link to charts.
        arms: Ids of the runs of a comparison.
    """
    experiment = str(mlflow.get_run(run_id).info.experiment_id)
    links = {what: run_link(experiment, run_id)}
    if charts:
        links[charts] = chart_link(experiment, run_id, arms)
    starting = command()
    first = f"To look at it, run `{starting}`, then open" if starting else "To look at it, open"
    width = max(map(len, links))
    return "\n".join([first, *(f"  {what:<{width}}  {link}" for what, link in links.items())])
