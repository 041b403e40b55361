# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The exact window reward inside of the supervised trainer."""

import pytest
import torch
from datasets import Dataset

from ppow_hf.drafters import gather_features
from ppow_hf.trainer import DrafterSFTConfig, DrafterSFTTrainer
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_args

STEPS, GAMMA, TEMPERATURE = 3, 0.1, 0.8


def written_by(target, strangers: int) -> Dataset:
    """Greedy texts of the target, in which some tokens are not its own choice."""
    rows = []
    for seed in range(4):
        ids = torch.randint(2, 96, (1, 6), generator=torch.Generator().manual_seed(seed))
        for step in range(14):
            choice = target(ids).logits[:, -1:].argmax(-1)
            if strangers and step % 5 == strangers:
                choice = (choice + 7) % 96
            ids = torch.cat([ids, choice], dim=-1)
        rows.append({"input_ids": ids[0].tolist(), "loss_mask": [0] * 6 + [1] * 14})
    return Dataset.from_list(rows)


@torch.no_grad()
def naive_reward(drafter, target, row) -> tuple[float, int]:
    """Sum over window starts of `sum_k P(k) R(k)`, drafting along the target's path from every position in turn."""
    ids, mask = row["input_ids"], row["loss_mask"]
    input_ids = torch.tensor([ids])
    output = target(input_ids, output_hidden_states=True)
    path = output.logits[0].argmax(-1).tolist()  # path[t - 1] is the target's choice for token t
    layers = drafter.feature_layer_ids
    features = gather_features(output.hidden_states, layers) if layers else None
    known = drafter.draft_token_ids.tolist() if drafter.draft_token_ids is not None else list(range(96))
    total, starts, offset = 0.0, 0, drafter.prediction_offset
    steps = STEPS if layers else 1
    for begin in range(offset, len(ids)):
        if not mask[begin]:
            continue
        starts += 1
        state = drafter.new_state()
        reach, reward_before = 1.0, 0.0
        for k in range(steps):
            token = begin + k
            if token >= len(ids) or not mask[token]:
                break
            if k == 0:
                logits = drafter.extend(
                    state, input_ids[:, :begin], features[:, : begin - 1] if features is not None else None
                )
            else:
                logits = drafter.step(state, input_ids[:, token - 1])
            wanted = path[token - 1]
            if wanted not in known:
                break
            reach *= (logits[0] / TEMPERATURE).softmax(-1)[known.index(wanted)].item()
            reward = (k + 1) / ((k + 1) * GAMMA + 1)
            total += reach * (reward - reward_before)
            reward_before = reward
            if ids[token] != wanted:
                break
    return total, starts


@pytest.mark.parametrize("strangers", [0, 3])
@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
def test_it_equals_drafting_along_the_targets_path_from_every_position(tmp_path, family, strangers):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    drafter.eval()
    rows = written_by(target, strangers)
    args = sft_args(
        tmp_path,
        ttt_steps=STEPS if family == "eagle3" else 1,
        distillation_weight=0.0,
        window_reward_weight=2.0,
        cost_ratio=GAMMA,
        window_temperature=TEMPERATURE,
    )
    trainer = DrafterSFTTrainer(model=drafter, target_model=target, args=args, train_dataset=rows)
    loss = trainer.compute_loss(drafter, trainer.data_collator(list(rows))).item()
    naive = [naive_reward(drafter, target, row) for row in rows]
    expected = sum(total for total, _ in naive) / sum(starts for _, starts in naive)
    assert expected > 0
    assert loss == pytest.approx(-2.0 * expected, rel=1e-4)


def test_training_for_it_raises_it(tmp_path):
    target = tiny_target()
    args = sft_args(
        tmp_path,
        max_steps=40,
        learning_rate=3e-3,
        distillation_weight=0.0,
        window_reward_weight=1.0,
        eval_strategy="no",
    )
    trainer = DrafterSFTTrainer(
        model=tiny_eagle3(target), target_model=target, args=args, train_dataset=written_by(target, 0)
    )
    trainer.train()
    rewards = [log["window_reward"] for log in trainer.state.log_history if "window_reward" in log]
    assert rewards[-1] > 3 * rewards[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("distillation_weight", -0.1),
        ("distillation_weight", float("nan")),
        ("window_reward_weight", -1.0),
        ("cost_ratio", 0.0),
        ("cost_ratio", -0.06),
        ("window_temperature", 0.0),
    ],
)
def test_config_names_the_bad_field(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        DrafterSFTConfig(output_dir=str(tmp_path), use_cpu=True, **{field: value})


def test_a_loss_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing would be learned"):
        DrafterSFTConfig(output_dir=str(tmp_path), use_cpu=True, distillation_weight=0.0)
