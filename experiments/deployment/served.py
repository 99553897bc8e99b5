"""The script that MLflow runs to load a served model (models from code)."""

import mlflow

from experiments.deployment.serve import Served

mlflow.models.set_model(Served())
