"""The script that MLflow runs to load a served model (models from code)."""

from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from experiments.deployment.serve import Served

read_json: Any = scoring_server._decode_json_input


def read_json_or_reject(content: Any) -> Any:
    """As MLflow 3.17 reads JSON, except that too deep nesting gets status 400 instead of 500."""
    try:
        return read_json(content)
    except RecursionError:
        raise MlflowException.invalid_parameter_value("the JSON is nested too deeply") from None


scoring_server._decode_json_input = read_json_or_reject
mlflow.models.set_model(Served())
