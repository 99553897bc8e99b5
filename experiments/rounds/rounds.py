"""Rounds: train, measure, prune, restart, as a generator that knows nothing of its caller.

Every random stream comes from (seed, round), so a round depends on the network it starts from and
on nothing else: an experiment continued from a checkpoint goes on bit for bit as if it had never
stopped.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import torch
from torch import nn

from datasets import Splits
from experiments.config.experiment import Resolved
from experiments.config.fields import NONE
from experiments.rounds.plan import Plan, Removals, plan_rounds
from experiments.training.gradients import flow_gradient, loss_gradient
from experiments.training.loop import (
    DivergedError,
    Evaluation,
    Recipe,
    Trained,
    derive_seed,
    evaluate,
    train,
)
from experiments.training.schedules import SCHEDULES, warmed
from models import build_model, draw_state, prunable_weights, weight_uses
from models.published import load_published
from pruning import sizes
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA, Evidence
from pruning.masks import (
    Masks,
    State,
    dense_masks,
    in_steps,
    prune,
)
from pruning.reinit import REINITS, Memory

LAYER_PREFIX = "layer_sparsity/"  # of the metrics of each layer


@dataclass(frozen=True)
class Snapshot:
    """A network at the end of a round, with all that the next round needs to know."""

    round: int  # 0 is the dense network
    state: State
    masks: Masks
    initial: State  # the dense network before training
    dense: State  # and after it
    rewound: State | None  # after rewind_epoch epochs, if it was trained for so many

    def to(self, device: str) -> "Snapshot":
        """The same on a device of torch's."""

        def move(tensors: State) -> State:
            return {name: value.to(device) for name, value in tensors.items()}

        return replace(
            self,
            state=move(self.state),
            masks=move(self.masks),
            initial=move(self.initial),
            dense=move(self.dense),
            rewound=None if self.rewound is None else move(self.rewound),
        )


@dataclass(frozen=True)
class RoundResult:
    """A finished round: its network, its metrics, and the looks at its training."""

    network: Snapshot
    metrics: dict[str, float]
    evaluations: tuple[Evaluation, ...]
    seconds: dict[str, float]  # `round_seconds`, and of these `train_seconds` in training steps


@dataclass(frozen=True)
class BaseRun:
    """A run that another one branches off: its dense round, and the network of each round."""

    dense: RoundResult
    network: Callable[[int], Snapshot]


def prune_rounds(
    config: Resolved, data: Splits, after: Snapshot | None = None, base: BaseRun | None = None
) -> Iterator[Evaluation | RoundResult]:
    """Train the dense network, then prune and retrain; yields looks, and each round as it ends.

    Args:
        config: Resolved (`Config.resolved`).
        after: Continue after this network instead of beginning with a new one.
        trunk: Take its dense network instead of training one; with masks=shared its masks too.

    Raises:
        DivergedError: If the loss is not finite; the message names the round and what to change.
    """
    model = build_model(config.model, data.image_shape, data.classes)
    model = model.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    removals = plan_rounds(config, data)
    uses = weight_uses(model, data.image_shape)
    network = after and after.to(config.device)
    for number in range(after.round + 1 if after else 0, len(removals) + 1):
        began = perf_counter()
        if network is None and base:
            network = base.dense.network.to(config.device)
            yield base.dense
            continue
        if network is None:
            training = _train_dense(config, model, data)
        elif config.masks == "shared":
            assert base
            training = _retrain(config, model, data, *_shared(config, base, number), number)
        else:
            source, count = _source(config, network, removals[:number])
            masks = _next_masks(config, model, data, source, count, number)
            training = _retrain(config, model, data, source, masks, number)
        try:
            network, trained = yield from training
        except DivergedError as error:
            knob = "retrain_lr" if number else "lr"
            raise DivergedError(
                f"{error} of round {number}: lower {knob}, got {getattr(config, knob)}"
            ) from None
        metrics = _measure(config, model, data, network, trained, uses)
        seconds = {"round_seconds": perf_counter() - began, "train_seconds": trained.seconds}
        yield RoundResult(network, metrics, trained.evaluations, seconds)


Training = Generator[Evaluation, None, tuple[Snapshot, Trained]]


def _train_dense(config: Resolved, model: nn.Module, data: Splits) -> Training:
    initial = _draw(config, data, derive_seed(config.seed, 0, "initial"))
    if config.pretrained != NONE:
        initial = load_published(config.pretrained, initial, prunable_weights(model)[-1])
    masks = dense_masks(initial, prunable_weights(model))
    recipe = _recipe(config, number=0)
    seed = derive_seed(config.seed, 0, "training")
    trained = yield from train(model, initial, masks, data, recipe, seed, config.rewind_epoch)
    dense = trained.state
    return Snapshot(0, dense, masks, initial, dense, trained.snapshot), trained


def _source(config: Resolved, last: Snapshot, removals: Plan) -> tuple[Snapshot, Removals]:
    """The network that the next round prunes, and how many weights it then loses where."""
    if config.pruning == "iterative":
        return last, removals[-1]
    dense = replace(last, round=0, state=last.dense, masks=dense_masks(last.dense, last.masks))
    return dense, {names: sum(count[names] for count in removals) for names in removals[-1]}


def _next_masks(
    config: Resolved,
    model: nn.Module,
    data: Splits,
    source: Snapshot,
    removals: Mapping[tuple[str, ...], int],
    number: int,
) -> Masks:
    criterion, control = CRITERIA[config.criterion], CONTROLS[config.control]
    evidence = Evidence(
        source.initial,
        source.state,
        source.masks,
        loss_gradient=partial(loss_gradient, model, data.train),
        flow_gradient=partial(flow_gradient, model, data.image_shape),
    )
    seed = derive_seed(config.seed, number, "criterion")
    masks = source.masks
    survivors = {names: sum(int(masks[name].sum()) for name in names) for names in removals}
    for some in in_steps(removals, survivors, criterion.steps):
        scores = criterion.scores(replace(evidence, masks=masks), seed)
        masks = prune(control.scores(scores), masks, some)
    return control.masks(masks, source.masks, derive_seed(config.seed, number, "control"))


def _shared(config: Resolved, base: BaseRun, number: int) -> tuple[Snapshot, Masks]:
    """The trunk's network of the round before, and the masks that the trunk has pruned it to."""
    source = base.network(number - 1).to(config.device)
    masks = base.network(number).to(config.device).masks
    whole = dense_masks(source.dense, masks)
    # A seed without the round: masks that lie in each other are so after a permutation too.
    return source, CONTROLS[config.control].masks(masks, whole, derive_seed(config.seed, "control"))


def _retrain(
    config: Resolved, model: nn.Module, data: Splits, source: Snapshot, masks: Masks, number: int
) -> Training:
    stream = partial(derive_seed, config.seed, number)
    draw = partial(_draw, config, data)
    memory = Memory(source.initial, source.rewound, source.state, masks, draw)
    start = REINITS[config.reinit].values(memory, stream("reinit"))
    recipe = _recipe(config, number)
    trained = yield from train(model, start, masks, data, recipe, stream("training"))
    return replace(source, round=number, state=trained.state, masks=masks), trained


def _draw(config: Resolved, data: Splits, seed: int) -> State:
    state = draw_state(config.model, data.image_shape, data.classes, seed)
    return {name: value.to(config.device) for name, value in state.items()}


def _recipe(config: Resolved, number: int) -> Recipe:
    """How to train in a round; pruning/reinit.py says what becomes of the schedule."""
    epochs = config.retrain_epochs if number else config.epochs
    base = config.retrain_lr if number else config.lr
    where = REINITS[config.reinit].schedule if number else "start"
    done = config.rewind_epoch if where == "rewound" else 0
    whole = done + epochs
    course = warmed(SCHEDULES[config.schedule], config.warmup_epochs / config.epochs)

    def lr(progress: float) -> float:
        return base if where == "final" else base * course((done + epochs * progress) / whole)

    return Recipe(
        optimizer=config.optimizer,
        lr=lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        epochs=epochs,
        eval_every=config.eval_every,
        grad_clip=config.grad_clip,
        label_smoothing=config.label_smoothing,
        bf16=config.precision == "bf16",
    )


def _measure(
    config: Resolved,
    model: nn.Module,
    data: Splits,
    network: Snapshot,
    trained: Trained,
    uses: dict[str, int],
) -> dict[str, float]:
    last, masks = trained.evaluations[-1], network.masks
    parameters = sum(value.numel() for value in model.parameters())
    (best,) = (
        evaluation
        for evaluation in trained.evaluations
        if evaluation.iteration == trained.best_iteration
    )
    return {
        "train_loss": last.train_loss,
        "valid_loss": last.valid_loss,
        "valid_accuracy": last.valid_accuracy,
        "early_stop_iteration": trained.best_iteration,
        "early_stop_valid_accuracy": best.valid_accuracy,
        "sparsity": sizes.sparsity(masks),
        "remaining_weights": sizes.remaining_weights(masks),
        "compression_ratio": sizes.compression_ratio(parameters, masks),
        "theoretical_speedup": sizes.theoretical_speedup(masks, uses),
        **_test(config, model, data, network, trained),
    } | {
        f"{LAYER_PREFIX}{name.removesuffix('.weight')}": sizes.sparsity({name: mask})
        for name, mask in masks.items()
    }


def _test(
    config: Resolved, model: nn.Module, data: Splits, network: Snapshot, trained: Trained
) -> dict[str, float]:
    if data.test is None:
        return {}
    bf16 = config.precision == "bf16"
    model.load_state_dict(trained.best_state)
    _, early_stop_accuracy = evaluate(model, data.test, bf16)
    model.load_state_dict(network.state)
    loss, accuracy = evaluate(model, data.test, bf16)
    return {
        "test_loss": loss,
        "test_accuracy": accuracy,
        "early_stop_test_accuracy": early_stop_accuracy,
    }
