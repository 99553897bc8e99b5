"""Tracking: what an experiment leaves in MLflow. Only this file, stored_run.py and
leftover.py know MLflow.

A round is complete once its metrics are logged, which is the last thing written of it, in one
transaction; its checkpoint is there by then. Steps of a run's metrics count rounds; steps of
`epoch/...` metrics count epochs through all rounds.
"""

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import mlflow
import torch
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from datasets import Splits
from experiments import leftover, plots, summary
from experiments.config import NO_RESUME, Config, as_text
from experiments.environment import environment, release
from experiments.liveness import Interrupted, heartbeat, sole_worker
from experiments.rounds import Network, RoundResult
from experiments.stored_run import StoredRun, checkpoint_name
from experiments.tables import History, epoch_rows
from models import build_model
from models.serving import FromPixels
from pruning.checkpoint import save_checkpoint

EXPERIMENT = "weight-loss"
ERRORS = (ValueError, OSError, MlflowException)  # what a user can meet, told on one line
_DEFAULT_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")


class Run:
    """One experiment's run in MLflow."""

    def __init__(self, run_id: str, config: Config, data: Splits, why: str, last: int) -> None:
        self.run_id, self.config, self.data, self.why, self.last = run_id, config, data, why, last
        self.client = mlflow.MlflowClient()
        self.history = History()
        self.network: Network | None = None

    def log_round(self, result: RoundResult) -> None:
        """Keep a finished round: first its checkpoint, then its numbers."""
        number = result.network.round
        size = self._log_checkpoints(result)
        row = {"round": number} | result.metrics
        row |= {"checkpoint_bytes": size} | result.seconds
        epochs = epoch_rows(self.config, number, result.looks)
        self._log_metrics(row, epochs)
        self.history.rounds.append(row)
        self.history.epochs.extend(epochs)
        self.network = result.network
        self._log_tables()

    def finish(self) -> None:
        """Draw the figures and log the last network as a model; may be done again."""
        assert self.network is not None
        rounds, epochs = self.history.frames()
        title = summary.run_name(self.config)
        figures = {
            "accuracy_vs_sparsity": plots.draw_accuracy(rounds, title),
            "accuracy_per_epoch": plots.draw_epochs(rounds, epochs, title),
            "layer_sparsity": plots.draw_layers(rounds, title),
        }
        share = plots.pixel_use(self.network.masks, self.data.image_shape)
        if share is not None:
            figures["first_layer_pixels"] = plots.draw_pixels(share, title)
        for name, figure in figures.items():
            mlflow.log_figure(figure, f"plots/{name}.png")
        headlines = summary.headlines(rounds)
        model_id = self._log_model(self.network)
        mlflow.log_metrics(headlines, step=self.network.round, model_id=model_id)

    def _log_checkpoints(self, result: RoundResult) -> int:
        network = result.network
        states = {checkpoint_name(network.round): (network.state, result.metrics)}
        if network.round == 0:
            states["initial"] = (network.initial, {})
            if network.rewound is not None:
                states["rewound"] = (network.rewound, {})
        # Nothing of the machine or the hour: the same experiment writes the same bytes.
        settings = self.config.model_dump(exclude={"data_root", "resume", "device"})
        with tempfile.TemporaryDirectory() as folder:
            for name, (state, metrics) in states.items():
                metadata = {"config": settings, "round": network.round, "metrics": metrics}
                path = Path(folder, f"{name}.safetensors")
                size = save_checkpoint(path, state, network.masks, metadata | {"what": name})
                states[name] = (state, {"size": size})
            mlflow.log_artifacts(folder, "checkpoints")
        return int(states[checkpoint_name(network.round)][1]["size"])

    def _log_metrics(self, row: dict[str, float], epochs: list[dict[str, float]]) -> None:
        now, number = int(1000 * time.time()), int(row["round"])
        curves = [
            Metric(f"epoch/{name}", value, now, int(epoch["step"]))
            for epoch in epochs
            for name, value in epoch.items()
            if name not in ("round", "epoch", "step")
        ]
        metrics = [
            Metric(name, value, now, number) for name, value in row.items() if name != "round"
        ]
        self.client.log_batch(self.run_id, metrics=curves + metrics)

    def _log_tables(self) -> None:
        rounds, epochs = self.history.frames()
        mlflow.log_text(rounds.to_csv(index=False), "rounds.csv")
        mlflow.log_text(epochs.to_csv(index=False), "epochs.csv")
        text = summary.description(self.config, rounds, self.last, self.why)
        mlflow.set_tag("mlflow.note.content", text)

    def _log_model(self, network: Network) -> str:
        for old in mlflow.search_logged_models(
            filter_string=f"source_run_id = '{self.run_id}'", output_format="list"
        ):
            self.client.delete_logged_model(old.model_id)  # of a process killed while it finished
        data = self.data
        model = build_model(self.config.model, data.image_shape, data.classes)
        model.load_state_dict({name: value.cpu() for name, value in network.state.items()})
        served = FromPixels(model, data.mean, data.std).eval()
        pixels = data.test.images[:2].cpu() * data.std + data.mean
        example = pixels.clamp(0, 1).numpy()
        with torch.no_grad():
            logits = served(torch.from_numpy(example)).numpy()
        logged = mlflow.pytorch.log_model(
            served,
            name=re.sub(r"[^\w-]", "-", summary.run_name(self.config)),
            signature=mlflow.models.infer_signature(example, logits),
            input_example=example,
            pip_requirements=[f"{name}=={release(name)}" for name in ("torch", "numpy")],
            serialization_format="pt2",
        )
        return str(logged.model_id)


@contextmanager
def open_run(
    config: Config, asked: Config, data: Splits, why: str, last: int, stored: StoredRun | None
) -> Iterator[Run]:
    """The run to log to: the one `mlflow run` has opened, a new one, or `stored` continued.

    On the way out the run is marked FINISHED; KILLED if it was interrupted; FAILED, with the
    reason in the tag `error`, on any other exception.

    Args:
        config: Resolved; `asked` is the same as it was asked for, with "auto" in it.
        why: Why it is this data set, in words.
        last: Number of the last round.
    """
    attached = attached_run()
    if stored:
        os.environ.pop("MLFLOW_RUN_ID", None)
        active = mlflow.start_run(run_id=stored.run_id)
    else:
        if not attached:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT)
        active = mlflow.start_run(run_name=None if attached else summary.run_name(config))
    run_id = active.info.run_id
    run = Run(run_id, config, data, why, last)
    lock = nullcontext() if stored else sole_worker(run_id)  # who resumes holds it already
    spare = attached if attached != run_id else None
    try:
        with lock, heartbeat(lambda: _beat(run_id)):
            if spare:
                leftover.label(spare, run_id)
            if stored:
                run.history, run.network = stored.history, stored.network
            else:
                _describe(run, asked)
            yield run
    except KeyboardInterrupt as stop:
        name = stop.signal_name if isinstance(stop, Interrupted) else "SIGINT"
        mlflow.set_tag("interrupted", name)
        mlflow.end_run("KILLED")
        raise
    except BaseException as error:
        mark_failed(run_id, error)
        mlflow.end_run("FAILED")
        raise
    else:
        mlflow.end_run("FINISHED")
    finally:
        if spare:
            leftover.delete_when_closed(spare)


def mark_failed(run_id: str | None, error: BaseException) -> None:
    """Mark a run FAILED and keep the reason, where the tracking server still answers."""
    if run_id is None:
        return
    client = mlflow.MlflowClient()
    try:
        client.set_tag(run_id, "error", summary.explain(error))
        client.set_terminated(run_id, "FAILED")
    except (MlflowException, OSError) as second:
        print(f"the run {run_id} could not be marked FAILED: {summary.explain(second)}")


def check_tracking() -> None:
    """See that the tracking server answers, before anything else is done.

    Raises:
        ValueError: If it does not.
    """
    patient = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in patient}
    os.environ.update({name: before[name] or value for name, value in patient.items()})
    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except Exception as error:
        raise ValueError(
            f"the tracking server {mlflow.get_tracking_uri()} does not answer "
            f"({summary.explain(error)}): start it, or set MLFLOW_TRACKING_URI to another"
        ) from None
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def attached_run() -> str | None:
    """The run that `mlflow run` opened for this process and nobody has started yet."""
    return os.environ.get("MLFLOW_RUN_ID")


def ui_command() -> str:
    """The command that opens the UI on what was logged."""
    uri = mlflow.get_tracking_uri()
    return f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def _describe(run: Run, asked: Config) -> None:
    """Say what the run is: name, params, tags, data."""
    config, data, client = run.config, run.data, run.client
    known = client.get_run(run.run_id)
    if _DEFAULT_NAME.fullmatch(known.info.run_name):
        client.update_run(run.run_id, name=summary.run_name(config))
    resolved = config.model_dump()
    # What was asked; `mlflow run` has logged these already, and they may not change.
    params = {name: as_text(value) for name, value in asked.model_dump().items()}
    params |= {
        f"resolved_{name}": as_text(resolved[name])
        for name, text in params.items()
        if text == "auto"
    }
    new = [Param(name, text) for name, text in params.items() if name not in known.data.params]
    tags = [RunTag(name, value) for name, value in (_tags(run) | environment()).items()]
    client.log_batch(run.run_id, params=new, tags=tags)
    mlflow.log_dict(resolved | {"resume": NO_RESUME}, "config.json")
    for context in ("train", "valid", "test"):
        split = getattr(data, context)
        dataset = from_numpy(
            split.images.cpu().numpy(),
            targets=split.labels.cpu().numpy(),
            name=f"{data.name}-{context}",
            digest=data.digest,
        )
        mlflow.log_input(dataset, context=context)


def _tags(run: Run) -> dict[str, str]:
    config = run.config
    chosen = ("reinit", "dataset", "model", "criterion", "scope", "device")
    return {name: str(getattr(config, name)) for name in chosen} | {
        "dataset_why": run.why,
        "dataset_source": run.data.source,
        "dataset_digest": run.data.digest,
        "rounds_planned": str(run.last),
    }


def _beat(run_id: str) -> None:
    tags = {"host": socket.gethostname(), "heartbeat": f"{time.time():.0f}"}
    with suppress(MlflowException):  # a lost server shows when a round is logged
        mlflow.MlflowClient().log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
