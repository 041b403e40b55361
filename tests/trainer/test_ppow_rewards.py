# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Reward functions and ablations of the reinforcement-learning stage, through the trainer."""

import functools
import math

import pytest
import torch
from transformers import TrainerCallback

from ppow_hf import CostModel
from ppow_hf.rl import measured_speedup_reward, speedup_reward, token_agreement_reward
from ppow_hf.trainer import PPOWTrainer, window_experience
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.naive_ppow import NaivePPOW, groups_of
from tests.trainer.ppow_common import (
    QUIET,
    make_experience,
    ppow_args,
    ppow_trainer,
    tokenizer_of,
    training_logs,
    weights_of,
)


def test_a_reward_function_of_ones_own_gets_what_grpo_passes(tmp_path):
    rows = token_rows(4).add_column("topic", ["a", "b", "c", "d"]).add_column("accepted", [99, 99, 99, 99])
    rows = rows.add_column("trainer_state", ["no", "state", "at", "all"])
    calls, states = [], []

    def likes_low_tokens(
        prompts,
        completions,
        completion_ids,
        topic,
        accepted,
        target_gap,
        trainer_state,
        log_extra,
        log_metric,
        **kwargs,
    ):
        calls.append((prompts, completions, completion_ids, topic, accepted, target_gap))
        states.append(trainer_state)
        log_extra("lowest", [min(ids) for ids in completion_ids])
        log_metric("tokens/lowest", min(map(min, completion_ids)))
        return [-float(sum(ids)) for ids in completion_ids]

    trainer = ppow_trainer(
        tmp_path,
        dataset=rows,
        reward_funcs=likes_low_tokens,
        tokenizer=tokenizer_of(),
        max_steps=1,
        train_sampling_strategy="sequential",
        **QUIET,
    )
    experience = make_experience(trainer, rows)
    ((prompts, completions, ids, topics, accepted, gaps),) = calls
    assert states == [trainer.state], "no column of the dataset"
    assert trainer.reward_log.extra == {"lowest": [min(tokens) for tokens in ids]}
    count = int(experience.chosen.sum()) * 4
    assert len(prompts) == len(completions) == len(ids) == len(topics) == len(accepted) == len(gaps) == count == 32
    starts = experience.inputs["starts"]
    places = [(row, int(starts[row, s])) for row, s in (starts >= 0).nonzero().tolist() for _ in range(4)]
    for (row, start), prompt, completion, tokens, topic in zip(places, prompts, completions, ids, topics, strict=True):
        assert prompt == " ".join(f"t{i}" for i in rows[row]["input_ids"][:start])
        assert completion == " ".join(f"t{i}" for i in tokens)
        assert topic == "abcd"[row]
    assert max(accepted) <= 3, "a column of the dataset must not hide what was measured"
    # The best window of a group has the highest advantage.
    advantages, sums = experience.advantages[:, 0].view(-1, 4), torch.tensor([sum(i) for i in ids]).view(-1, 4)
    assert torch.equal(advantages.argmax(-1), sums.argmin(-1))


def test_what_reward_functions_log(tmp_path, caplog):
    """Metrics are means over the calls since the last log; extra columns those of the step's own windows."""
    given, steps, extras = [], [], []

    def logging(completion_ids, trainer_state, log_metric, log_extra, **kwargs):
        given.append(float(sum(map(sum, completion_ids))))
        steps.append(trainer_state.global_step)
        log_metric("own/sum", given[-1])
        log_metric("own/nan", float("nan"))
        log_metric("kl", 1e6)
        log_extra("own", completion_ids)
        return [0.0] * len(completion_ids)

    class Extras(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            extras.append(dict(trainer.reward_log.extra))

    trainer = ppow_trainer(
        tmp_path,
        reward_funcs=[logging, speedup_reward],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=2,
        max_steps=4,
        **QUIET,
    )
    trainer.add_callback(Extras())
    with caplog.at_level("WARNING"):
        trainer.train()
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3]
    logs = training_logs(trainer)
    assert [log["own/sum"] for log in logs] == pytest.approx([sum(given[:4]) / 4, sum(given[4:]) / 4])
    assert all(log["own/nan"] != log["own/nan"] for log in logs), "a figure that is not finite is no divergence"
    assert all(log["kl"] < 1e3 for log in logs) and "`log_metric` was given 'kl'" in caplog.text
    assert [len(extra["own"]) for extra in extras] == [32] * 4
    assert [float(sum(map(sum, extra["own"]))) for extra in extras] == [
        given[2 * step] + given[2 * step + 1] for step in range(4)
    ]


def test_partials_in_the_trainer(tmp_path):
    """Rewarded by what they hold, each; passes that only other rewards need are not made for them."""
    target = tiny_target()
    trainer = PPOWTrainer(
        model=tiny_eagle3(target, draft_vocab_size=80),
        target_model=target,
        args=ppow_args(tmp_path, num_generations=8, cost_ratio=0.9, **QUIET),
        train_dataset=token_rows(4),
        reward_funcs=[
            functools.partial(speedup_reward, cost_ratio=0.06),
            functools.partial(measured_speedup_reward, cost_model=CostModel(gamma=0.5)),
        ],
    )
    assert not trainer.experience_maker.needs_gap and trainer.cost_model is None
    experience = make_experience(trainer, token_rows(4))
    naive = NaivePPOW(trainer.model, trainer.target_model, trainer.args)
    groups = groups_of(experience, token_rows(4))
    lengths = [naive.accepted(group, window) for group in groups for window in group.windows]
    assert len(set(lengths)) > 1
    found = {name: total / count for name, (total, count) in experience.metrics.items()}
    expected = sum(k / (0.06 * k + 1) for k in lengths) / len(lengths)
    assert found["rewards/speedup_reward/mean"] == pytest.approx(expected, rel=1e-5)
    expected = sum((k + 1) / (0.5 * 3 + 1) for k in lengths) / len(lengths)
    assert found["rewards/measured_speedup_reward/mean"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("ratio", "gamma"), [("measured", 0.05), (0.4, 0.4)])
def test_rewards_go_by_the_trainers_own_costs(tmp_path, ratio, gamma):
    """Both of gamma where it is measured; a number that was given stays what it is, beside the cost model."""
    given = []

    def remember(cost_ratio, cost_model, accepted, **kwargs):
        given.append((cost_ratio, cost_model))
        return [0.0] * len(accepted)

    costs = CostModel(gamma=0.05, verify_curve=[1.0, 1.1, 1.2, 1.4], overhead=0.1)
    target = tiny_target()
    trainer = PPOWTrainer(
        model=tiny_eagle3(target, draft_vocab_size=80),
        target_model=target,
        args=ppow_args(tmp_path, num_generations=8, cost_ratio=ratio, **QUIET),
        train_dataset=token_rows(4),
        reward_funcs=[speedup_reward, measured_speedup_reward, remember],
        cost_model=costs,
    )
    experience = make_experience(trainer, token_rows(4))
    assert given == [(gamma, costs)]
    naive = NaivePPOW(trainer.model, trainer.target_model, trainer.args)
    groups = groups_of(experience, token_rows(4))
    lengths = [naive.accepted(group, window) for group in groups for window in group.windows]
    assert len(set(lengths)) > 1
    found = {name: total / count for name, (total, count) in experience.metrics.items()}
    expected = sum(k / (gamma * k + 1) for k in lengths) / len(lengths)
    assert found["rewards/speedup_reward/mean"] == pytest.approx(expected, rel=1e-5)
    # Windows of 3: draft steps, their verification, and what is around it.
    expected = sum((k + 1) / (0.05 * 3 + 1.4 + 0.1) for k in lengths) / len(lengths)
    assert found["rewards/measured_speedup_reward/mean"] == pytest.approx(expected, rel=1e-5)


def wrong_length(completion_ids, **kwargs):
    return [0.0] * (len(completion_ids) - 1)


def not_a_number(completion_ids, **kwargs):
    return [float("nan")] * len(completion_ids)


@pytest.mark.parametrize(
    ("function", "message"),
    [(wrong_length, "wrong_length returned 31 rewards for 32 windows"), (not_a_number, "not_a_number returned nan")],
)
def test_a_bad_reward_function_is_named(tmp_path, function, message):
    trainer = ppow_trainer(tmp_path, dataset=token_rows(4), reward_funcs=[speedup_reward, function], **QUIET)
    with pytest.raises(ValueError, match=message):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "`reward_funcs` is empty"),
        ("org/model", "`reward_funcs` must hold functions, got 'org/model'. A reward model is not loaded by its name"),
        ([speedup_reward, 0.5], "`reward_funcs` must hold functions, got 0.5"),
    ],
)
def test_what_is_no_reward_function_is_refused_before_training(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        ppow_trainer(tmp_path, reward_funcs=given)


def test_reward_weights_must_fit(tmp_path):
    with pytest.raises(ValueError, match="`reward_weights` has 1 entries for 2 reward functions"):
        ppow_trainer(tmp_path, reward_weights=[1.0])


def test_reward_weights_scale_the_parts(tmp_path):
    trainer = ppow_trainer(tmp_path, reward_weights=[0.5, 3.0], proximity_epsilon=50.0, max_steps=1, **QUIET)
    trainer.train()
    (log,) = training_logs(trainer)
    parts = [log[f"rewards/{n}/mean"] * log[f"rewards/{n}/share"] for n in ("speedup_reward", "proximity_reward")]
    assert log["reward"] == pytest.approx(0.5 * parts[0] + 3.0 * parts[1], abs=1e-5)


def test_the_token_level_baseline(tmp_path):
    """Every position is compared with the same position of the other windows, whatever came before it."""
    trainer = ppow_trainer(tmp_path, reward_funcs=[token_agreement_reward], num_generations=8, num_windows=4, **QUIET)
    experience = make_experience(trainer, token_rows(4))
    tokens = experience.inputs["window_tokens"][experience.chosen]
    advantages = experience.advantages.view(tokens.shape)
    naive = NaivePPOW(trainer.model, trainer.target_model, trainer.args)
    groups = groups_of(experience, token_rows(4))
    uneven = 0
    for g, group in enumerate(groups):
        rewards = torch.tensor(
            [
                [
                    float(token == int(row.argmax()))
                    for token, row in zip(w, naive.target_logits(group.ids, group.start, w), strict=True)
                ]
                for w in group.windows
            ]
        )
        expected = (rewards - rewards.mean(0)) / (rewards.std(0) + 1e-4)
        torch.testing.assert_close(advantages[g], expected, rtol=1e-4, atol=1e-4)
        uneven += int((rewards.std(0) > 0).sum())
    assert uneven > 0
    trainer.train()
    assert "rewards/token_agreement_reward/mean" in training_logs(trainer)[0]


@pytest.mark.parametrize("baseline", ["group", "survivors"])
def test_windows_that_no_function_judges_have_no_part_in_it(tmp_path, baseline, caplog):
    """As in `GRPOTrainer`: None is no reward of 0."""
    kept: list[list] = []

    def of_short_ones(accepted, **kwargs):
        kept.append([None if k > 1 else 1.0 + k for k in accepted])
        return kept[-1]

    options = {"baseline": baseline, "credit": "prefix", "scale_rewards": "none", "num_generations": 8, **QUIET}
    trainer = ppow_trainer(tmp_path, reward_funcs=[of_short_ones], **options)
    window_experience.logger.warning_once.cache_clear()
    with caplog.at_level("WARNING"):
        experience = make_experience(trainer, token_rows(4))
    rewards = torch.tensor([math.nan if r is None else r for r in kept[0]])
    judged = ~rewards.isnan()
    assert 0 < judged.sum() < len(rewards)
    assert "returned None for some windows" in caplog.text
    first = experience.advantages[:, 0].view(-1, 8)
    groups = rewards.view(-1, 8)
    mean = groups.nanmean(1, keepdim=True)
    expected = groups - mean
    if baseline == "survivors":
        # All windows have reached their first token; a group that was refused as a whole goes by its mean.
        count = (~groups.isnan()).sum(1, keepdim=True)
        scale = torch.where((groups == 1).all(1, keepdim=True), 1.0, count / (count - 1))
        expected = expected * scale
    alone = (~groups.isnan()).sum(1) < 2
    expected[alone] = 0
    torch.testing.assert_close(first, expected.nan_to_num(0.0), rtol=1e-5, atol=1e-6)
    assert (first != 0).any()
    found = {name: total / count for name, (total, count) in experience.metrics.items()}
    assert found["reward"] == pytest.approx(float(rewards.nanmean()))
    assert found["rewards/of_short_ones/share"] == pytest.approx(float(judged.float().mean()))
    assert found["rewards/of_short_ones/std"] == pytest.approx(float(rewards[judged].std()))


COSTS = {"gamma": 0.05}

ABLATIONS = {
    "uniform": {"window_selection": "uniform"},
    "uniform_share": {"uniform_share": 0.5, "min_distance": 3},
    "without_proximity": {"proximity_eta": 0.0},
    "without_either": {"proximity_eta": 0.0, "window_selection": "uniform"},
    "prefix": {"credit": "prefix"},
    "sampled": {"acceptance": "sampled", "credit": "prefix"},
    "expected": {"acceptance": "expected"},
    "greedy_window": {"greedy_window": True, "rollout_temperature": 0.7},
    "survivors": {"baseline": "survivors", "credit": "prefix", "greedy_window": True},
    "unscaled": {"scale_rewards": "none"},
    "reach": {"kl_weighting": "reach", "acceptance": "sampled"},
    "reverse": {"kl_direction": "reverse"},
    "anchors_alone": {"policy_weight": 0.0, "anchor_weight": 1.0, "expected_length_weight": 1.0},
    "measured": {"cost_ratio": "measured"},
    "one_token": {"window_size": 1},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_run(tmp_path, name):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    before = weights_of(drafter)
    rewards = [measured_speedup_reward, functools.partial(speedup_reward)] if name == "measured" else None
    trainer = PPOWTrainer(
        model=drafter,
        target_model=target,
        args=ppow_args(tmp_path, max_steps=2, **{**QUIET, **ABLATIONS[name]}),
        train_dataset=token_rows(),
        reward_funcs=rewards,
        cost_model=CostModel(**COSTS) if name == "measured" else None,
    )
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 2
    assert all(torch.tensor(v).isfinite() for log in logs for v in log.values())
    assert any(not torch.equal(before[n], value) for n, value in drafter.state_dict().items())
    assert ("rewards/proximity_reward/share" in logs[0]) == (
        name not in ("without_proximity", "without_either", "measured")
    )
    if name == "measured":
        # Windows of 3, whose accepted length is logged beside.
        expected = (logs[0]["accepted_length"] + 1) / (0.05 * 3 + 1)
        assert logs[0]["rewards/measured_speedup_reward/mean"] == pytest.approx(expected, rel=1e-4)
        assert trainer._evaluation_costs().gamma == 0.05
