"""Splits: shares, and photographs that keep theirs."""

from collections import Counter

import pytest

from datasets.photographs import SPLIT_NAMES
from datasets.photographs.manifest import assign_splits

SHARES = {"train": 0.7, "valid": 0.2, "test": 0.1}


def photographs(count, first=0):
    return {f"a/{number}.png": f"digest {number}" for number in range(first, first + count)}


def counted(parts):
    counts = Counter(parts.values())
    return tuple(counts[part] for part in SPLIT_NAMES)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, (0, 0, 0)),
        (1, (1, 0, 0)),
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (10, (7, 2, 1)),
        (100, (70, 20, 10)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_split_gets_its_share_and_at_least_one_of_three(count, expected, seed):
    parts = assign_splits(photographs(count), {}, SHARES, seed)
    assert counted(parts) == expected
    assert parts.keys() == photographs(count).keys()


def test_two_photographs_get_different_splits():
    assert sorted(counted(assign_splits(photographs(2), {}, SHARES, 0)), reverse=True) == [1, 1, 0]


def test_splits_depend_on_content_and_seed_but_not_on_names_or_order():
    digests = photographs(20)
    parts = assign_splits(digests, {}, SHARES, 0)
    turned = dict(reversed(digests.items()))
    assert assign_splits(turned, {}, SHARES, 0) == parts
    renamed = assign_splits(
        {f"b/{name}": digest for name, digest in digests.items()}, {}, SHARES, 0
    )
    assert renamed == {f"b/{name}": part for name, part in parts.items()}
    assert assign_splits(digests, {}, SHARES, 1) != parts


def test_photographs_keep_their_split_when_others_are_added_or_removed():
    split_of = {}
    for first, count in [(0, 3), (0, 10), (4, 30), (20, 100)]:
        digests = photographs(count, first)
        parts = assign_splits(digests, split_of, SHARES, 0)
        assert parts.keys() == digests.keys()
        assert all(parts[name] == split_of[name] for name in digests if name in split_of)
        split_of = parts
    assert counted(split_of) == (70, 20, 10)


def test_new_photographs_fill_the_split_furthest_below_its_share():
    split_of = dict.fromkeys(photographs(10), "train")
    assert counted(assign_splits(photographs(14), split_of, SHARES, 0)) == (10, 3, 1)


def test_splits_of_removed_photographs_are_ignored():
    split_of = {"a/0.png": "train", "a/gone.png": "valid"}
    assert assign_splits(photographs(1), split_of, SHARES, 0) == {"a/0.png": "train"}
    assert assign_splits({}, split_of, SHARES, 0) == {}


def test_small_shares_get_at_least_one_photograph():
    shares = {"train": 0.98, "valid": 0.01, "test": 0.01}
    assert counted(assign_splits(photographs(5), {}, shares, 0)) == (3, 1, 1)
