# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A drafter with dropout: the policy that is optimised is the one that drafted the windows."""

import pytest
import torch

from ppow_hf import CausalLMDrafter
from tests.testing_utils import tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import QUIET, make_experience, ppow_trainer, training_logs


def drafter_of(family, target):
    """One whose dropout is a module (GPT-2), and two that ask for it in a call, by the mode they are in."""
    if family == "eagle3":
        return tiny_eagle3(target, draft_vocab_size=48, attention_dropout=0.3)
    options = {"attention_dropout": 0.3} if family == "llama" else {}
    return CausalLMDrafter.from_causal_lm(tiny_target(family, seed=1, **options))


@pytest.mark.parametrize("family", ["gpt2", "llama", "eagle3"])
def test_ratios_are_1_at_the_first_update(tmp_path, family):
    target = tiny_target()
    drafter = drafter_of(family, target)
    rows = token_rows(4)
    trainer = ppow_trainer(tmp_path, drafter, target, rows, anchor_weight=0.5, **QUIET)
    experience = make_experience(trainer, rows)

    def log_probs(logits):
        return logits.float().log_softmax(-1).gather(-1, experience.columns[..., None])[..., 0]

    assert drafter.training, "as `Trainer` leaves it"
    inputs = experience.inputs
    steps = drafter(**inputs).logits
    dropped = torch.stack([step[experience.chosen].flatten(0, 1) for step in steps], dim=1)
    assert (log_probs(dropped) - experience.old_log_probs).abs().max() > 1e-2, "there is dropout in training mode"

    logits = trainer._window_logits(trainer.model, experience, inputs["window_tokens"])
    ratios = (log_probs(logits) - experience.old_log_probs).exp()
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=1e-5)
    assert logits.requires_grad and all(module.training for module in drafter.modules()), "only for the pass"
    _, metrics = trainer._compute_loss(trainer.model, experience)
    total, count = metrics["log_prob_drift"]
    assert total / count < 1e-6


def test_a_run_of_a_drafter_with_dropout(tmp_path):
    """The whole loop, rollouts used twice: only the second update's ratios have moved."""
    target = tiny_target()
    trainer = ppow_trainer(tmp_path, drafter_of("gpt2", target), target, num_iterations=2, max_steps=4, **QUIET)
    trainer.train()
    drifts = [log["log_prob_drift"] for log in training_logs(trainer, "kl")]
    assert all(drift < 1e-5 for drift in drifts[::2]) and all(drift > 1e-4 for drift in drifts[1::2])
