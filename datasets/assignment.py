"""Assignment: which photographs of a class train, which validate, and which test?

Seeded, in every class alike, and stable: who has a place keeps it when others come.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping

PARTS = ("train", "valid", "test")


def assign(
    digests: Mapping[str, str], places: Mapping[str, str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """The part of each photograph of one class.

    Newcomers come in an order that seed and content decide, and each goes where most is lacking to
    the share; of three or more at once, every part gets one.

    Args:
        digests: Of the content of the class's photographs, by name.
        places: The parts of those that have one already, which stay; other names are ignored.
        shares: Of each of PARTS, 1 together.
        seed: Of the order.
    """
    chosen = {name: places[name] for name in digests if name in places}
    counts = Counter(chosen.values())
    waiting = sorted(digests.keys() - chosen.keys(), key=lambda name: _rank(digests[name], seed))
    for index, name in enumerate(waiting):
        empty = [part for part in PARTS if not counts[part]]
        choice = empty if len(empty) >= len(waiting) - index else PARTS
        part = max(choice, key=lambda part: shares[part] * len(digests) - counts[part])
        chosen[name] = part
        counts[part] += 1
    return chosen


def _rank(digest: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {digest}".encode(), digest_size=16).digest()
