"""Logging: what an experiment leaves in MLflow.

A round is complete once its row of metrics is logged, in one transaction; its files and its epochs'
metrics are logged before. Steps of a run's metrics count rounds; steps of `epoch/...`
metrics count epochs through all rounds.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import torch
from mlflow.data.dataset import Dataset
from mlflow.data.numpy_dataset import from_numpy
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from torch import Tensor

from datasets import Splits
from experiments.config.experiment import Config, Resolved
from experiments.config.fields import NONE, Method
from experiments.config.parameters import AUTO, as_text
from experiments.processes.tasks import DuplicateError
from experiments.rounds.metrics import COMPLETE, METRICS, PER_EPOCH, known
from experiments.rounds.network import describe_network, to_network
from experiments.rounds.rounds import RoundResult, Snapshot
from experiments.tracking import summary
from experiments.tracking.claims import duplicate_of, mark_started
from experiments.tracking.correct import FOLDER as CORRECT
from experiments.tracking.correct import path_of, to_bits
from experiments.tracking.environment import environment, release
from experiments.tracking.fingerprint import (
    FINGERPRINT,
    code_digest,
    fingerprint,
    pretrained_digest,
)
from experiments.tracking.resume import INITIAL, REWOUND, StoredRun, checkpoint_name
from experiments.tracking.server import retry_while_locked
from experiments.tracking.session import INTERNAL, describe, internal, tracked_run
from experiments.tracking.tables import EPOCH_PREFIX, History, Row, epoch_rows
from pruning.checkpoint import save_checkpoint

MODEL_EXTRA_BYTES = 4 << 20  # in a logged model beside the weights: graph and example input


class Run:
    """One experiment's run in MLflow."""

    def __init__(self, run_id: str, config: Resolved, data: Splits, why: str, last: int) -> None:
        self.run_id, self.config, self.data, self.why, self.last = run_id, config, data, why, last
        self.client = mlflow.MlflowClient()
        self.history = History()
        self.network: Snapshot | None = None

    def log_round(self, result: RoundResult) -> None:
        """Log a finished round: first its files, then its metrics."""
        number, now = result.network.round, int(1000 * time.time())
        row: Row = {"round": number} | result.metrics

        def log_files() -> None:
            if result.correct is not None:
                self._log_correct(number, result.correct)
            row["checkpoint_bytes"] = self._log_checkpoints(result)

        retry_while_locked(log_files)
        row |= result.seconds
        epochs = epoch_rows(self.config, number, result.evaluations)
        retry_while_locked(lambda: self._log_metrics(row, epochs, now))
        self.history.rounds.append(row)
        self.history.epochs.extend(epochs)
        self.network = result.network
        retry_while_locked(self._log_tables)

    def finish(self) -> None:
        """Log the figures, and the last network as a model; a resumed run may do so again."""
        retry_while_locked(self._finish)

    def _finish(self) -> None:
        from experiments.figures import experiment  # matplotlib is slow to import

        assert self.network is not None
        self._log_tables()
        rounds, epochs = self.history.frames()
        title = summary.run_name(self.config)
        figures = {
            "accuracy_vs_sparsity": experiment.draw_accuracy(rounds, title),
            "accuracy_per_epoch": experiment.draw_epochs(rounds, epochs, title),
            "layer_sparsity": experiment.draw_layers(rounds, title),
        }
        share = experiment.pixel_use(self.network.masks, self.data.image_shape)
        if share is not None:
            figures["first_layer_pixels"] = experiment.draw_pixels(share, title)
        for name, figure in figures.items():
            mlflow.log_figure(figure, f"plots/{name}.png")
        self._log_model(self.network)
        at, values = self._time_of(self.network.round), summary.headlines(rounds)
        # All with step 0, so that the UI draws bars.
        self.client.log_batch(self.run_id, [Metric(name, values[name], at, 0) for name in values])

    def _log_correct(self, number: int, correct: Tensor) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(path_of(number)).name)
            path.write_bytes(to_bits(correct))
            mlflow.log_artifacts(folder, CORRECT)

    def _log_checkpoints(self, result: RoundResult) -> int:
        network = result.network
        number, name = network.round, checkpoint_name(network.round)
        states = {name: network.state}
        if number == 0:
            states[INITIAL] = network.initial
            if network.rewound is not None:
                states[REWOUND] = network.rewound
        sizes = {}
        with tempfile.TemporaryDirectory() as folder:
            for what, state in states.items():
                metadata = {"config": self.config.settings(), "round": number, "what": what}
                metadata |= describe_network(self.config, self.data)
                metadata |= {"metrics": known(result.metrics)} if what == name else {}
                path = Path(folder, f"{what}.safetensors")
                sizes[what] = save_checkpoint(path, state, network.masks, metadata)
            mlflow.log_artifacts(folder, "checkpoints")
        return sizes[name]

    def _log_metrics(self, row: Row, epochs: list[Row], now: int) -> None:
        curves = [
            Metric(f"{EPOCH_PREFIX}{name}", epoch[name], now, int(epoch["step"]))
            for epoch in epochs
            for name in reversed(PER_EPOCH)  # the UI's comparison of runs opens on the first
            if epoch["step"] not in self.history.steps_logged
        ]
        self.client.log_batch(self.run_id, metrics=curves)
        values = {name: value for name, value in row.items() if name != "round"}
        metrics = [Metric(name, value, now, int(row["round"])) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)  # the round is complete with this

    def _log_tables(self) -> None:
        rounds, epochs = self.history.frames()
        mlflow.log_text(rounds.to_csv(index=False), "rounds.csv")
        mlflow.log_text(epochs.to_csv(index=False), "epochs.csv")
        text = summary.description(self.config, rounds, self.last, self.why)
        mlflow.set_tag("mlflow.note.content", text)

    def _log_model(self, network: Snapshot) -> None:
        """Log the network as a model with its own metrics.

        `mlflow.pytorch.log_model` would give it every metric of the run that has the same step,
        among them those of an epoch of an early round.
        """
        run = self.client.get_run(self.run_id)
        for old in self.client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{self.run_id}'"
        ):
            self.client.delete_logged_model(old.model_id)  # its process was killed after this line
        served = to_network(self.config, self.data, network)
        test = self.data.test
        assert test
        example = (test.images[:2].cpu().float() / test.view.white).numpy()
        with torch.no_grad():
            logits = served.module(torch.from_numpy(example)).numpy()
        served.module.finite_only = True  # a server would answer NaN, which is not JSON
        name = summary.run_name(self.config)
        logged = mlflow.initialize_logged_model(
            re.sub(r"[^\w-]", "-", name),
            source_run_id=self.run_id,
            params={key: as_text(value) for key, value in self.config.settings().items()}
            | {"round": str(network.round)},
            tags={"mlflow.note.content": f"{name}: the network after round {network.round}"},
            model_type="classifier",
        )
        with tempfile.TemporaryDirectory() as folder:
            _check_space(folder, served.module)
            mlflow.pytorch.save_model(
                served.module,
                folder,
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    run_id=self.run_id,
                    model_uuid=logged.model_id,
                    metadata={"class_names": list(served.class_names)},
                ),
                signature=mlflow.models.infer_signature(example, logits),
                input_example=example,
                pip_requirements=[f"{name}=={release(name)}" for name in ("torch", "numpy")],
                serialization_format="pt2",
            )
            self.client.log_model_artifacts(logged.model_id, folder)
        self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        output = LoggedModelOutput(logged.model_id, step=network.round)
        self.client.log_outputs(self.run_id, [output])
        self._log_model_metrics(logged.model_id, network.round)

    def _log_model_metrics(self, model_id: str, number: int) -> None:
        """Log the metrics of a round to its model too, each with the images that it is of.

        MLflow would store 0 for a model's NaN.
        """
        at, metrics = self._time_of(number), []
        for name, value in known(self.history.rounds[number]).items():
            split = METRICS[name].split if name in METRICS else None
            images = {"dataset_name": f"{self.data.name}-{split}"} if split else {}
            images |= {"dataset_digest": self.data.digest} if split else {}
            if name != "round":
                metrics.append(Metric(name, value, at, number, model_id=model_id, **images))
        self.client.log_batch(self.run_id, metrics=metrics)

    def _time_of(self, number: int) -> int:
        """When the metrics of a round were logged; with another time, others would be there twice.

        A resumed run may log again what it has logged.
        """
        history = self.client.get_metric_history(self.run_id, COMPLETE)
        (at,) = {point.timestamp for point in history if point.step == number}
        return int(at)


@contextmanager
def open_run(
    config: Resolved,
    asked: Config,
    data: Splits,
    why: str,
    last: int,
    stored: StoredRun | None,
    parent: str | None = None,
) -> Iterator[Run]:
    """The run to log to: the one `mlflow run` has opened, a new one, or `stored`, resumed.

    Args:
        config: What is run; `asked` is the same as the user gave it, with "auto" in it.
        why: Why this data set was chosen, in words.
        last: Number of the last round.
        parent: Id of the run that a new one is nested under.

    Raises:
        DuplicateError: If another run of the same experiment is finished or in progress, and this
            one is new and nested. This one is then deleted.
    """
    resume, tags = stored.run_id if stored else NONE, _tags(config, data, why, last)
    try:
        with tracked_run(summary.run_name(config), resume, parent, tags) as run_id:
            run = Run(run_id, config, data, why, last)
            if stored:
                run.history, run.network = stored.history, stored.network
                if not stored.history.rounds:  # it may have ended before it got one
                    _log_fingerprint(run)
            else:
                key = _describe(run, asked)
                if parent and (duplicate := duplicate_of(run_id, key)):
                    raise DuplicateError(duplicate.info.run_id)
            mark_started(run_id)
            yield run
    except DuplicateError:
        mlflow.MlflowClient().delete_run(run_id)
        raise


def _describe(run: Run, asked: Config) -> str:
    """Log what the run is: params, tags, data sets, config; returns its fingerprint."""
    config, data = run.config, run.data
    params = params_of(asked, config)
    tags = {
        "code": code_digest(config),
        "pretrained_sha256": pretrained_digest(config),
        "dataset_digest": data.digest,
    } | environment(config.device)
    if config.masks == "own":  # where the dense network came from does not set runs apart
        tags["branch_of"] = params.pop("branch_of")
    describe(run.run_id, params, internal(tags))
    for context in ("train", "valid", "test"):
        split = getattr(data, context)
        dataset = from_numpy(
            split.images.cpu().numpy(),
            targets=split.labels.cpu().numpy(),
            name=f"{data.name}-{context}",
            digest=data.digest,
        )
        _log_input(dataset, context)
    if data.class_names:
        mlflow.log_text("".join(f"{name}\n" for name in data.class_names), "classes.txt")
    # Late, because a run with a config can be resumed, and is not described again.
    mlflow.log_dict(config.model_dump() | {"resume": NONE}, "config.json")
    # Last, because a run that is found by its fingerprint must have a config.
    return _log_fingerprint(run)


def _log_fingerprint(run: Run) -> str:
    key = fingerprint(run.config, run.data.digest, torch.get_num_threads())
    run.client.set_tag(run.run_id, f"{INTERNAL}{FINGERPRINT}", key)
    return key


def params_of(asked: Config, resolved: Resolved) -> dict[str, str]:
    """An experiment's params: what the user gave, and what each "auto" became."""
    params = {name: as_text(value) for name, value in asked.model_dump().items()}
    return params | {
        f"resolved_{name}": as_text(getattr(resolved, name))
        for name, text in params.items()
        if text == AUTO
    }


def _check_space(folder: str, network: torch.nn.Module) -> None:
    """Write as much as the network's model takes; on a full disk, PyTorch's writer would abort.

    Raises:
        OSError: If it does not fit.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size + MODEL_EXTRA_BYTES))
    except OSError as error:
        error.filename = folder
        raise


def _log_input(dataset: Dataset, context: str) -> None:
    """Log a data set, which another run may log for the first time at the same moment."""
    for pause in (0.1, 0.5, None):
        try:
            mlflow.log_input(dataset, context=context)
            return
        except MlflowException as error:  # MLflow selects and then inserts, in two transactions
            if pause is None or "unique constraint" not in str(error).lower():
                raise
            time.sleep(pause)


def _tags(config: Resolved, data: Splits, why: str, last: int) -> dict[str, str]:
    """What people read, logged before what the program reads: the UI lists tags in this order."""
    chosen = (*Method.model_fields, "masks", "dataset", "model", "scope", "device", "precision")
    return {name: str(getattr(config, name)) for name in chosen} | {
        "dataset_why": why,
        "dataset_source": data.source,
        "rounds_planned": str(last),
    }
