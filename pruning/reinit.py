"""Reinitialisation: the values from which the survivors of a round are retrained.

Every method is a pure function of the networks that the experiment keeps::

    reinit(memory, seed) -> state

It returns a whole state, biases included; the caller applies the masks. The optimizer is always
new. A method also says where its learning-rate schedule starts (`REINITS`):

* "start": the schedule of a new training run, from its beginning;
* "rewound": the schedule of the dense network, entered where the rewound weights left it;
* "constant": no schedule, but one rate throughout (fine-tuning).

To add one: write it here, add a line to `REINITS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch

from pruning.masks import Masks, State


@dataclass(frozen=True)
class Memory:
    """The networks that a round can restart from.

    Attributes:
        initial: The dense network before training.
        rewound: The dense network after `rewind_epoch` epochs; None if it has fewer.
        trained: The network that was just pruned.
        masks: The masks of the round.
        draw: From a seed to new initial values.
    """

    initial: State
    rewound: State | None
    trained: State
    masks: Masks
    draw: Callable[[int], State]


def keep(memory: Memory, seed: int) -> State:
    """Survivors keep their trained values. Han et al. 2015, arXiv:1506.02626."""
    del seed
    return memory.trained


def random(memory: Memory, seed: int) -> State:
    """Survivors get new random values: the control of Frankle & Carbin 2019, arXiv:1803.03635."""
    return memory.draw(seed)


def random_scaled(memory: Memory, seed: int) -> State:
    """Survivors get new random values, larger in sparse layers: the input of a unit varies as much.

    The weights of a layer are divided by the square root of its density. The variance of a unit's
    input is then that of the dense network, on average over the layer. Evci et al. 2022,
    arXiv:2010.03533, do this for each unit with its own number of inputs.
    """
    drawn = memory.draw(seed)
    scaled = {
        name: drawn[name] * sqrt(mask.numel() / max(1, int(mask.sum())))  # nothing may survive
        for name, mask in memory.masks.items()
    }
    return drawn | scaled


def lottery(memory: Memory, seed: int) -> State:
    """Survivors return to their initial values. Frankle & Carbin 2019, arXiv:1803.03635."""
    del seed
    return memory.initial


def rewind(memory: Memory, seed: int) -> State:
    """Survivors return to their values early in training. Frankle et al. 2019, arXiv:1903.01611.

    Raises:
        ValueError: If the experiment has no early values.
    """
    del seed
    if memory.rewound is None:
        raise ValueError(
            "rewind needs the values after rewind_epoch epochs, and this run did not keep them"
        )
    return memory.rewound


def sign(memory: Memory, seed: int) -> State:
    """Survivors keep their initial signs, all with the standard deviation of the layer.

    Zhou et al. 2019, arXiv:1905.01067, "constant, sign". Biases return to their initial values.
    """
    del seed
    signs = {
        name: memory.initial[name].sign() * memory.initial[name].std() for name in memory.masks
    }
    return memory.initial | signs


def shuffle(memory: Memory, seed: int) -> State:
    """Survivors exchange their initial values at random, within each layer.

    Zhou et al. 2019, arXiv:1905.01067, "reshuffle". Biases return to their initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = {}
    for name, mask in sorted(memory.masks.items()):  # the order in a checkpoint may differ
        values = memory.initial[name].clone()
        survivors = values[mask]
        order = torch.randperm(len(survivors), generator=generator)
        values[mask] = survivors[order.to(values.device)]
        shuffled[name] = values
    return memory.initial | shuffled


@dataclass(frozen=True)
class Reinit:
    """A way to restart.

    Attributes:
        values: From which the survivors are trained.
        schedule: Where the learning-rate schedule starts.
        continues: Whether the values are those of `Memory.trained`.
    """

    values: Callable[[Memory, int], State]
    schedule: Literal["start", "rewound", "constant"]
    continues: bool = False


REINITS: dict[str, Reinit] = {
    "keep": Reinit(keep, schedule="constant", continues=True),
    "random": Reinit(random, schedule="start"),
    "lottery": Reinit(lottery, schedule="start"),
    "rewind": Reinit(rewind, schedule="rewound"),
    # Renda et al. 2020, arXiv:2003.02389
    "lr_rewind": Reinit(keep, schedule="rewound", continues=True),
    "sign": Reinit(sign, schedule="start"),
    "shuffle": Reinit(shuffle, schedule="start"),
    "random_scaled": Reinit(random_scaled, schedule="start"),
}
