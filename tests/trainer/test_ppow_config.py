# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import dataclasses

import pytest
from transformers import TrainingArguments

from ppow_hf.trainer import PPOWConfig

NAN, INF = float("nan"), float("inf")


def config(tmp_path, **values) -> PPOWConfig:
    return PPOWConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **values)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("num_generations", [1, 0, -4, 2.0, True, "8"]),
        ("window_size", [0, -1, 2.5, None]),
        ("num_windows", [0, 1.5]),
        ("min_distance", [0, -1]),
        ("num_iterations", [0, 1.5]),
        ("max_length", [2, 0, 10.0]),
        ("cost_ratio", [0, 0.0, -0.12, NAN, INF, "free", "-1", "nan", "", True, None]),
        ("rollout_temperature", [0.0, -1.0, NAN, INF, "hot"]),
        ("epsilon", [0.0, -0.2, NAN]),
        ("proximity_epsilon", [0.0, -2.0, INF]),
        ("proximity_eta", [-1.0, NAN]),
        ("beta", [-0.1, NAN, None]),
        ("policy_weight", [-1.0, INF]),
        ("expected_length_weight", [-1.0, NAN]),
        ("anchor_weight", [-0.5, NAN]),
        ("uniform_share", [-0.1, 1.1, NAN]),
        ("adaw_warmup", [-0.1, NAN, INF, 2.5]),
        ("reward_weights", [[1.0, NAN], [None], ["1"], 1.0]),
        ("eval_decode_prompts", [-1, 2.0]),
        ("eval_decode_new_tokens", [1, 0]),
        ("early_stopping_patience", [0, -1, 1.5]),
        ("max_seconds", [0, -1.0, NAN]),
        ("window_selection", ["critical", "", None]),
        ("acceptance", ["argmax", None]),
        ("credit", ["token", None]),
        ("baseline", ["mean", None]),
        ("scale_rewards", ["batch", 1.0, None]),
        ("kl_direction", ["both", None]),
        ("kl_weighting", ["position"]),
        ("eval_window", ["always", "fixed:0", "fixed:five", "confidence:2", ""]),
    ],
)
def test_a_bad_value_is_refused_by_name(tmp_path, field, values):
    for value in values:
        with pytest.raises(ValueError) as error:
            config(tmp_path, **{field: value})
        assert f"`{field}`" in str(error.value), (value, str(error.value))


@pytest.mark.parametrize(("field", "value"), [("num_generations", 1), ("cost_ratio", -0.12), ("credit", "token")])
def test_errors_say_what_was_given(tmp_path, field, value):
    with pytest.raises(ValueError, match=rf"got {value!r}"):
        config(tmp_path, **{field: value})


@pytest.mark.parametrize("other", [{"credit": "window"}, {"credit": "prefix", "acceptance": "sampled"}])
def test_survivors_need_greedy_acceptance_and_prefix_credit(tmp_path, other):
    with pytest.raises(ValueError, match='`baseline="survivors"` .* needs `acceptance="greedy"`'):
        config(tmp_path, baseline="survivors", **other)
    assert config(tmp_path, baseline="survivors", credit="prefix").acceptance == "greedy"


def test_expected_acceptance_credits_whole_windows(tmp_path):
    with pytest.raises(
        ValueError, match='`credit="prefix"` is biased with `acceptance="expected"`.*Set `credit="window"`'
    ):
        config(tmp_path, acceptance="expected", credit="prefix")
    assert config(tmp_path, acceptance="expected").credit == "window"
    assert config(tmp_path, acceptance="sampled", credit="prefix").credit == "prefix"


@pytest.mark.parametrize("acceptance", ["sampled", "expected"])
def test_the_greedy_window_needs_greedy_acceptance(tmp_path, acceptance):
    with pytest.raises(ValueError, match=f"`greedy_window=True`.*{acceptance}.*Set `greedy_window=False`"):
        config(tmp_path, greedy_window=True, acceptance=acceptance)
    assert config(tmp_path, acceptance=acceptance).greedy_window is False
    assert config(tmp_path, greedy_window=True).acceptance == "greedy"


def test_values_at_their_limits_are_accepted(tmp_path):
    limits = config(
        tmp_path,
        num_generations=2,
        window_size=1,
        num_windows=1,
        max_length=3,
        proximity_eta=0,
        beta=0,
        policy_weight=0,
        uniform_share=1.0,
        adaw_warmup=0,
        reward_weights=[1.0, -0.5],
        eval_decode_prompts=0,
    )
    assert limits.metric_for_best_model is None, "without decoding there is no acceptance length to choose by"


def test_a_cost_ratio_may_come_as_text(tmp_path):
    assert config(tmp_path, cost_ratio="0.08").cost_ratio == 0.08
    assert config(tmp_path, cost_ratio="measured").cost_ratio == "measured"


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_rows_cannot_be_ordered_by_length_where_they_are_repeated(tmp_path, strategy):
    with pytest.raises(ValueError, match=f"`train_sampling_strategy='{strategy}'`.*`num_iterations` \\(2\\)"):
        config(tmp_path, num_iterations=2, train_sampling_strategy=strategy)
    config(tmp_path, num_iterations=1, train_sampling_strategy=strategy)


def test_the_best_checkpoint_lies_where_rollouts_begin(tmp_path):
    best = {"save_strategy": "best", "eval_strategy": "steps", "num_iterations": 2}
    with pytest.raises(ValueError, match=r"`eval_steps` \(3\) must be a multiple of `num_iterations` \(2\)"):
        config(tmp_path, eval_steps=3, **best)
    config(tmp_path, eval_steps=4, **best)


def test_time_and_patience_go_on_where_a_run_is_resumed(tmp_path):
    assert config(tmp_path).restore_callback_states_from_checkpoint


def test_early_stopping_needs_evaluations(tmp_path):
    with pytest.raises(ValueError, match="`early_stopping_patience`.*`eval_strategy`"):
        config(tmp_path, early_stopping_patience=2)


def test_defaults_are_those_of_the_paper_where_it_gives_any(tmp_path):
    defaults = config(tmp_path)
    assert (defaults.num_generations, defaults.window_size, defaults.cost_ratio) == (8, 10, 0.12)
    # Ours: a near miss earns less than one accepted token does.
    assert defaults.proximity_eta == 0.5 < 1 / (1 + defaults.cost_ratio)
    assert (defaults.window_selection, defaults.credit, defaults.scale_rewards) == ("adaw", "window", "group")
    assert (defaults.metric_for_best_model, defaults.greater_is_better) == ("eval_acceptance_length", True)


def test_every_field_is_documented_and_has_a_help_text():
    own = set(PPOWConfig.__annotations__) - set(TrainingArguments.__annotations__)
    for field in dataclasses.fields(PPOWConfig):
        if field.name in own:
            assert f"        {field.name} (" in PPOWConfig.__doc__, field.name
            assert field.metadata.get("help"), field.name


@pytest.mark.parametrize(("given", "held"), [(True, "group"), (False, "none"), ("none", "none")])
def test_advantages_are_scaled_as_grpo_says_it(tmp_path, given, held):
    assert config(tmp_path, scale_rewards=given).scale_rewards == held


def test_a_schedule_that_goes_by_a_figure_needs_one(tmp_path):
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 5}
    assert config(tmp_path, **plateau).metric_for_best_model == "eval_acceptance_length"
    with pytest.raises(ValueError, match="`lr_scheduler_type` .* but `eval_decode_prompts` is 0"):
        config(tmp_path, **plateau, eval_decode_prompts=0)


@pytest.mark.parametrize(("given", "held"), [("median", "median"), ("3.5", 3.5), (4, 4)])
def test_epsilon_is_a_number_or_the_median(tmp_path, given, held):
    assert PPOWConfig(tmp_path, proximity_epsilon=given).proximity_epsilon == held


@pytest.mark.parametrize("given", ["mean", "0", -1.0])
def test_epsilon_that_is_neither(tmp_path, given):
    with pytest.raises(ValueError, match="`proximity_epsilon`"):
        PPOWConfig(tmp_path, proximity_epsilon=given)


@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_there_is_no_held_out_loss_to_choose_by(name, tmp_path):
    with pytest.raises(ValueError, match=f"`metric_for_best_model` is '{name}', which PPOW does not have"):
        PPOWConfig(str(tmp_path), metric_for_best_model=name, use_cpu=True)
