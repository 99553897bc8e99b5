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

from pruning.masks import State


@dataclass(frozen=True)
class Memory:
    """What a restart can choose from.

    `initial` is the dense network before training, `rewound` the same after `rewind_epoch` epochs
    (None where no method asks for it), `trained` the network that was just pruned; `draw` makes
    new initial values from a seed.
    """

    initial: State
    rewound: State | None
    trained: State
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
}
