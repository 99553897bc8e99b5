"""Reinitialisation: from which values do the survivors of a round start to train again?

Every method is a pure function of what the experiment remembers::

    reinit(memory, seed) -> state

It returns a whole state, biases included; the caller applies the masks. The optimizer always
starts afresh. A method also says where its learning-rate schedule starts (`REINITS`):

* "start": the schedule of a new training run, from its beginning;
* "rewound": the same schedule, entered where the rewound weights left it;
* "final": no schedule, but the constant rate at which it ends (fine-tuning).

To add one: write it here, add a line to `REINITS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from pruning.masks import Masks, State


@dataclass(frozen=True)
class Memory:
    """What a restart can choose from.

    `initial` is the dense network before training, `rewound` the same after `rewind_epoch` epochs
    (None where no method asks for it), `trained` the network that was just pruned, `masks` what is
    left of it; `draw` makes new initial values from a seed.
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
    """Survivors are drawn afresh: the control of Frankle & Carbin 2019, arXiv:1803.03635."""
    return memory.draw(seed)


def lottery(memory: Memory, seed: int) -> State:
    """Survivors return to their very first values. Frankle & Carbin 2019, arXiv:1803.03635."""
    del seed
    return memory.initial


def rewind(memory: Memory, seed: int) -> State:
    """Survivors return to their values early in training. Frankle et al. 2019, arXiv:1903.01611.

    Raises:
        ValueError: If the experiment remembers no early values.
    """
    del seed
    if memory.rewound is None:
        raise ValueError("rewind needs the values after rewind_epoch epochs, and there are none")
    return memory.rewound


def sign(memory: Memory, seed: int) -> State:
    """Survivors keep the signs of their first values, at one magnitude: the layer's deviation.

    Zhou et al. 2019, arXiv:1905.01067, "constant, sign". Biases return to their first values.
    """
    del seed
    signs = {
        name: memory.initial[name].sign() * memory.initial[name].std() for name in memory.masks
    }
    return memory.initial | signs


def shuffle(memory: Memory, seed: int) -> State:
    """Survivors exchange their first values at random, within each layer.

    Zhou et al. 2019, arXiv:1905.01067, "reshuffle". Biases return to their first values.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = {}
    for name, mask in sorted(memory.masks.items()):  # a checkpoint may hold them in another order
        values = memory.initial[name].clone()
        survivors = values[mask]
        order = torch.randperm(len(survivors), generator=generator)
        values[mask] = survivors[order.to(values.device)]
        shuffled[name] = values
    return memory.initial | shuffled


@dataclass(frozen=True)
class Reinit:
    """A way to restart: the values it starts from, and where its learning rate starts."""

    values: Callable[[Memory, int], State]
    schedule: Literal["start", "rewound", "final"]


REINITS: dict[str, Reinit] = {
    "keep": Reinit(keep, schedule="final"),
    "random": Reinit(random, schedule="start"),
    "lottery": Reinit(lottery, schedule="start"),
    "rewind": Reinit(rewind, schedule="rewound"),
    "lr_rewind": Reinit(keep, schedule="rewound"),  # Renda et al. 2020, arXiv:2003.02389
    "sign": Reinit(sign, schedule="start"),
    "shuffle": Reinit(shuffle, schedule="start"),
}
