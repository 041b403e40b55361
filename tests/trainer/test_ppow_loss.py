# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The loss of a step against one written out in loops, and its gradient against finite differences."""

import copy

import pytest
import torch
from datasets import Dataset

from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.naive_ppow import NaivePPOW, groups_of, toss_coins
from tests.trainer.ppow_common import (
    QUIET,
    make_experience,
    ppow_trainer,
)

VARIANTS = {
    "paper": {"proximity_epsilon": 6.0},
    "prefix_credit": {"credit": "prefix", "scale_rewards": "none"},
    "temperature": {"rollout_temperature": 0.7, "proximity_epsilon": 6.0},
    "reverse_reach": {"kl_direction": "reverse", "kl_weighting": "reach", "beta": 0.5, "proximity_epsilon": 6.0},
    "expected": {"acceptance": "expected", "proximity_eta": 0.0, "rollout_temperature": 1.3},
    "sampled": {"acceptance": "sampled", "rollout_temperature": 0.7, "proximity_epsilon": 6.0},
    "sampled_prefix": {
        "acceptance": "sampled",
        "credit": "prefix",
        "kl_weighting": "reach",
        "beta": 0.5,
        "rollout_temperature": 1.4,
        "proximity_epsilon": 6.0,
    },
    "expected_proximity": {"acceptance": "expected", "rollout_temperature": 0.6, "proximity_epsilon": 6.0},
    "greedy_window": {"greedy_window": True, "rollout_temperature": 0.7, "proximity_epsilon": 6.0},
    "prefix_proximity": {"credit": "prefix", "rollout_temperature": 1.5, "proximity_epsilon": 9.0},
    "survivors": {
        "baseline": "survivors",
        "credit": "prefix",
        "greedy_window": True,
        "rollout_temperature": 0.7,
        "proximity_epsilon": 6.0,
    },
    "survivors_alone": {
        "baseline": "survivors",
        "credit": "prefix",
        "proximity_eta": 0.0,
        "scale_rewards": "none",
        "rollout_temperature": 0.5,
    },
    "anchors": {"anchor_weight": 0.7, "expected_length_weight": 0.4, "policy_weight": 0.5, "beta": 0.0},
}


def close_drafter(target):
    """A drafter of the target's own last layer that is right now and then: groups must have something to compare."""
    return tiny_eagle3(target, draft_vocab_size=80)


def rows_of_the_target(target, num_rows=2) -> Dataset:
    prompts = torch.randint(2, 96, (num_rows, 5), generator=torch.Generator().manual_seed(4))
    output = target.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=9, do_sample=False)
    # Of different lengths, so that one is padded.
    rows = [ids[: 14 - 3 * (index % 2)] for index, ids in enumerate(output.tolist())]
    return Dataset.from_list([{"input_ids": ids, "loss_mask": [0] * 5 + [1] * (len(ids) - 5)} for ids in rows])


def setting(tmp_path, **overrides):
    target = tiny_target()
    drafter = close_drafter(target)
    rows = rows_of_the_target(target)
    # In nats: the naive loss goes by one group after another, and the median is that of all.
    options = {"proximity_epsilon": 2.0, "num_iterations": 2, "adaw_warmup": 0, **QUIET, **overrides}
    trainer = ppow_trainer(tmp_path, drafter, target, rows, **options)
    return trainer, drafter, rows, NaivePPOW(drafter, trainer.target_model, trainer.args)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_equals_a_naive_one(tmp_path, variant):
    """The second step on the same rollouts: ratios differ from 1, and some of them are clipped."""
    trainer, drafter, rows, naive = setting(tmp_path, **VARIANTS[variant])
    experience = make_experience(trainer, rows)
    groups = groups_of(experience, rows)
    assert len(groups) == 4
    naive.remember(groups)
    toss_coins(groups, experience, trainer.args.seed)
    if trainer.args.greedy_window:
        for group in groups:
            logits = naive.draft_logits(group.ids, group.start, group.windows[0])
            assert [int(row.argmax()) for row in logits] == [naive.column(token) for token in group.windows[0]]
    if trainer.args.acceptance != "greedy":
        assert len({naive.refused_at(group, index) for group in groups for index in range(4)}) > 1
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter += 0.1 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    trainer.state.global_step = 1
    loss, metrics = trainer._compute_loss(trainer.model, experience)
    assert any(naive.advantages(naive.rewards(group)) != [0.0] * 4 for group in groups)
    if trainer.args.policy_weight == 1 and trainer.args.credit == "window":
        assert metrics["clip_ratio"][0] > 0
    assert loss.item() == pytest.approx(naive.loss(groups), rel=1e-4, abs=1e-5)


def test_the_end_of_the_text_ends_the_window(tmp_path):
    trainer, drafter, rows, naive = setting(tmp_path, num_generations=6)
    windows = make_experience(trainer, rows).inputs["window_tokens"]
    eos = int(windows[windows >= 0].flatten().mode().values)
    trainer._buffer.clear()
    trainer.experience_maker.eos_token_ids = naive.eos = frozenset({eos})
    experience = make_experience(trainer, rows)
    assert not experience.mask.all()
    groups = groups_of(experience, rows)
    naive.remember(groups)
    trainer.state.global_step = 1
    loss = trainer.compute_loss(trainer.model, experience)
    assert loss.item() == pytest.approx(naive.loss(groups), rel=1e-4, abs=1e-5)


def test_the_gradient_on_fresh_rollouts_equals_finite_differences(tmp_path):
    trainer, drafter, rows, naive = setting(tmp_path, anchor_weight=0.3)
    experience = make_experience(trainer, rows)
    groups = groups_of(experience, rows)
    naive.remember(groups)
    trainer.compute_loss(trainer.model, experience).backward()
    gradient = {name: parameter.grad.clone() for name, parameter in drafter.named_parameters()}
    norm = sum(g.double().square().sum() for g in gradient.values()).sqrt().item()
    assert norm > 1e-3
    # Along itself, and along others: along itself alone, what is missing of it altogether would not be missed.
    generator = torch.Generator().manual_seed(3)
    noise = [{n: g + norm * torch.randn(g.shape, generator=generator) for n, g in gradient.items()} for _ in range(2)]
    for direction in (gradient, *noise):
        length = sum(d.double().square().sum() for d in direction.values()).sqrt().item()
        slope = sum((gradient[n].double() * d.double()).sum().item() for n, d in direction.items()) / length
        ends, step = [], 2e-3 if direction is gradient else 2e-2
        for sign in (1, -1):
            moved = copy.deepcopy(drafter)
            moved.bind_target(trainer.target_model)
            with torch.no_grad():
                for name, parameter in moved.named_parameters():
                    parameter += sign * step * direction[name] / length
            other = NaivePPOW(moved, trainer.target_model, trainer.args)
            other.rewards = naive.rewards  # the windows were drafted and judged before
            ends.append(other.loss(groups))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=2e-3 * norm)
