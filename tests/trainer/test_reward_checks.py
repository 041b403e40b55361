# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import pytest

from ppow_hf import CostModel
from ppow_hf.rl import ProximityReward, measured_speedup_reward, speedup_reward, token_agreement_reward
from ppow_hf.trainer.reward_checks import warn_of_rewarded_refusals
from tests.trainer.ppow_common import QUIET, ppow_trainer

COSTS = CostModel(gamma=0.25, verify_curve=[1.0, 1.0, 1.0, 1.0, 1.0])


# One accepted token earns 1 / (1 + 0.25) = 0.8; measured, it saves one target step in 1 + 2 * 0.25 = 1.5: 2 / 3.
@pytest.mark.parametrize(
    ("rewards", "weights", "warns"),
    [
        ([speedup_reward, ProximityReward(0.8)], None, True),
        ([speedup_reward, ProximityReward(0.79)], None, False),
        ([speedup_reward, ProximityReward(0.5)], [1.0, 1.7], True),
        ([speedup_reward, ProximityReward(1.5)], [2.0, 1.0], False),
        ([measured_speedup_reward, ProximityReward(0.7)], None, True),
        ([measured_speedup_reward, ProximityReward(0.6)], None, False),
        ([speedup_reward], None, False),
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
