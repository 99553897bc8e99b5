"""Prepare faces: from a folder of photographs to a data set, and what became of each to MLflow.

mlflow run . -e prepare_faces -P source=photographs -P out=data/my_faces
"""

import hashlib
import re
import time
from pathlib import Path

import mlflow
import pandas as pd
import torch
from mlflow.entities import Metric, Param

from datasets.contact_sheets import FOLDER as SHEETS
from datasets.manifest import KEPT, MANIFEST, OUTCOMES, excluded_as
from datasets.prepare import EXCLUDE, prepare, read_exclude
from experiments.config.faces import FacesConfig
from experiments.config.parameters import AUTO, as_text
from experiments.processes.signals import raise_if_interrupted
from experiments.tracking import server
from experiments.tracking.session import tracked_run

MOST_CLASSES = 100  # in MLflow's metrics, and in the table that is printed; files have them all
BATCH = 1000  # metrics that MLflow takes at once


def prepare_photographs(config: FacesConfig) -> pd.DataFrame:
    """Prepare a folder, tell what became of it, and log that; the manifest.

    Raises:
        ValueError: If something asked for is wrong, missing or impossible.
    """
    server.check_tracking()
    source, out = Path(config.source), Path(config.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if config.device == AUTO else config.device
    with tracked_run(f"prepare_faces {source.name}") as run_id:
        _log_params(run_id, config, device)
        table = prepare(source, out, config.options(), device)
        raise_if_interrupted()
        counts = pd.crosstab(table["label"].replace("", "(no class)"), table["outcome"])
        counts = counts.reindex(columns=[name for name in OUTCOMES if name in counts])
        _log(run_id, counts, out)
    print(report(table, counts, out))
    return table


def _log_params(run_id: str, config: FacesConfig, device: str) -> None:
    client = mlflow.MlflowClient()
    known = client.get_run(run_id).data.params  # `mlflow run` has logged what it was given
    asked = {name: as_text(value) for name, value in config.model_dump().items()}
    asked["resolved_device"] = device
    new = [Param(*param) for param in asked.items() if param[0] not in known]
    client.log_batch(run_id, params=new)


def _log(run_id: str, counts: pd.DataFrame, out: Path) -> None:
    totals = {f"outcome/{outcome}": count for outcome, count in counts.sum().items()}
    classes = counts.index if len(counts) <= MOST_CLASSES else ()
    for label in classes:
        name = f"class/{metric_name(label)}"
        totals |= {f"{name}/{outcome}": count for outcome, count in counts.loc[label].items()}
    now = int(1000 * time.time())
    metrics = [Metric(name, float(value), now, 0) for name, value in totals.items()]
    for start in range(0, len(metrics), BATCH):
        mlflow.MlflowClient().log_batch(run_id, metrics[start : start + BATCH])
    mlflow.log_text(counts.to_csv(), "counts.csv")
    mlflow.log_artifact(str(out / MANIFEST))
    mlflow.log_artifacts(str(out / SHEETS), SHEETS)


def metric_name(label: str) -> str:
    """A class's name as MLflow allows one; different ones stay different."""
    name = re.sub(r"[^\w. -]|^\.+", "_", label)[:100] or "_"
    if name == label:
        return name
    return f"{name}-{hashlib.blake2b(label.encode(), digest_size=3).hexdigest()}"


def report(table: pd.DataFrame, counts: pd.DataFrame, out: Path) -> str:
    """What became of the photographs, where to look, and what to do next."""
    lines = []
    if len(counts) <= MOST_CLASSES:
        lines += [counts.to_string(), ""]
    totals = ", ".join(f"{count} {name}" for name, count in counts.sum().items())
    lines += [f"{table['source'].nunique()} photographs of {len(counts)} classes: {totals}"]
    done = set(table["source"]) | set(table["reason"])
    unknown = sorted(n for n in read_exclude(out) if not {n, excluded_as(n)} & done)
    if unknown:
        lines += [f"WARNING: {out / EXCLUDE} names what is not there: {', '.join(unknown[:5])}"]
    lines += [
        f"To look at them: {out / SHEETS}; to leave some out, name them in {out / EXCLUDE},",
        "one a line, and run the same again.",
    ]
    classes = table.loc[table["outcome"] == KEPT, "label"].nunique()
    if classes < 2:
        return "\n".join([*lines, f"{classes} class(es) kept: to train, two are the least."])
    return "\n".join([*lines, f"Next: mlflow run . -P dataset=faces -P data_root={out}"])
