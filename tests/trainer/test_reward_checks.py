# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import functools
import re

import pytest

from ppow_hf import CostModel
from ppow_hf.rl import ProximityReward, measured_speedup_reward, speedup_reward, token_agreement_reward
from ppow_hf.trainer.reward_checks import (
    is_ours,
    needs_cost_model,
    warn_of_missing_texts,
    warn_of_rewarded_refusals,
    warn_of_unread_settings,
)
from tests.trainer.ppow_common import QUIET, ppow_args, ppow_trainer

COSTS = CostModel(gamma=0.25, verify_curve=[1.0, 1.0, 1.0, 1.0, 1.0])


def own_reward(accepted, **kwargs):
    return list(accepted)


# One accepted token earns 1 / (1 + 0.25) = 0.8; measured, it saves one target step in 1 + 2 * 0.25 = 1.5: 2 / 3.
# With a cost ratio of 1 it earns 0.5; measured with free drafting, 1.
@pytest.mark.parametrize(
    ("rewards", "weights", "warns"),
    [
        ([speedup_reward, ProximityReward(0.8)], None, True),
        ([speedup_reward, ProximityReward(0.79)], None, False),
        ([speedup_reward, ProximityReward(0.5)], [1.0, 1.7], True),
        ([speedup_reward, ProximityReward(1.5)], [2.0, 1.0], False),
        ([measured_speedup_reward, ProximityReward(0.7)], None, True),
        ([measured_speedup_reward, ProximityReward(0.6)], None, False),
        ([functools.partial(speedup_reward, cost_ratio=1.0), ProximityReward(0.6)], None, True),
        ([functools.partial(speedup_reward, cost_ratio=1.0), ProximityReward(0.4)], None, False),
        ([functools.partial(measured_speedup_reward, cost_model=CostModel(0.0)), ProximityReward(0.7)], None, False),
        ([functools.partial(speedup_reward), functools.partial(ProximityReward(0.8))], None, True),
        ([speedup_reward], None, False),
        ([speedup_reward, ProximityReward(0.5)], [0.0, 1.0], True),
        ([speedup_reward, ProximityReward(0.5)], [1.0, 0.0], False),
        ([ProximityReward(5.0)], None, False),
        ([token_agreement_reward, ProximityReward(5.0)], None, False),
    ],
)
def test_a_warning_where_a_refused_window_earns_as_much_as_an_accepted_token(caplog, rewards, weights, warns):
    with caplog.at_level("WARNING"):
        warn_of_rewarded_refusals(rewards, weights, 2, 0.25, COSTS)
    assert ("training will prefer refused windows" in caplog.text) == warns


@pytest.mark.parametrize(("cost_ratio", "below"), [(0.12, None), (1.5, "below 0.4, 0.2 for example")])
def test_the_trainer_warns(tmp_path, caplog, cost_ratio, below):
    with caplog.at_level("WARNING"):
        ppow_trainer(tmp_path, cost_ratio=cost_ratio, **QUIET)
    assert ("`proximity_eta`" in caplog.text) == (below is not None)
    assert below is None or below in caplog.text


NEAR = ProximityReward(0.3, 4.0)


@pytest.mark.parametrize(
    ("rewards", "settings", "says"),
    [
        ([speedup_reward], {"proximity_eta": 0.3}, "`proximity_eta=0.3` is not used.*holds none"),
        ([speedup_reward], {"proximity_epsilon": 3.5}, "`proximity_epsilon=3.5` is not used"),
        ([own_reward], {"proximity_eta": 0.3, "proximity_epsilon": 4.0}, "`proximity_eta=0.3` and .* are not used"),
        ([speedup_reward, NEAR], {"proximity_eta": 0.4}, "holds one with eta=0.3, epsilon=4.0"),
        ([speedup_reward, NEAR], {"proximity_eta": 0.0}, "`proximity_eta=0.0` is not used"),
        ([speedup_reward, NEAR], {"proximity_eta": 0.3, "proximity_epsilon": 4.0}, None),
        ([speedup_reward, functools.partial(NEAR)], {"proximity_eta": 0.3, "proximity_epsilon": 4.0}, None),
        ([speedup_reward, NEAR], {}, None),
        ([speedup_reward], {"proximity_eta": 0.0}, None),
        ([measured_speedup_reward], {"cost_ratio": 0.06}, "`cost_ratio=0.06` is not used"),
        ([measured_speedup_reward, token_agreement_reward], {"cost_ratio": 0.06}, "`cost_ratio=0.06` is not used"),
        ([functools.partial(speedup_reward, cost_ratio=0.3)], {"cost_ratio": 0.06}, "`cost_ratio=0.06` is not used"),
        ([measured_speedup_reward], {"cost_ratio": "measured"}, None),
        ([measured_speedup_reward], {}, None),
        ([measured_speedup_reward, speedup_reward], {"cost_ratio": 0.06}, None),
        ([functools.partial(speedup_reward)], {"cost_ratio": 0.06}, None),
        ([own_reward], {"cost_ratio": 0.06}, None),
    ],
)
def test_settings_that_no_reward_goes_by_are_warned_of(tmp_path, caplog, rewards, settings, says):
    with caplog.at_level("WARNING"):
        warn_of_unread_settings(rewards, ppow_args(tmp_path, **settings))
    assert ("not used" in caplog.text) == (says is not None)
    assert says is None or re.search(says, caplog.text), caplog.text


def reads_texts(prompts, completions, **kwargs):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("rewards", "tokenizer", "warns"),
    [
        ([reads_texts], None, True),
        ([speedup_reward, functools.partial(reads_texts)], None, True),
        ([reads_texts], object(), False),
        ([own_reward, speedup_reward, max], None, False),
    ],
)
def test_a_warning_where_texts_are_read_that_nobody_makes(caplog, rewards, tokenizer, warns):
    with caplog.at_level("WARNING"):
        warn_of_missing_texts(rewards, tokenizer)
    assert ("reads_texts takes 'completions' and 'prompts', which are None" in caplog.text) == warns


def test_the_trainer_warns_of_missing_texts(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        ppow_trainer(tmp_path, reward_funcs=[reads_texts], **QUIET)
    assert "Give `processing_class`" in caplog.text


@pytest.mark.parametrize(
    ("rewards", "reads"),
    [
        ([speedup_reward, ProximityReward()], True),
        ([speedup_reward, ProximityReward(0)], False),
        ([functools.partial(own_reward)], True),
    ],
)
def test_delta_is_made_for_those_who_read_it(tmp_path, rewards, reads):
    assert ppow_trainer(tmp_path, reward_funcs=rewards, **QUIET).experience_maker.needs_gap == reads


def test_the_trainer_warns_of_unread_settings(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        ppow_trainer(tmp_path, proximity_eta=0.3, cost_ratio=0.3, **QUIET)
    assert "not used" not in caplog.text, "the default rewards go by both"
    with caplog.at_level("WARNING"):
        ppow_trainer(tmp_path, reward_funcs=[token_agreement_reward], proximity_eta=0.3, cost_ratio=0.3, **QUIET)
    assert "`proximity_eta=0.3` is not used" in caplog.text and "`cost_ratio=0.3` is not used" in caplog.text


def test_what_is_asked_about_functions_goes_through_partials():
    assert is_ours(functools.partial(speedup_reward)) and is_ours(ProximityReward())
    assert not is_ours(functools.partial(own_reward))
    assert needs_cost_model([speedup_reward, functools.partial(measured_speedup_reward)])
    assert not needs_cost_model([speedup_reward, functools.partial(measured_speedup_reward, cost_model=COSTS)])
