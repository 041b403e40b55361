# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import asyncio
import functools
import math

import numpy as np
import pytest
import torch

from ppow_hf import CostModel
from ppow_hf.rl.reward_combination import (
    combine_all_rewards,
    combine_rewards,
    combine_token_rewards,
    reward_name,
    reward_names,
    unwrap_partial,
)
from ppow_hf.rl.rewards import (
    ProximityReward,
    measured_speedup_reward,
    proximity_reward,
    speedup_reward,
    token_agreement_reward,
    window_target_gap,
)


def test_speedup_by_hand():
    # gamma 0.12: 0; 1/1.12; 5/1.6; 10/2.2; and an expected length of 2.5: 2.5/1.3.
    rewards = speedup_reward(accepted=[0, 1, 5, 10, 2.5], cost_ratio=0.12, prompts=None, trainer_state=None)
    assert rewards == pytest.approx([0.0, 0.892857143, 3.125, 4.545454545, 1.923076923])
    assert speedup_reward(accepted=torch.tensor([3]), cost_ratio=1.0) == [0.75]


def test_measured_speedup_by_hand():
    cost_model = CostModel(gamma=0.1, verify_curve=[1.0, 1.1, 1.2, 1.4], overhead=0.05)
    # Three drafted tokens cost 0.3 + 1.4 + 0.05, two 0.2 + 1.2 + 0.05, whatever is accepted.
    rewards = measured_speedup_reward(accepted=[0, 3, 1.5, 2], window_size=[3, 3, 3, 2], cost_model=cost_model)
    assert rewards == pytest.approx([1 / 1.75, 4 / 1.75, 2.5 / 1.75, 3 / 1.45])
    assert measured_speedup_reward(accepted=[0], window_size=3, cost_model=cost_model) == pytest.approx([1 / 1.75])


def test_measured_speedup_of_a_window_that_ends_the_text():
    """The second commits what was accepted and no more."""
    rewards = measured_speedup_reward(
        accepted=[2, 3], committed=[3, 3], window_size=[3, 3], cost_model=CostModel(gamma=0.1)
    )
    assert rewards == pytest.approx([3 / 1.3, 3 / 1.3])
    with pytest.raises(ValueError, match="`committed` of measured_speedup_reward has 1 entries for 2 windows"):
        measured_speedup_reward(accepted=[2, 3], committed=[3], window_size=3, cost_model=CostModel(gamma=0.1))


def test_measured_speedup_agrees_with_the_published_example():
    """Target step 150 ms, draft step 30 ms. A window of 8 that yields 3 tokens: 130 ms each; 6.5 of 6.5: 53 ms."""
    cost_model = CostModel(gamma=30 / 150, target_step_seconds=0.150)
    rewards = measured_speedup_reward(accepted=[2, 5.5], window_size=[8, 6.5], cost_model=cost_model)
    assert [0.150 / reward for reward in rewards] == pytest.approx([0.130, 0.053], abs=0.0005)


def test_delta_by_hand():
    # Window 0: log-probabilities -0.1-0.2-0.3 against -1.1-0.2-1.3, Delta 2; window 1 ends after one token, Delta 0.9;
    # window 2 is more probable than the greedy one, which its second token makes up for: Delta -0.5.
    preferred = torch.tensor([[-0.1, -0.2, -0.3], [-0.1, -0.2, -0.3], [-0.5, -2.0, -0.5]])
    drafted = torch.tensor([[-1.1, -0.2, -1.3], [-1.0, float("nan"), float("nan")], [-1.0, -0.5, -1.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool()
    gaps = window_target_gap(preferred, drafted, mask)
    torch.testing.assert_close(gaps, torch.tensor([2.0, 0.9, -0.5]))
    rewards = ProximityReward(eta=0.5, epsilon=1.0)(target_gap=gaps, accepted=[0, 0, 0])
    assert rewards == [0.0, 0.5, 0.5]
    assert ProximityReward(eta=0.5, epsilon=1.0)(target_gap=gaps, accepted=[0, 1, 0]) == [0.0, None, 0.5]


def test_proximity_threshold_is_exclusive_and_unused_gaps_are_not_looked_at():
    gaps = [2.0, 1.999, math.inf, math.nan, None]
    assert proximity_reward(target_gap=gaps, accepted=[0, 0, 0, 2, 1]) == [0.0, 0.5, 0.0, None, None]
    with pytest.raises(ValueError, match="`target_gap` of proximity_reward must be a number where k = 0, got nan"):
        proximity_reward(target_gap=gaps, accepted=[0, 0, 0, 0, 1])


def test_proximity_with_expected_lengths_goes_by_the_first_token():
    arguments = {"target_gap": [0.5, 0.5], "accepted": [0.01, 0.4]}
    near = ProximityReward(epsilon=2.0)
    assert near(**arguments, first_rejected=torch.tensor([False, True])) == [None, 0.5]
    with pytest.raises(ValueError, match="Pass `first_rejected`"):
        near(**arguments)


def test_proximity_that_is_switched_off_needs_no_gaps():
    assert ProximityReward(eta=0)(accepted=[0, 2, 0]) == [0.0, None, 0.0]
    with pytest.raises(ValueError, match="`target_gap`"):
        ProximityReward()(accepted=[0, 2, 0])


def test_asynchronous_functions_run_at_the_same_time():
    """Each waits for the other, as two calls of a server's would if they were not."""
    here: list[asyncio.Event] = []

    async def first(accepted, **kwargs):
        here.append(asyncio.Event())
        await asyncio.wait_for(here[0].wait(), 10)
        return [float(k) for k in accepted]

    async def second(accepted, **kwargs):
        here[0].set()
        return [None if k else 10.0 for k in accepted]

    async def in_a_notebook():
        return combine_rewards([first, second, speedup_reward], [1.0, 2.0, 4.0], accepted=[0, 3], cost_ratio=1.0)

    for total, table in (
        combine_rewards([first, second, speedup_reward], [1.0, 2.0, 4.0], accepted=[0, 3], cost_ratio=1.0),
        asyncio.run(in_a_notebook()) if not here.clear() else None,
    ):
        assert total.tolist() == [20.0, 3.0 + 4 * 0.75]
        assert table[0].tolist() == [0.0, 10.0, 0.0] and table[1, 1].isnan()

    async def short(accepted, **kwargs):
        return [1.0]

    with pytest.raises(ValueError, match="short returned 1 rewards for 2 windows"):
        combine_rewards([short], accepted=[0, 3])


def test_proximity_separates_windows_where_speedup_cannot():
    """All refused at once: the speedup reward alone leaves the group without a signal."""
    arguments = {"accepted": [0, 0], "cost_ratio": 0.12, "target_gap": [0.7, 6.0]}
    total, _ = combine_rewards([speedup_reward], **arguments)
    assert total.tolist() == [0.0, 0.0]
    total, _ = combine_rewards([speedup_reward, proximity_reward], **arguments)
    assert total.tolist() == [0.5, 0.0]


def test_token_agreement():
    completion_ids = [[5, 6, 7], [5, 0]]
    target_argmax = [[5, 0, 7], [5, 6, 99]]  # the mismatch does not stop it; padding after a short window is ignored
    arguments = {"completion_ids": completion_ids, "target_argmax": target_argmax}
    assert token_agreement_reward(**arguments) == [[1.0, 0.0, 1.0], [1.0, 0.0]]
    total, table = combine_rewards(
        [token_agreement_reward, speedup_reward], accepted=[1, 1], cost_ratio=1.0, **arguments
    )
    torch.testing.assert_close(table, torch.tensor([[2 / 3, 0.5], [0.5, 0.5]]))
    assert total.tolist() == [0.5, 0.5]
    funcs = [token_agreement_reward, speedup_reward]
    per_token = combine_token_rewards(funcs, [2.0, 5.0], 4, accepted=[1, 1], cost_ratio=1.0, **arguments)
    assert per_token.tolist() == [[2.0, 0.0, 2.0, 0.0], [2.0, 0.0, 0.0, 0.0]]
    assert combine_token_rewards([speedup_reward], None, 4, accepted=[1], cost_ratio=1.0) is None
    with pytest.raises(ValueError, match="`width` is 2"):
        combine_token_rewards([token_agreement_reward], None, 2, **arguments)
    with pytest.raises(ValueError, match="`target_argmax` of token_agreement_reward"):
        token_agreement_reward(completion_ids=completion_ids, target_argmax=[[5], [5, 6]])


def test_combine_weights_and_none():
    def one_or_nothing(accepted, **kwargs):
        return [None if k == 0 else 1.0 for k in accepted]

    total, table = combine_rewards([one_or_nothing, speedup_reward], [3.0, 2.0], accepted=[0, 1], cost_ratio=1.0)
    assert total.tolist() == [0.0, 4.0]
    assert table.dtype == torch.float32
    assert torch.equal(table.isnan(), torch.tensor([[True, False], [False, False]]))
    assert table[1].tolist() == [1.0, 0.5] and table[0, 1] == 0.0


def test_grpo_convention_and_return_types():
    seen = {}

    def lengths(prompts, completions, completion_ids, **kwargs):
        seen.update(prompts=prompts, completions=completions, kwargs=sorted(kwargs))
        return np.array([len(ids) for ids in completion_ids])

    total, _ = combine_rewards(
        [lengths, lambda completion_ids, **_: torch.ones(len(completion_ids))],
        prompts=["a", "b"],
        completions=["c", "d"],
        completion_ids=[[1], [2, 3]],
        trainer_state="state",
    )
    assert total.tolist() == [2.0, 3.0]
    assert seen == {"prompts": ["a", "b"], "completions": ["c", "d"], "kwargs": ["trainer_state"]}


def apart(*args, **kwargs) -> functools.partial:
    """A partial that another one around it keeps as it is: those without attributes are merged into one."""
    held = functools.partial(*args, **kwargs)
    held.note = "own"
    return held


def test_a_partial_keeps_what_it_holds():
    """By the rewards: 1 / (1 + gamma) for one accepted token."""
    cheap = functools.partial(speedup_reward, cost_ratio=0.25)
    for reward_func, one in (
        (speedup_reward, 1 / 2),
        (cheap, 1 / 1.25),
        (functools.partial(cheap), 1 / 1.25),
        (functools.partial(cheap, cost_ratio=3.0), 1 / 4),
        (functools.partial(apart(speedup_reward, cost_ratio=3.0)), 1 / 4),
        (functools.partial(apart(speedup_reward, cost_ratio=3.0), cost_ratio=0.25), 1 / 1.25),
    ):
        total, table = combine_rewards([reward_func, speedup_reward], accepted=[0, 1], cost_ratio=1.0)
        torch.testing.assert_close(table, torch.tensor([[0.0, 0.0], [one, 0.5]]))
        torch.testing.assert_close(total, torch.tensor([0.0, one + 0.5]))
    own = functools.partial(measured_speedup_reward, cost_model=CostModel(gamma=0.5))
    arguments = {"accepted": [0, 1], "window_size": [2, 2], "cost_ratio": 1.0}
    for cost_model in (None, CostModel(gamma=4.0)):
        total, _ = combine_rewards([own], **arguments, cost_model=cost_model)
        assert total.tolist() == pytest.approx([1 / 2, 2 / 2])


def test_a_partial_of_a_token_level_function_is_one():
    arguments = {"completion_ids": [[5, 6, 7]], "target_argmax": [[5, 0, 7]]}
    exact = functools.partial(token_agreement_reward, target_argmax=[[5, 6, 7]])
    assert combine_token_rewards([exact, token_agreement_reward], [2.0, 1.0], 3, **arguments).tolist() == [[3, 2, 3]]
    total, table = combine_rewards([exact], **arguments)
    assert total.tolist() == [0.0] and table.tolist() == [[1.0]]


def test_what_is_inside_of_partials():
    outer = functools.partial(apart(speedup_reward, cost_ratio=3.0, note="a"), cost_ratio=0.25)
    assert isinstance(outer.func, functools.partial), "nested, not merged"
    assert unwrap_partial(outer) == (speedup_reward, {"cost_ratio": 0.25, "note": "a"})
    assert unwrap_partial(speedup_reward) == (speedup_reward, {})


@pytest.mark.parametrize("token_level", [False, True])
def test_one_call_gives_all(token_level):
    calls = []

    def counting(completion_ids, **kwargs):
        calls.append(len(calls))
        return [[float(len(calls))] * len(ids) for ids in completion_ids] if token_level else [2.0, 3.0]

    counting.token_level = token_level
    arguments = {"completion_ids": [[1, 2], [3]], "accepted": [0, 1], "cost_ratio": 1.0}
    functions, weights = [speedup_reward, counting], [1.0, 2.0]
    total, table, by_token = combine_all_rewards(functions, weights, 2, **arguments)
    assert calls == [0]
    if token_level:
        assert total.tolist() == [0.0, 0.5] and table.tolist() == [[0.0, 1.0], [0.5, 1.0]]
        assert by_token.tolist() == [[2.0, 2.0], [2.0, 0.0]]
    else:
        assert total.tolist() == [4.0, 6.5] and table.tolist() == [[0.0, 2.0], [0.5, 3.0]] and by_token is None


def test_names():
    assert reward_name(ProximityReward(eta=0.1)) == "proximity_reward"
    assert reward_name(functools.partial(speedup_reward, cost_ratio=0.3)) == "speedup_reward"
    assert reward_name(measured_speedup_reward) == "measured_speedup_reward"


def test_two_rewards_of_one_name_are_told_apart():
    cheap, dear = (functools.partial(speedup_reward, cost_ratio=ratio) for ratio in (0.1, 0.3))
    assert reward_names([cheap, ProximityReward(), dear, speedup_reward]) == [
        "speedup_reward",
        "proximity_reward",
        "speedup_reward_2",
        "speedup_reward_3",
    ]

    def speedup_reward_2(**kwargs):
        return []

    assert reward_names([speedup_reward_2, cheap, dear]) == ["speedup_reward_2", "speedup_reward", "speedup_reward_3"]


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        ([1.0], "mine returned 1 rewards for 2 windows"),
        ([1.0, float("nan")], "mine returned nan. Return `None` where it does not apply"),
        ([1.0, float("-inf")], "mine returned -inf"),
        ([1.0, "high"], "mine returned 'high', which is not a number"),
        (1.0, "mine must return a list"),
        (torch.tensor([1.0, math.inf]), "mine returned inf"),
    ],
)
def test_bad_returns_name_the_function(returned, match):
    def mine(**kwargs):
        return returned

    with pytest.raises(ValueError, match=match):
        combine_rewards([speedup_reward, mine], accepted=[0, 1], cost_ratio=0.12)


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        ([[1.0, 1.0], [1.0]], "mine returned 1 rewards for the 2 draft tokens of window 1"),
        ([[1.0, 1.0], 1.0], "mine must return a list per window, got 1.0"),
        ([[1.0, 1.0], [1.0, math.nan]], "mine returned nan"),
    ],
)
def test_bad_token_level_returns(returned, match):
    def mine(**kwargs):
        return returned

    mine.token_level = True
    for combine, width in ((combine_rewards, ()), (combine_token_rewards, (2,))):
        with pytest.raises(ValueError, match=match):
            combine([mine], None, *width, completion_ids=[[1, 2], [3, 4]])


def test_bad_arguments():
    with pytest.raises(ValueError, match="`reward_weights` has 1 entries for 2 reward functions"):
        combine_rewards([speedup_reward, proximity_reward], [1.0], accepted=[0])
    with pytest.raises(ValueError, match="`reward_weights` must be finite"):
        combine_rewards([speedup_reward], [math.nan], accepted=[0])
    with pytest.raises(ValueError, match="`reward_funcs` is empty"):
        combine_rewards([], accepted=[0])
    with pytest.raises(ValueError, match="Pass `completion_ids`, `accepted` or `prompts`"):
        combine_rewards([speedup_reward])
    for cost_ratio in (0.0, -0.1, math.nan, None, True):
        with pytest.raises(ValueError, match="`cost_ratio` of speedup_reward must be a number above 0"):
            speedup_reward(accepted=[1], cost_ratio=cost_ratio)
    for accepted in ([math.nan], [-1], None, 3):
        with pytest.raises(ValueError, match="`accepted` of speedup_reward"):
            speedup_reward(accepted=accepted, cost_ratio=0.1)
    with pytest.raises(ValueError, match="needs a `cost_model`"):
        measured_speedup_reward(accepted=[1], window_size=3)
    for window_size in (0, 2, [5, 5], None):
        with pytest.raises(ValueError, match="`window_size` of measured_speedup_reward"):
            measured_speedup_reward(accepted=[3], window_size=window_size, cost_model=CostModel(0.1))
    with pytest.raises(ValueError, match="`target_gap` of proximity_reward has 1 entries for 2 windows"):
        proximity_reward(target_gap=[0.0], accepted=[0, 0])
    with pytest.raises(ValueError, match="`eta`"):
        ProximityReward(eta=-1.0)
    with pytest.raises(ValueError, match="`epsilon`"):
        ProximityReward(epsilon=0.0)


def test_the_nearer_half_of_the_refused_windows():
    reward = ProximityReward(eta=0.5, epsilon="median")
    # Refused: gaps 30, 10, 50, 20; the median is 25. The gap of 1 belongs to a window with accepted tokens.
    gaps, accepted = [30.0, 1.0, 10.0, 50.0, 20.0], [0, 2, 0, 0, 0]
    assert reward(target_gap=gaps, accepted=accepted) == [0.0, None, 0.5, 0.0, 0.5]
    # Whatever the size of the windows, unlike with a number.
    assert reward(target_gap=[10 * gap for gap in gaps], accepted=accepted) == [0.0, None, 0.5, 0.0, 0.5]
    assert reward(target_gap=[3.0, 4.0], accepted=[1, 2]) == [None, None]
    assert reward(target_gap=[3.0, math.inf, math.inf], accepted=[0, 0, 0]) == [0.5, 0.0, 0.0]
    assert repr(reward) == "ProximityReward(eta=0.5, epsilon='median')"


@pytest.mark.parametrize(
    ("gaps", "paid"),
    [
        ([1.0, 1.0, 1.0, 5.0], [0.5, 0.5, 0.5, 0.0]),
        ([1.0, 1.0, 5.0, 7.0], [0.5, 0.5, 0.0, 0.0]),
        ([2.0, 9.0, 2.0, 2.0, 8.0], [0.5, 0.0, 0.5, 0.5, 0.0]),
        ([1.0, 4.0, 4.0, 4.0], [0.5, 0.0, 0.0, 0.0]),
        ([-3.0, -3.0, math.inf], [0.5, 0.5, 0.0]),
        # None is nearer than another.
        ([2.0, 2.0, 2.0], [0.0, 0.0, 0.0]),
        ([math.inf, math.inf], [0.0, 0.0]),
        ([0.1], [0.0]),
    ],
)
def test_the_nearer_half_where_gaps_are_equal(gaps, paid):
    reward = ProximityReward(eta=0.5, epsilon="median")
    assert reward(target_gap=gaps, accepted=[0] * len(gaps)) == paid
    # A window that was not refused has no part in it.
    assert reward(target_gap=[0.0, *gaps], accepted=[1] + [0] * len(gaps)) == [None, *paid]


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, "mean", None, True])
def test_an_epsilon_that_is_none(epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be a number of nats above 0, or 'median'; got"):
        ProximityReward(epsilon=epsilon)
