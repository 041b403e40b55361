# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What is measured of windows on the way to their rewards, against plain passes and loops."""

import math
from contextlib import nullcontext

import pytest
import torch

from ppow_hf.rl import target_prefix, token_agreement_reward
from ppow_hf.trainer.window_experience import window_mask_of
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.naive_ppow import NaivePPOW, groups_of, toss_coins
from tests.trainer.ppow_common import QUIET, make_experience, ppow_trainer, tokenizer_of, training_logs
from tests.trainer.test_ppow_loss import rows_of_the_target

ROWS = token_rows(3)


# ---- criticality ---------------------------------------------------------------------------------------------------


def naive_criticality(naive: NaivePPOW, ids: list[int], place: int) -> float:
    """v of the token at a place: target and drafter asked plainly, behind the text before it."""
    with torch.no_grad():
        p = naive.target(torch.tensor([ids[:place]])).logits[0, -1].double().softmax(-1)
    confidence = 1 + (p * p.log()).sum().item() / math.log(len(p))
    q = naive.draft_logits(ids, place, [0])[0].softmax(-1)
    kept = p if naive.drafter.draft_token_ids is None else p[naive.drafter.draft_token_ids]
    kept = kept / kept.sum()
    return confidence * (kept * (kept / q).log()).sum().item()


@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
def test_criticality_is_that_of_the_windows_own_tokens(tmp_path, family):
    target = tiny_target()
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target)
    trainer = ppow_trainer(tmp_path, drafter.eval(), target, ROWS, **QUIET)
    batch = trainer.data_collator(list(ROWS))
    prefix = target_prefix(target, batch["input_ids"], batch["attention_mask"], drafter.feature_layer_ids)
    mask = window_mask_of(batch["loss_mask"])
    values = trainer.experience_maker._criticality(drafter, prefix, mask, nullcontext)
    naive = NaivePPOW(drafter, target, trainer.args)
    seen = []
    for row, found in zip(ROWS, values.tolist(), strict=True):
        ids, own = row["input_ids"], row["loss_mask"]
        by_token = [naive_criticality(naive, ids, n) if own[n] else 0.0 for n in range(len(ids))]
        for start in range(2, len(ids) - 2):
            expected = sum(by_token[start : start + 3]) / 3
            assert found[start] == pytest.approx(expected, rel=1e-4, abs=1e-6), start
            seen.append(expected)
    # One place further or before is another number.
    assert max(seen) > 2 * min(value for value in seen if value) > 0


# ---- how much is accepted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("kind", ["greedy", "sampled", "expected"])
def test_acceptance_is_logged_of_the_kind_that_is_rewarded(tmp_path, kind, ends):
    """As shares of all windows: a position that the end of the text has cut off counts as not accepted."""
    target = tiny_target()
    rows = rows_of_the_target(target, num_rows=4)
    options = {"acceptance": kind, "rollout_temperature": 0.8, "num_generations": 12, "num_windows": 5, **QUIET}
    trainer = ppow_trainer(tmp_path, tiny_eagle3(target, draft_vocab_size=80), target, rows, **options)
    experience = make_experience(trainer, rows)
    naive = NaivePPOW(trainer.model, target, trainer.args)
    if ends:
        windows = experience.inputs["window_tokens"]
        eos = int(windows[windows >= 0].flatten().mode().values)
        trainer.experience_maker.eos_token_ids = naive.eos = frozenset({eos})
        experience = make_experience(trainer, rows)
    groups = groups_of(experience, rows)
    naive.remember(groups)
    toss_coins(groups, experience, trainer.args.seed)
    survived = []
    for group in groups:
        for index in range(len(group.windows)):
            last, alive = naive.refused_at(group, index), []
            for k, chance in enumerate(naive.chances(group, index)):
                before = alive[-1] if alive else 1.0
                alive.append(before * chance if kind == "expected" else float(k < last))
            survived.append(alive)
    assert any(len(alive) < 3 for alive in survived) == ends
    survived = [alive + [0.0] * (3 - len(alive)) for alive in survived]
    count = len(survived)
    expected = {
        "accepted_length": sum(map(sum, survived)) / count,
        "share_none_accepted": 1 - sum(alive[0] for alive in survived) / count,
        **{f"acceptance/position_{k}": sum(alive[k] for alive in survived) / count for k in range(3)},
    }
    assert 0 < expected["share_none_accepted"] < 1
    found = {}
    for name, value in expected.items():
        total, number = experience.metrics[name]
        found[name] = total / number
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    by_position = [found[f"acceptance/position_{k}"] for k in range(3)]
    assert by_position == sorted(by_position, reverse=True) and (kind == "greedy" or by_position[1] > 0)
    assert found["accepted_length"] == pytest.approx(sum(by_position), rel=1e-5)


@pytest.mark.parametrize("kind", ["greedy", "sampled", "expected"])
def test_the_target_adds_no_token_behind_the_end_of_the_text(tmp_path, kind):
    seen = []

    def remember(**facts):
        seen.append(facts)
        return [0.0] * len(facts["accepted"])

    target = tiny_target()
    rows = rows_of_the_target(target, num_rows=4)
    options = {"acceptance": kind, "rollout_temperature": 0.8, "num_generations": 12, "num_windows": 5, **QUIET}
    trainer = ppow_trainer(
        tmp_path, tiny_eagle3(target, draft_vocab_size=80), target, rows, reward_funcs=remember, **options
    )
    make_experience(trainer, rows)
    (facts,) = seen
    assert facts["committed"] == pytest.approx([k + 1 for k in facts["accepted"]])
    # The end of the text is a token that verification went past: the window that had it now ends on it.
    first = facts["first_rejected"].index(False)
    eos = facts["completion_ids"][first][0]
    trainer.experience_maker.eos_token_ids = frozenset({eos})
    seen.clear()
    trainer._buffer.clear()
    experience = make_experience(trainer, rows)
    (facts,) = seen
    naive = NaivePPOW(trainer.model, target, trainer.args, frozenset({eos}))
    groups = groups_of(experience, rows)
    naive.remember(groups)
    toss_coins(groups, experience, trainer.args.seed)
    expected = []
    for group in groups:
        for index, window in enumerate(group.windows):
            length, chances = naive.length(group, index), naive.chances(group, index)
            whole = math.prod(chances) if kind == "expected" else float(length == len(chances))
            ends = window[len(chances) - 1] == eos
            expected.append(length + 1 - (whole if ends else 0.0))
    assert facts["committed"] == pytest.approx(expected, rel=1e-4)
    lost = [k + 1 - count for k, count in zip(facts["accepted"], facts["committed"], strict=True)]
    assert lost[first] > 0.05 and min(lost) == pytest.approx(0.0, abs=1e-6)


# ---- Delta ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("acceptance", ["greedy", "sampled"])
def test_delta_is_of_the_targets_own_distribution_up_to_either_end(tmp_path, acceptance, family):
    """Whatever the temperature of drafting; the target's own window may end before the drafted one does."""
    target = tiny_target(family)
    rows = rows_of_the_target(target, num_rows=4)
    gaps = []

    def remember(target_gap, **kwargs):
        gaps.extend(target_gap)
        return [0.0] * len(target_gap)

    options = {"acceptance": acceptance, "rollout_temperature": 0.5, "num_windows": 4, "window_size": 4, **QUIET}
    drafter = tiny_eagle3(target, draft_vocab_size=80)
    trainer = ppow_trainer(tmp_path, drafter, target, rows, reward_funcs=remember, **options)
    # A token that the target would write in the midst of some windows.
    eos = torch.tensor([ids[9] for ids in rows["input_ids"]]).mode().values.item()
    trainer.experience_maker.eos_token_ids = frozenset({eos})
    experience = make_experience(trainer, rows)
    naive = NaivePPOW(trainer.model, target, trainer.args, frozenset({eos}))
    whole = NaivePPOW(trainer.model, target, trainer.args)
    pairs = [(group, window) for group in groups_of(experience, rows) for window in group.windows]
    assert gaps == pytest.approx([naive.target_gap(*pair) for pair in pairs], rel=1e-4, abs=1e-4)
    assert any(abs(gap - whole.target_gap(*pair)) > 0.1 for gap, pair in zip(gaps, pairs, strict=True))


# ---- rewards -------------------------------------------------------------------------------------------------------


def test_the_rewards_of_the_token_level_baseline_are_logged(tmp_path):
    target = tiny_target()
    rows = rows_of_the_target(target)
    options = {"num_generations": 8, "num_windows": 3, "reward_weights": [2.0], **QUIET}
    drafter = tiny_eagle3(target, draft_vocab_size=80)
    trainer = ppow_trainer(tmp_path, drafter, target, rows, reward_funcs=[token_agreement_reward], **options)
    experience = make_experience(trainer, rows)
    naive = NaivePPOW(trainer.model, target, trainer.args)
    means, spreads, flat = [], [], 0
    for group in groups_of(experience, rows):
        agreements = torch.tensor(
            [
                [
                    float(token == int(row.argmax()))
                    for token, row in zip(window, naive.target_logits(group.ids, group.start, window), strict=True)
                ]
                for window in group.windows
            ]
        )
        rewards = 2 * agreements.mean(-1)
        means.extend(rewards.tolist())
        spreads.append(rewards.std().item())
        flat += int((agreements == agreements[0]).all())
    found = {name: total / number for name, (total, number) in experience.metrics.items() if number}
    assert found["reward"] == pytest.approx(sum(means) / len(means), rel=1e-5)
    assert found["reward_std"] == pytest.approx(sum(spreads) / len(spreads), rel=1e-5)
    assert found["flat_groups"] == flat / len(spreads) < 1


@pytest.mark.parametrize("column", ["width", "reward_funcs", "reward_weights", "kwargs", "window_size"])
@pytest.mark.parametrize("token_level", [False, True])
def test_columns_of_the_dataset_may_have_any_name(tmp_path, column, token_level):
    seen = []

    def mine(completion_ids, **kwargs):
        seen.append(kwargs[column])
        return [[1.0] * len(ids) for ids in completion_ids] if token_level else [1.0] * len(completion_ids)

    mine.token_level = token_level
    rows = token_rows(4).add_column(column, ["a", "b", "c", "d"])
    trainer = ppow_trainer(tmp_path, dataset=rows, reward_funcs=mine, tokenizer=tokenizer_of(), max_steps=1, **QUIET)
    trainer.train()
    assert len(training_logs(trainer)) == 1
    # What is measured of the windows goes before the dataset's columns.
    expected = {3} if column == "window_size" else set("abcd")
    assert set(seen[0]) == expected
