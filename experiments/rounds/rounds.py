"""Rounds: train, measure, prune, restart, as a generator that knows nothing of its caller.

Every random stream comes from (seed, round), with the seed of its kind, so a round depends on the
network it starts from and on nothing else: an experiment continued from a checkpoint ends bit for
bit as if it had never been interrupted.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from time import perf_counter

import torch
from torch import Tensor

from datasets import Splits
from experiments.config.experiment import Resolved
from experiments.config.fields import NONE
from experiments.rounds.metrics import Measured, TestResult, measure
from experiments.rounds.plan import Plan, left_after, plan_rounds, prices_of
from experiments.rounds.twin import Twin, compare_twins
from experiments.training.engine import ENGINES, Engine, Recipe, choose
from experiments.training.gradients import flow_gradient, loss_gradient
from experiments.training.loop import DivergedError, Evaluation, Trained, derive_seed, train
from experiments.training.schedules import SCHEDULES, warmed
from models import Architecture
from models.published import load_published
from pruning.controls import CONTROLS
from pruning.criteria import CRITERIA, Evidence
from pruning.masks import SCOPES, Masks, State, dense_masks, in_steps, prune
from pruning.reinit import REINITS, Memory
from pruning.units import cost, narrowed, prune_units, spread, units_of


@dataclass(frozen=True)
class Snapshot:
    """The network at the end of a round, with all that the next round needs."""

    round: int  # 0 is the dense network
    state: State
    masks: Masks
    initial: State  # the dense network before training
    dense: State  # and after it
    rewound: State | None  # after rewind_epoch epochs, if it was trained that long
    dense_valid_loss: float | None = None  # at its early stop; None if an older version trained it
    # What its round pruned. Empty for the dense network, and where a stored one does not need it.
    before: State = field(default_factory=dict)

    def to(self, device: str) -> "Snapshot":
        """The same on a PyTorch device."""

        def move(tensors: State) -> State:
            return {name: value.to(device) for name, value in tensors.items()}

        return replace(
            self,
            state=move(self.state),
            masks=move(self.masks),
            initial=move(self.initial),
            dense=move(self.dense),
            rewound=None if self.rewound is None else move(self.rewound),
            before=move(self.before),
        )


@dataclass(frozen=True)
class RoundResult:
    """A finished round: its network, its metrics, and the evaluations during its training.

    `correct` says which test images the network classifies correctly, in the order of the split:
    bool [N], on the CPU; None without test images, and for rounds that older versions stored.
    """

    network: Snapshot
    metrics: dict[str, float]
    evaluations: tuple[Evaluation, ...]
    seconds: dict[str, float]  # `round_seconds`, and of these `train_seconds` in training steps
    correct: Tensor | None = None


@dataclass(frozen=True)
class BaseRun:
    """A run that another one branches off: its dense round, and the network of each round."""

    dense: RoundResult
    network: Callable[[int], Snapshot]


def prune_rounds(
    config: Resolved,
    data: Splits,
    after: Snapshot | None = None,
    base: BaseRun | None = None,
) -> Iterator[Evaluation | RoundResult]:
    """Train the dense network, then prune and retrain; yields evaluations, and each round's result.

    Args:
        config: Resolved (`Config.resolved`).
        after: Continue after this network instead of training a new one.
        base: Take its dense network instead of training one; with masks=shared its masks too.

    Raises:
        DivergedError: If the loss is not finite; the message names the round and what to change.
    """
    architecture = Architecture(config.model, data.image_shape, data.classes)
    bf16 = config.precision == "bf16"
    engines = cache(lambda name: ENGINES[name](architecture, config.device, bf16))
    run = _Run(config, data, architecture, engines)
    removals = plan_rounds(config, data)
    network = after and after.to(config.device)
    for number in range(after.round + 1 if after else 0, len(removals) + 1):
        began = perf_counter()
        if network is None and base:
            network = base.dense.network.to(config.device)
            yield base.dense
            continue
        if network is None:
            training = run.train_dense()
        elif config.masks == "shared":
            assert base
            training = run.retrain(*run.shared(base, number), number)
        else:
            source = network if config.pruning == "iterative" else _dense(network)
            training = run.retrain(source, run.masks(source, removals[:number], number), number)
        try:
            network, trained = yield from training
            twin = (yield from run.train_twin(network)) if config.twin else None
        except DivergedError as error:
            knob = "retrain_lr" if number else "lr"
            raise DivergedError(
                f"{error} of round {number}: lower {knob}, got {getattr(config, knob)}"
            ) from None
        test = run.test(network, trained)
        metrics = run.measure(network, trained, test, twin)
        seconds = {"round_seconds": perf_counter() - began, "train_seconds": trained.seconds}
        correct = test.correct if test else None
        yield RoundResult(network, metrics, trained.evaluations, seconds, correct)


Training = Generator[Evaluation, None, tuple[Snapshot, Trained]]


def _dense(last: Snapshot) -> Snapshot:
    """The dense network, which each round of one-shot pruning prunes."""
    return replace(last, round=0, state=last.dense, masks=dense_masks(last.dense, last.masks))


@dataclass(frozen=True)
class _Run:
    """The steps of a round, with what all rounds of an experiment share."""

    config: Resolved
    data: Splits
    architecture: Architecture
    engines: Callable[[str], Engine]

    def train_dense(self) -> Training:
        config, prunable = self.config, self.architecture.prunable
        initial = self.draw(derive_seed(config.init_seed, 0, "initial"))
        if config.pretrained != NONE:
            initial = load_published(config.pretrained, initial, prunable[-1])
        masks = dense_masks(initial, prunable)
        seed = derive_seed(config.order_seed, 0, "training")
        recipe, engine = recipe_of(config, 0), self.engines(self.engine(masks))
        trained = yield from train(
            engine, initial, masks, self.data, recipe, seed, config.rewind_epoch
        )
        dense, loss = trained.state, trained.best.valid_loss
        return Snapshot(0, dense, masks, initial, dense, trained.snapshot, loss), trained

    def masks(self, source: Snapshot, plan: Plan, number: int) -> Masks:
        """The masks of round `number`; `plan` is that of the rounds up to it."""
        network = CONTROLS[self.config.control].network
        whole = dense_masks(source.state, source.masks)
        if network == "whole":
            return whole
        if network == "small":
            sizes, prices = self.architecture.sizes, prices_of(self.config, self.architecture)
            weights = sum(left_after(plan, sizes, prices).values())
            return narrowed(whole, self.architecture.widths, weights)
        return self.pruned(source, plan, number)

    def pruned(self, source: Snapshot, plan: Plan, number: int) -> Masks:
        """The masks that the criterion chooses, and a control may spoil."""
        config, skeleton = self.config, self.architecture.skeleton
        criterion, control = CRITERIA[config.criterion], CONTROLS[config.control]
        evidence = Evidence(
            self.start(source),
            source.state,
            source.masks,
            loss_gradient=partial(loss_gradient, skeleton, self.data.train),
            flow_gradient=partial(flow_gradient, skeleton, self.data.image_shape),
        )
        seed = derive_seed(config.draw_seed, number, "criterion")
        masks, by_unit = source.masks, config.granularity == "unit"
        prices, widths = prices_of(config, self.architecture), self.architecture.widths
        left = {names: cost({name: masks[name] for name in names}, prices) for names in plan[-1]}
        goals = left_after(plan, self.architecture.sizes, prices)
        due = {names: max(0, left[names] - goals[names]) for names in plan[-1]}
        for step in in_steps(due, left, criterion.steps):
            scores = control.scores(criterion.scores(replace(evidence, masks=masks), seed))
            left = {names: left[names] - step[names] for names in left}
            if by_unit:
                groups = SCOPES[config.scope](tuple(width.name for width in widths))
                limit = sum(left.values())
                masks = prune_units(scores, masks, widths, groups, prices, limit)
            else:
                masks = prune(scores, masks, step)
        return self.controlled(
            masks, source.masks, derive_seed(config.draw_seed, number, "control")
        )

    def controlled(self, masks: Masks, within: Masks, seed: int) -> Masks:
        """The masks after the control, which moves whole units where these are pruned."""
        control, widths = CONTROLS[self.config.control].masks, self.architecture.widths
        if self.config.granularity == "weight":
            return control(masks, within, seed)
        kept = control(units_of(masks, widths), units_of(within, widths), seed)
        return spread(kept, dense_masks(masks, masks), widths)

    def shared(self, base: BaseRun, number: int) -> tuple[Snapshot, Masks]:
        """The base run's network of the round before, and the masks it was then pruned to."""
        source = base.network(number - 1).to(self.config.device)
        masks = base.network(number).to(self.config.device).masks
        whole = dense_masks(source.dense, masks)
        # The seed has no round in it: nested masks stay nested after a permutation.
        seed = derive_seed(self.config.draw_seed, "control")
        return source, self.controlled(masks, whole, seed)

    def retrain(self, source: Snapshot, masks: Masks, number: int) -> Training:
        before, seed = source.state, derive_seed(self.config.order_seed, number, "training")
        start = self.restart(source, before, masks, number)
        recipe, engine = recipe_of(self.config, number), self.engines(self.engine(masks))
        trained = yield from train(engine, start, masks, self.data, recipe, seed)
        made = replace(source, round=number, state=trained.state, masks=masks, before=before)
        return made, trained

    def start(self, network: Snapshot) -> State:
        """The values from which the training of a network began, those of pruned weights too."""
        if network.round == 0:
            return network.initial
        return self.restart(network, network.before, network.masks, network.round)

    def restart(self, kept: Snapshot, pruned: State, masks: Masks, number: int) -> State:
        """The values from which round `number` trains; `pruned` is the network that it pruned."""
        is_small = CONTROLS[self.config.control].network == "small"
        by_unit = self.config.granularity == "unit" or is_small
        draw = partial(self.draw, masks=masks) if by_unit else self.draw
        memory = Memory(kept.initial, kept.rewound, pruned, masks, draw)
        seed = derive_seed(self.config.draw_seed, number, "reinit")
        return REINITS[self.config.reinit].values(memory, seed)

    def train_twin(self, network: Snapshot) -> Generator[Evaluation, None, Twin]:
        """Train the twin of a network that was just trained, from the same start; see twin.py."""
        config, masks, number = self.config, network.masks, network.round
        seed = derive_seed(config.order_seed, number, "training", "twin")
        recipe = replace(recipe_of(config, number), eval_every=0)  # looks do not affect training
        engine, data = self.engines(self.engine(masks)), self.data.without_test()
        trained = yield from train(engine, self.start(network), masks, data, recipe, seed)
        return compare_twins(engine, network.state, trained.state, self.data)

    def engine(self, masks: Masks) -> str:
        return choose(self.config.engine, masks, self.config.batch_size, self.architecture.widths)

    def draw(self, seed: int, masks: Masks | None = None) -> State:
        state = self.architecture.draw(seed, masks)
        return {name: value.to(self.config.device) for name, value in state.items()}

    def measure(
        self, network: Snapshot, trained: Trained, test: TestResult | None, twin: Twin | None
    ) -> dict[str, float]:
        return measure(
            Measured(
                trained,
                network.masks,
                self.engine(network.masks),
                self.architecture.parameters,
                self.architecture.uses,
                test,
                network.dense_valid_loss,
                twin,
            )
        )

    def test(self, network: Snapshot, trained: Trained) -> TestResult | None:
        if self.data.test is None:
            return None
        engine = self.engines(self.engine(network.masks))
        engine.load(trained.best_state)
        _, early_stop_accuracy = engine.evaluate(self.data.test)
        engine.load(network.state)
        correct = torch.empty_like(self.data.test.labels, dtype=torch.bool)
        loss, accuracy = engine.evaluate(self.data.test, correct)
        return TestResult(loss, accuracy, early_stop_accuracy, correct.cpu())


def recipe_of(config: Resolved, number: int) -> Recipe:
    """How to train in a round; pruning/reinit.py says where the schedule starts."""
    epochs = config.retrain_epochs if number else config.epochs
    base = config.retrain_lr if number else config.lr
    where = REINITS[config.reinit].schedule if number else "start"
    # A rewound round enters the dense network's schedule where the weights left it, and ends at its
    # end; if its epochs are not those that are left, it is stretched or squeezed.
    left = config.epochs - config.rewind_epoch
    done = epochs * config.rewind_epoch / left if where == "rewound" else 0
    whole = done + epochs
    schedule = warmed(SCHEDULES[config.schedule], config.warmup_epochs / config.epochs)

    def lr(progress: float) -> float:
        return base if where == "constant" else base * schedule((done + epochs * progress) / whole)

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
    )
