"""Duplicates: which photographs are the same picture, encoded anew or resized?

They are told by imagehash's perceptual hash, a picture's coarse pattern of light and dark. The
limit was measured on the ORL faces (400 portraits of 40 people before one background): two
different portraits are 70 bits of 576 apart at least, one saved as JPEG of quality 50 at most 30
from itself, and one of half the size at most 12. Mirror images count as the same, since training
mirrors: another's mirror image is 174 bits away at least, that of a JPEG copy at most 26.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from datasets.photographs import HASH_SIDE

LIMIT = 44  # bits of HASH_SIDE**2; so near are duplicates


def find_duplicates(hashes: Mapping[str, tuple[str, ...]], order: Sequence[str]) -> dict[str, str]:
    """For each name that is near an earlier one that is kept: the nearest such.

    Args:
        hashes: By name, of a picture and of what would be the same, such as its mirror image;
            HASH_SIDE**2 bits each as hexadecimal digits.
        order: All of the names; the first of several duplicates is kept.
    """
    kept = np.empty((len(order), HASH_SIDE**2 // 64), dtype=np.uint64)
    names: list[str] = []
    duplicates = {}
    for name in order:
        ways = [np.frombuffer(bytes.fromhex(text), dtype=np.uint64) for text in hashes[name]]
        earlier = kept[: len(names), None]
        distances = np.bitwise_count(earlier ^ np.stack(ways)).sum(2, dtype=np.int64).min(1)
        if len(names) and distances.min() <= LIMIT:
            duplicates[name] = names[int(distances.argmin())]
        else:
            kept[len(names)] = ways[0]
            names.append(name)
    return duplicates
