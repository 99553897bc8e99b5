import pytest
import torch

from pruning.masks import (
    MOST_ROUNDS,
    SCOPES,
    Group,
    apply_masks,
    dense_masks,
    drop_lowest,
    groups_of,
    in_steps,
    plan_removals,
    prune,
)

LENET = {"fc1": 300 * 784, "fc2": 100 * 300, "fc3": 1000}


def test_drop_lowest_removes_exactly_the_lowest():
    scores = torch.tensor([[4.0, 1.0, 3.0], [2.0, 6.0, 5.0]])
    kept = drop_lowest(scores, torch.ones(2, 3, dtype=torch.bool), 2)
    assert kept.tolist() == [[True, False, True], [False, True, True]]


@pytest.mark.parametrize("count", range(101))
def test_drop_lowest_counts_exactly_even_when_all_scores_tie(count):
    kept = drop_lowest(torch.zeros(100), torch.ones(100, dtype=torch.bool), count)
    assert int(kept.sum()) == 100 - count
    assert not kept[:count].any()  # ties fall to the lower index


def test_drop_lowest_never_revives_a_pruned_weight():
    mask = torch.tensor([False, True, True, False, True])
    kept = drop_lowest(torch.tensor([9.0, 1.0, 2.0, 9.0, 3.0]), mask, 1)
    assert kept.tolist() == [False, False, True, False, True]
    assert mask.tolist() == [False, True, True, False, True]  # the argument is untouched


def test_drop_lowest_ignores_the_scores_of_pruned_weights():
    mask = torch.tensor([False, True, True])
    kept = drop_lowest(torch.tensor([float("nan"), 2.0, 1.0]), mask, 1)
    assert kept.tolist() == [False, True, False]


def test_drop_lowest_refuses_nan_scores_of_survivors():
    with pytest.raises(ValueError, match="NaN"):
        drop_lowest(torch.tensor([float("nan"), 1.0]), torch.ones(2, dtype=torch.bool), 1)


@pytest.mark.parametrize("count", [-1, 3])
def test_drop_lowest_refuses_a_count_out_of_range(count):
    with pytest.raises(ValueError, match=f"2 survivors, got {count}"):
        drop_lowest(torch.zeros(2), torch.ones(2, dtype=torch.bool), count)


def test_apply_masks_writes_positive_zeros_and_copies_the_rest():
    state = {"w": torch.tensor([-1.0, 2.0, float("inf")]), "b": torch.tensor([3.0])}
    masked = apply_masks(state, {"w": torch.tensor([False, True, False])})
    assert masked["w"].tolist() == [0.0, 2.0, 0.0]
    assert not masked["w"].signbit().any()
    masked["b"] += 1
    assert state["b"].item() == 3.0


def test_dense_masks_cover_only_what_is_prunable():
    masks = dense_masks({"w": torch.zeros(2, 3), "b": torch.zeros(3)}, ["w"])
    assert list(masks) == ["w"]
    assert masks["w"].shape == (2, 3)
    assert masks["w"].all()


def test_prune_lets_layers_compete_in_a_group():
    scores = {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([[2.0], [3.0]])}
    masks = dense_masks(scores, scores)
    together = prune(scores, masks, {("a", "b"): 2})
    assert together["a"].tolist() == [False, True]
    assert together["b"].tolist() == [[False], [True]]
    apart = prune(scores, masks, {("a",): 0, ("b",): 2})
    assert apart["a"].all()
    assert not apart["b"].any()
    assert all(mask.all() for mask in masks.values())


def test_another_scope_groups_layers_in_its_own_way(monkeypatch):
    monkeypatch.setitem(SCOPES, "pairs", lambda hidden: [hidden[:2], hidden[2:]])
    groups = groups_of(("a", "b", "c", "d"), "pairs", 0.2, 0.1)
    assert [group.names for group in groups] == [("a", "b"), ("c",), ("d",)]
    assert [group.rate for group in groups] == [0.2, 0.2, 0.1]


def test_groups_follow_scope_and_output_rate():
    names = ("a", "b", "c")
    assert groups_of(names, "global", 0.2, None) == [Group(names, 0.2)]
    assert groups_of(names, "global", 0.2, 0.1) == [Group(("a", "b"), 0.2), Group(("c",), 0.1)]
    assert groups_of(names, "layer", 0.2, 0.1) == [
        Group(("a",), 0.2),
        Group(("b",), 0.2),
        Group(("c",), 0.1),
    ]
    assert groups_of(("c",), "global", 0.2, 0.1) == [Group(("c",), 0.1)]


def test_plan_gives_the_papers_remaining_weights():
    """Frankle & Carbin 2019 label their LeNet curves 51.3, 21.1, 13.5, 7.0, 3.6, 1.9 and 1.2%."""
    groups = groups_of(tuple(LENET), "layer", 0.2, 0.1)
    left = sum(LENET.values())
    percent = [100.0]
    for removals in plan_removals(LENET, groups, 0.9, rounds=20):
        left -= sum(removals.values())
        percent.append(100 * left / sum(LENET.values()))
    paper = {3: 51.3, 7: 21.1, 9: 13.5, 12: 7.0, 15: 3.6, 18: 1.9, 20: 1.2}
    assert {k: round(percent[k], 1) for k in paper} == paper


@pytest.mark.parametrize("target", [0.1, 0.2, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("output_rate", [None, 0.1])
def test_plan_reaches_the_target_exactly(target, scope, output_rate):
    plan = plan_removals(LENET, groups_of(tuple(LENET), scope, 0.2, output_rate), target, 0)
    assert sum(sum(removals.values()) for removals in plan) == round(target * 266_200)
    assert all(sum(removals.values()) > 0 for removals in plan)
    assert all(count >= 0 for removals in plan for count in removals.values())


def test_plan_needs_eleven_rounds_of_a_fifth_for_nine_tenths():
    plan = plan_removals(LENET, groups_of(tuple(LENET), "layer", 0.2, None), 0.9, 0)
    assert len(plan) == 11
    assert [plan[0][(name,)] for name in LENET] == [47040, 6000, 200]
    assert [plan[-1][(name,)] / n for name, n in LENET.items()] == pytest.approx(
        [0.8**10 - 0.1] * 3, abs=1e-3
    )


@pytest.mark.parametrize("rounds", [3, 7, 9, 12])
def test_plan_spends_no_round_on_a_rounding_error(rounds):
    target = round(1 - 0.8**rounds, 4)  # as one would type it
    plan = plan_removals(LENET, groups_of(tuple(LENET), "layer", 0.2, None), target, 0)
    assert len(plan) == rounds
    assert sum(sum(removals.values()) for removals in plan) == round(target * 266_200)


def test_plan_with_rounds_ignores_the_target():
    groups = groups_of(tuple(LENET), "global", 0.5, None)
    plan = plan_removals(LENET, groups, 0.1, rounds=3)
    assert [next(iter(removals.values())) for removals in plan] == [133_100, 66_550, 33_275]


def test_plan_refuses_a_rate_that_removes_nothing():
    with pytest.raises(ValueError, match="prune_rate is too small: round 1 "):
        plan_removals({"w": 10}, [Group(("w",), 0.01)], 0.5, 0)


def test_plan_names_the_rates_that_remove_nothing():
    groups = [Group(("w",), 0.5), Group(("output",), 0.001)]
    rule = r"round 4 would remove no weight of the 101 that survive \(0.5 of 1, 0.001 of 100\)"
    with pytest.raises(ValueError, match=rule) as error:
        plan_removals({"w": 10, "output": 100}, groups, 0.9, 0)
    assert "raise it (or output_prune_rate)" in str(error.value)


def test_plan_refuses_a_target_out_of_reach():
    with pytest.raises(ValueError, match=f"within {MOST_ROUNDS} rounds"):
        plan_removals({"w": 10**9}, [Group(("w",), 1e-4)], 0.99, 0)


def test_steps_take_the_same_share_each():
    steps = in_steps({("w",): 875}, {("w",): 1000}, 3)
    assert steps == [{("w",): 500}, {("w",): 250}, {("w",): 125}]


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_steps_add_up_for_every_group(steps):
    removals = {("a", "b"): 20_001, ("c",): 3, ("d",): 0, ("e",): 5, ("f",): 0}
    survivors = {("a", "b"): 100_000, ("c",): 10, ("d",): 10, ("e",): 5, ("f",): 0}
    spread = in_steps(removals, survivors, steps)
    assert len(spread) == steps
    assert all(step.keys() == removals.keys() for step in spread)
    assert all(count >= 0 for step in spread for count in step.values())
    assert {names: sum(step[names] for step in spread) for names in removals} == removals


def test_one_step_is_the_whole_round():
    assert in_steps({("w",): 4}, {("w",): 5}, 1) == [{("w",): 4}]


def test_steps_that_would_remove_nothing_are_left_out():
    assert in_steps({("v",): 1, ("w",): 2}, {("v",): 4, ("w",): 10}, 100) == [
        {("v",): 0, ("w",): 1},
        {("v",): 1, ("w",): 0},
        {("v",): 0, ("w",): 1},
    ]
    assert in_steps({("w",): 0}, {("w",): 10}, 100) == []


def test_a_group_that_loses_everything_keeps_a_weight_until_the_last_step():
    assert in_steps({("w",): 8}, {("w",): 8}, 3) == [{("w",): 4}, {("w",): 2}, {("w",): 2}]


@pytest.mark.parametrize("count", [-1, 6])
def test_steps_refuse_removals_out_of_range(count):
    with pytest.raises(ValueError, match=f"5 survivors, got {count}"):
        in_steps({("w",): count}, {("w",): 5}, 3)


def test_fewer_than_one_step_is_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        in_steps({("w",): 1}, {("w",): 5}, 0)
