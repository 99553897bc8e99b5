"""Prepare faces: turn a folder of photographs into a data set and log the outcomes to MLflow.

mlflow run . -e prepare_faces -P source=photographs -P out=data/my_faces
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import mlflow
import pandas as pd
import torch

from datasets.photographs import CONTACT_SHEETS, EXCLUDED, MANIFEST
from datasets.photographs.files import NO_CLASS, escape_formula
from datasets.photographs.manifest import KEPT, OUTCOMES, exclusion_reason
from datasets.photographs.prepare import check_folders, prepare, read_excluded
from experiments.config.faces import FacesConfig
from experiments.config.parameters import AUTO
from experiments.processes.signals import raise_if_interrupted
from experiments.processes.terminal import print_line, table_text
from experiments.rounds.data import few_tests_warning
from experiments.tracking import server, ui
from experiments.tracking.paste import command_to_paste
from experiments.tracking.session import close_killed_runs, describe, tracked_run

KIND = "prepare_faces"  # value of its run's tag "kind"
MAX_CLASSES = 100  # for metrics and the printed table; counts.csv always has all classes


def prepare_photographs(config: FacesConfig) -> pd.DataFrame:
    """Prepare a folder, log and print the outcomes, and return the manifest.

    Raises:
        ValueError: As `datasets.photographs.prepare.prepare`.
    """
    server.check_tracking()
    print_line(ui.logging_to())
    source, out = Path(config.source), Path(config.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if config.device == AUTO else config.device
    check_folders(source, out, config.options())  # an error leaves no run
    with tracked_run(f"prepare_faces {source.name}", tags={"kind": KIND}) as run_id:
        close_killed_runs(run_id, f"tags.kind = '{KIND}'")
        describe(run_id, config.model_dump() | {"resolved_device": device})
        table = prepare(source, out, config.options(), device)
        raise_if_interrupted()
        counts = pd.crosstab(table["label"].replace("", NO_CLASS), table["outcome"])
        counts = counts.reindex(columns=[name for name in OUTCOMES if name in counts])
        _log(counts, out)
    print_line(report(table, counts, out))
    return table


def _log(counts: pd.DataFrame, out: Path) -> None:
    totals = {f"outcome/{outcome}": count for outcome, count in counts.sum().items()}
    classes = counts.index if len(counts) <= MAX_CLASSES else ()
    for label in classes:
        name = f"class/{metric_name(label)}"
        totals |= {f"{name}/{outcome}": count for outcome, count in counts.loc[label].items()}
    mlflow.log_metrics(totals)
    mlflow.log_text(counts.rename(index=escape_formula).to_csv(), "counts.csv")
    mlflow.log_artifact(str(out / MANIFEST))
    mlflow.log_artifacts(str(out / CONTACT_SHEETS), CONTACT_SHEETS)


def metric_name(label: str) -> str:
    """A class name as a valid MLflow metric name; different classes get different names."""
    name = re.sub(r"[^\w. -]|^\.+", "_", label)[:100] or "_"
    if name == label:
        return name
    return f"{name}-{hashlib.blake2b(label.encode(), digest_size=3).hexdigest()}"


def report(table: pd.DataFrame, counts: pd.DataFrame, out: Path) -> str:
    """The outcomes, and what to do next."""
    lines = []
    if len(counts) <= MAX_CLASSES:
        columns: dict[str, Iterable[object]] = {"class": counts.index}
        columns |= {name.replace("_", "\n"): counts[name] for name in OUTCOMES if name in counts}
        lines += [table_text(columns), ""]
    totals = ", ".join(f"{count} {name}" for name, count in counts.sum().items())
    lines += [f"{table['source'].nunique()} photographs of {len(counts)} classes: {totals}"]
    known = set(table["source"]) | set(table["reason"])
    unknown = sorted(n for n in read_excluded(out) if not {n, exclusion_reason(n)} & known)
    if unknown:
        lines += [f"WARNING: {out / EXCLUDED} names unknown files: {', '.join(unknown[:5])}"]
    lines += [
        f"Check the contact sheets in {out / CONTACT_SHEETS}. To exclude photographs, list them in",
        f"{out / EXCLUDED}, one per line, and run the same command again.",
    ]
    kept = table[table["outcome"] == KEPT]
    lines += few_tests_warning(int((kept["split"] == "test").sum()))
    classes = kept["label"].nunique()
    if classes < 2:
        lines += [f"Training requires at least two classes with kept faces, got {classes}."]
    else:
        params = {"dataset": "faces", "data_root": str(out)}
        lines += [f"Next: {command_to_paste('run', params)}"]
    return "\n".join(lines)
