"""Networks: the result of a round as a working model, and how two of them differ.

A checkpoint's metadata says how to build its network without the data: `describe_network` writes
it, `open_network` reads it back.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, NonNegativeInt, ValidationError
from torch import Tensor, nn

from datasets import Split, Splits
from experiments.config.experiment import Config, Resolved, config_from
from experiments.rounds.data import load_data
from experiments.rounds.metrics import known
from experiments.rounds.rounds import Snapshot
from experiments.training.engine import EVAL_PIXELS
from models.serving import FromPixels, NetworkSpec
from pruning.checkpoint import Checkpoint, save_checkpoint
from pruning.masks import Masks

SPLITS = ("train", "valid", "test")


class _Data(BaseModel):
    """What a checkpoint says about its data."""

    digest: str = ""
    images: dict[Literal["train", "valid", "test"], NonNegativeInt] = {}
    preparation: dict[str, Any] | None = None


class _Metadata(BaseModel):
    """The checked part of a checkpoint's metadata; other entries may have any value."""

    network: NetworkSpec
    round: NonNegativeInt
    metrics: dict[str, float | None] = {}
    config: dict[str, Any] = {}
    data: _Data = _Data()


@dataclass(frozen=True)
class Network:
    """A pruned network that works: pixels in, logits out.

    `module` maps float pixels in [0, 1], [N, channels, height, width], to logits [N, classes]; it
    scales and crops them itself. Its pruned weights are exactly zero. Training it further moves
    them, unless you apply the masks after each step (`pruning.masks.apply_masks`).
    """

    module: FromPixels
    masks: Masks  # bool, True = survives; names as in `module.network.state_dict()`
    spec: NetworkSpec
    metadata: dict[str, Any]  # config, round, metrics, network, data

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each logit."""
        return self.spec.class_names

    @property
    def round(self) -> int:
        """Number of the round that made it; 0 is the dense network."""
        return int(self.metadata["round"])

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of its round, such as `test_accuracy` and `sparsity`."""
        return dict(self.metadata.get("metrics", {}))

    def save(self, path: str | Path) -> int:
        """Write a checkpoint that `load_network` reads; returns its size in bytes."""
        state = self.module.network.state_dict()
        return save_checkpoint(path, state, self.masks, self.metadata)


def describe_network(config: Resolved, data: Splits) -> dict[str, Any]:
    """The part of a checkpoint's metadata that makes a network of it: `network` and `data`."""
    view = data.train.view
    names = data.class_names or tuple(map(str, range(data.classes)))
    shape = tuple(data.train.images.shape[1:])
    spec = NetworkSpec(config.model, shape, names, view.mean, view.std, view.crop, l2=view.l2)
    about: dict[str, Any] = {"digest": data.digest, "images": {}}
    for name in SPLITS:
        split = getattr(data, name)
        about["images"][name] = len(split) if split else 0
    if data.name == "faces":
        from datasets.photographs.loading import read_options  # here: it imports pandas

        about["preparation"] = read_options(Path(data.source)).model_dump()
    return {"network": asdict(spec), "data": about}


def to_network(
    config: Resolved, data: Splits, snapshot: Snapshot, metrics: Mapping[str, float] | None = None
) -> Network:
    """A copy of a round's network, on the CPU."""
    metadata = {
        "config": config.settings(),
        "round": snapshot.round,
        "metrics": known(metrics or {}),
    }
    metadata |= describe_network(config, data)
    copy = Checkpoint(_copy(snapshot.state), _copy(snapshot.masks), metadata)
    return open_network(copy, f"round {snapshot.round}")


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layout = torch.contiguous_format
    return {
        name: value.detach().cpu().clone(memory_format=layout) for name, value in tensors.items()
    }


def is_described(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint says how to build its network; those of older versions do not."""
    return "network" in checkpoint.metadata


def open_network(checkpoint: Checkpoint, name: str, data: Splits | None = None) -> Network:
    """The network of a checkpoint.

    Args:
        name: What error messages call the checkpoint.
        data: The data that the network was trained on; only needed for checkpoints of versions
            that did not store how images are scaled.

    Raises:
        ValueError: If the metadata do not say how to build the network, or its values do not fit.
    """
    metadata = dict(checkpoint.metadata)
    try:
        if data is not None and not is_described(checkpoint):
            config = config_from(metadata["config"])
            metadata |= describe_network(config.resolved(data.name), data)
        if "network" not in metadata:
            raise KeyError("network")
        checked = _Metadata.model_validate(metadata)
    except KeyError as error:
        raise ValueError(
            f"{name} does not say how to build its network (its metadata lack {error}): it was "
            "written by an older version; name its run instead, or in Python also pass the data "
            "that it was trained on, data=load_data(...)"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name} has unusable metadata: {where}: {first['msg']}") from None
    spec, masks = checked.network, checkpoint.masks
    measured = {name: value for name, value in checked.metrics.items() if value is not None}
    metadata |= {
        "metrics": measured,
        "data": {**metadata.get("data", {}), **checked.data.model_dump(exclude_none=True)},
    }
    try:
        module = spec.build(checkpoint.state)
        if spec.compact and not masks:  # stored dense
            prunable = spec.architecture.prunable
            masks = {each: checkpoint.state[each] != 0 for each in prunable}
        _check_masks(masks, module.network)
    except ValueError as error:
        raise ValueError(f"{name} does not fit its model {spec.model}: {error}") from None
    return Network(module, masks, spec, metadata)


def _check_masks(masks: Masks, model: nn.Module) -> None:
    state = model.state_dict()
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape:
            raise ValueError(f"it has no weights {name} of shape {list(mask.shape)}")


def data_of(network: Network, data_root: str = Config.model_fields["data_root"].default) -> Splits:
    """The data that a network was trained on, with the same split.

    Raises:
        ValueError: If they are missing, or are no longer the same.
    """
    data, _ = load_data(config_from(network.metadata["config"] | {"data_root": data_root}))
    if data.digest != network.metadata["data"]["digest"]:
        raise ValueError(
            f"the data in {data.source} are not those that the network was trained on: "
            "use another data_root"
        )
    return data


@dataclass(frozen=True)
class Score:
    """A network's results on a split."""

    accuracy: float  # in [0, 1]
    loss: float  # mean cross-entropy in nats
    predicted: Tensor  # [N] int64, a class for each image
    correct: Tensor  # [N] bool


@torch.no_grad()
def logits_of(
    model: Callable[[Tensor], Tensor], split: Split, device: str | torch.device = "cpu"
) -> Tensor:
    """Logits [N, classes] of all images of a split, on the CPU.

    Args:
        model: From float pixels in [0, 1] on the device to logits.
    """
    size = max(1, EVAL_PIXELS // prod(split.images.shape[1:]))
    logits = []
    for rows in torch.split(torch.arange(len(split)), size):
        images, _ = split.stored(rows)
        logits.append(model(images.to(device).float() / split.view.white).cpu())
    return torch.cat(logits)


def evaluate(network: Network, split: Split) -> Score:
    """Evaluate a network on a split, in float32 and on the device of its module.

    Raises:
        ValueError: If the network is for images of another shape.
    """
    shape = network.spec.image_shape
    if tuple(split.images.shape[1:]) != shape:
        raise ValueError(
            f"the split must have images of shape {shape}, as the network was trained on, "
            f"got {tuple(split.images.shape[1:])}"
        )
    device = next(network.module.parameters()).device
    outputs, targets = logits_of(network.module, split, device), split.labels.cpu()
    predicted = outputs.argmax(1)
    correct = predicted == targets
    loss = float(F.cross_entropy(outputs, targets))
    return Score(int(correct.sum()) / len(split), loss, predicted, correct)


@dataclass(frozen=True)
class Difference:
    """How two networks differ on the same images.

    `p_value` is McNemar's exact test (1947, doi:10.1007/BF02295996) of whether they are equally
    accurate. It is about new images, not about new seeds: `compare` in the command line repeats
    the training.
    """

    first: Score
    second: Score
    accuracy: float  # of the second minus that of the first
    only_first: int  # number of images that only the first classifies correctly
    only_second: int
    p_value: float
    disagree: Tensor  # [n] int64, rows of the images to which they assign different classes
    mask_overlap: dict[str, float]  # by tensor: shared survivors / survivors of either, in [0, 1]


def compare(first: Network, second: Network, split: Split) -> Difference:
    """Compare two networks image by image.

    Tensors that only one of them has, or that differ in shape, have no `mask_overlap`.

    Raises:
        ValueError: If one of them is for images of another shape or has other classes.
    """
    from scipy import stats  # type: ignore[import-untyped]  # here: slow to import

    if first.class_names != second.class_names:
        raise ValueError("the networks must have the same classes in the same order")
    one, two = evaluate(first, split), evaluate(second, split)
    only_first = int((one.correct & ~two.correct).sum())
    only_second = int((two.correct & ~one.correct).sum())
    discordant = only_first + only_second
    return Difference(
        first=one,
        second=two,
        accuracy=two.accuracy - one.accuracy,
        only_first=only_first,
        only_second=only_second,
        p_value=float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0,
        disagree=(one.predicted != two.predicted).nonzero().flatten(),
        mask_overlap={
            name: jaccard(mask, second.masks[name])
            for name, mask in first.masks.items()
            if name in second.masks and second.masks[name].shape == mask.shape
        },
    )


def jaccard(one: Tensor, other: Tensor) -> float:
    """Share of the survivors of either mask that survive in both; 1 if none survives.

    Args:
        one: Bool, of any shape.
        other: The same.
    """
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0
