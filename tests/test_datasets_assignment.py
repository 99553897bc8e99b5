from collections import Counter

import pytest

from datasets.assignment import PARTS, assign

SHARES = {"train": 0.7, "valid": 0.2, "test": 0.1}


def photographs(count, first=0):
    return {f"a/{number}.png": f"digest {number}" for number in range(first, first + count)}


def counted(parts):
    counts = Counter(parts.values())
    return tuple(counts[part] for part in PARTS)


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
    parts = assign(photographs(count), {}, SHARES, seed)
    assert counted(parts) == expected
    assert parts.keys() == photographs(count).keys()


def test_of_two_both_are_assigned_to_different_parts():
    assert sorted(counted(assign(photographs(2), {}, SHARES, 0)), reverse=True) == [1, 1, 0]


def test_the_parts_depend_on_content_and_seed_and_not_on_names_or_order():
    digests = photographs(20)
    parts = assign(digests, {}, SHARES, 0)
    turned = dict(reversed(digests.items()))
    assert assign(turned, {}, SHARES, 0) == parts
    renamed = assign({f"b/{name}": digest for name, digest in digests.items()}, {}, SHARES, 0)
    assert renamed == {f"b/{name}": part for name, part in parts.items()}
    assert assign(digests, {}, SHARES, 1) != parts


def test_who_has_a_place_keeps_it_when_others_come_and_go():
    places = {}
    for first, count in [(0, 3), (0, 10), (4, 30), (20, 100)]:
        digests = photographs(count, first)
        parts = assign(digests, places, SHARES, 0)
        assert parts.keys() == digests.keys()
        assert all(parts[name] == places[name] for name in digests if name in places)
        places = parts
    assert counted(places) == (70, 20, 10)


def test_newcomers_go_where_most_is_lacking():
    places = dict.fromkeys(photographs(10), "train")
    assert counted(assign(photographs(14), places, SHARES, 0)) == (10, 3, 1)


def test_what_is_gone_has_no_place():
    places = {"a/0.png": "train", "a/gone.png": "valid"}
    assert assign(photographs(1), places, SHARES, 0) == {"a/0.png": "train"}
    assert assign({}, places, SHARES, 0) == {}


def test_small_shares_get_one_each_as_well():
    shares = {"train": 0.98, "valid": 0.01, "test": 0.01}
    assert counted(assign(photographs(5), {}, shares, 0)) == (3, 1, 1)
