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
def test_every_part_gets_its_share_and_of_three_one_each(count, expected, seed):
    parts = assign_splits(photographs(count), {}, SHARES, seed)
    assert counted(parts) == expected
    assert parts.keys() == photographs(count).keys()


def test_of_two_both_are_assigned_to_different_parts():
    assert sorted(counted(assign_splits(photographs(2), {}, SHARES, 0)), reverse=True) == [1, 1, 0]


def test_the_parts_depend_on_content_and_seed_and_not_on_names_or_order():
    digests = photographs(20)
    parts = assign_splits(digests, {}, SHARES, 0)
    turned = dict(reversed(digests.items()))
    assert assign_splits(turned, {}, SHARES, 0) == parts
    renamed = assign_splits(
        {f"b/{name}": digest for name, digest in digests.items()}, {}, SHARES, 0
    )
    assert renamed == {f"b/{name}": part for name, part in parts.items()}
    assert assign_splits(digests, {}, SHARES, 1) != parts


def test_who_has_a_place_keeps_it_when_others_come_and_go():
    split_of = {}
    for first, count in [(0, 3), (0, 10), (4, 30), (20, 100)]:
        digests = photographs(count, first)
        parts = assign_splits(digests, split_of, SHARES, 0)
        assert parts.keys() == digests.keys()
        assert all(parts[name] == split_of[name] for name in digests if name in split_of)
        split_of = parts
    assert counted(split_of) == (70, 20, 10)


def test_newcomers_go_where_most_is_lacking():
    split_of = dict.fromkeys(photographs(10), "train")
    assert counted(assign_splits(photographs(14), split_of, SHARES, 0)) == (10, 3, 1)


def test_what_is_gone_has_no_place():
    split_of = {"a/0.png": "train", "a/gone.png": "valid"}
    assert assign_splits(photographs(1), split_of, SHARES, 0) == {"a/0.png": "train"}
    assert assign_splits({}, split_of, SHARES, 0) == {}


def test_small_shares_get_one_each_as_well():
    shares = {"train": 0.98, "valid": 0.01, "test": 0.01}
    assert counted(assign_splits(photographs(5), {}, shares, 0)) == (3, 1, 1)
