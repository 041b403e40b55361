# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The policy gradient in expectation, over every window that can be drawn, against that of the expected reward."""

import itertools

import pytest
import torch

from ppow_hf.rl import Rollouts
from ppow_hf.trainer import window_experience
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.naive_ppow import NaivePPOW, groups_of, toss_coins
from tests.trainer.ppow_common import QUIET, make_experience, ppow_trainer

TOKENS, SIZE = 4, 3


def every_window(drafter, input_ids, features, starts, *, window_size, temperature, **_) -> Rollouts:
    """All windows of the draft vocabulary as one group, in place of some that are drawn."""
    ids = drafter.draft_token_ids
    columns = torch.tensor(list(itertools.product(range(len(ids)), repeat=window_size)))
    columns = columns.expand(*starts.shape, -1, -1)
    logits = torch.stack(drafter(input_ids, features, starts=starts, window_tokens=ids[columns]).logits, dim=3)
    log_probs = (logits / temperature).log_softmax(-1).gather(-1, columns[..., None])[..., 0]
    mask = (starts >= 0)[..., None, None].expand(columns.shape)
    return Rollouts(starts, ids[columns], columns, log_probs, mask)


@pytest.mark.parametrize(
    ("acceptance", "credit"), [("greedy", "window"), ("greedy", "prefix"), ("expected", "window")]
)
def test_it_is_the_gradient_of_the_expected_reward(tmp_path, monkeypatch, acceptance, credit):
    """Which tokens are credited may change its variance only. What is accepted is taken for a constant."""
    target = tiny_target(vocab_size=6)
    drafter = tiny_eagle3(target, draft_vocab_size=TOKENS)
    rows = token_rows(2, vocab_size=6)
    trainer = ppow_trainer(
        tmp_path,
        drafter,
        target,
        rows,
        acceptance=acceptance,
        credit=credit,
        window_size=SIZE,
        num_generations=TOKENS**SIZE,
        scale_rewards="none",
        proximity_eta=0.0,
        cost_ratio=0.3,
        rollout_temperature=1.0 if acceptance == "greedy" else 1.3,
        **QUIET,
    )
    monkeypatch.setattr(window_experience, "rollout_windows", every_window)
    experience = make_experience(trainer, rows)
    logits = trainer._window_logits(trainer.model, experience, experience.inputs["window_tokens"])
    log_q = (logits / trainer.args.rollout_temperature).log_softmax(-1)
    log_q = log_q.gather(-1, experience.columns[..., None])[..., 0]
    chances = experience.old_log_probs.sum(-1).exp()
    torch.testing.assert_close(chances.view(-1, TOKENS**SIZE).sum(-1), torch.ones(4))

    naive = NaivePPOW(drafter, trainer.target_model, trainer.args)
    groups = groups_of(experience, rows)
    naive.remember(groups)
    toss_coins(groups, experience, trainer.args.seed)
    rewards = torch.tensor([reward for group in groups for reward in naive.rewards(group)])
    assert rewards.view(-1, TOKENS**SIZE).std(-1).max() > 0.1

    parameters = list(drafter.parameters())
    found = torch.autograd.grad(
        (chances[:, None] * experience.advantages * log_q).sum(), parameters, retain_graph=True
    )
    exact = torch.autograd.grad((log_q.sum(-1).exp() * rewards).sum(), parameters)
    norm = sum(part.square().sum() for part in exact).sqrt()
    assert norm > 1e-3
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(norm))
