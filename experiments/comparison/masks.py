"""Masks: how alike are the weights that survive, between seeds, methods and rounds?

The Jaccard index of two masks is the number of weights that survive in both, over the number that
survive in either. It is compared with that of random masks which keep as many weights in each
layer (`statistics.overlap`).
"""

from collections.abc import Iterator, Mapping
from itertools import combinations, product

import pandas as pd

from experiments.comparison.statistics import overlap
from pruning.masks import Masks

SEEDS, METHODS, ROUNDS = "other seed", "other method, same seed", "other round, same run"
ByArm = Mapping[tuple[str, int], Masks]  # by method and seed


def similarity(masks: ByArm, earlier: ByArm) -> pd.DataFrame:
    """Mean overlap of masks, by what differs between the two: `mask_overlap.csv`.

    Args:
        masks: Of the shown round.
        earlier: Of a round before it, for some of the same arms.

    Returns:
        One row per method for `SEEDS` and `ROUNDS`, and per pair of methods for `METHODS`:
        `differs`, `method`, `other`, `n` (pairs of masks), the mean `jaccard` with its `lowest` and
        `highest`, and the mean `expected` of random masks.
    """
    rows = []
    for (differs, method, other), pairs in _pairs(masks, earlier).items():
        found = [_alike(first, second) for first, second in pairs]
        table = pd.DataFrame(found, columns=["jaccard", "expected"])
        rows.append(
            {"differs": differs, "method": method, "other": other, "n": len(pairs)}
            | {"jaccard": table["jaccard"].mean(), "expected": table["expected"].mean()}
            | {"lowest": table["jaccard"].min(), "highest": table["jaccard"].max()}
        )
    return pd.DataFrame(rows)


def _pairs(masks: ByArm, earlier: ByArm) -> dict[tuple[str, str, str], list[tuple[Masks, Masks]]]:
    pairs: dict[tuple[str, str, str], list[tuple[Masks, Masks]]] = {}
    for key, pair in (*_between_arms(masks), *_between_rounds(masks, earlier)):
        pairs.setdefault(key, []).append(pair)
    return pairs


Pair = tuple[tuple[str, str, str], tuple[Masks, Masks]]


def _between_arms(masks: ByArm) -> Iterator[Pair]:
    methods = list(dict.fromkeys(method for method, _ in masks))
    seeds = list(dict.fromkeys(seed for _, seed in masks))
    for method, (first, second) in product(methods, combinations(seeds, 2)):
        if (method, first) in masks and (method, second) in masks:
            yield (SEEDS, method, method), (masks[method, first], masks[method, second])
    for (method, other), seed in product(combinations(methods, 2), seeds):
        if (method, seed) in masks and (other, seed) in masks:
            yield (METHODS, method, other), (masks[method, seed], masks[other, seed])


def _between_rounds(masks: ByArm, earlier: ByArm) -> Iterator[Pair]:
    for method, seed in masks:
        if (method, seed) in earlier:
            yield (ROUNDS, method, method), (masks[method, seed], earlier[method, seed])


def _alike(first: Masks, second: Masks) -> tuple[float, ...]:
    jaccard, expected = overlap({("first", 0): first, ("second", 0): second})
    return tuple(float(table.to_numpy()[0, 1]) for table in (jaccard, expected))
