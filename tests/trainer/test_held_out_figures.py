# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Figures of held-out rows are those of a loop over all tokens, however the rows are batched."""

import pytest

from ppow_hf.trainer.weighted_means import WeightedMeans
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.naive_sft import naive_figures, naive_windows

BATCH_SIZES = (1, 2, 6)


def rows():
    """Seven rows with between 4 and 20 tokens of the target's own, one of them too short for any window."""
    dataset = token_rows(6, seed=1, length=30)
    own = (4, 20, 5, 17, 8, 11)
    masks = [[0] * (len(ids) - n) + [1] * n for ids, n in zip(dataset["input_ids"], own, strict=True)]
    dataset = dataset.remove_columns("loss_mask").add_column("loss_mask", masks)
    return dataset.add_item({"input_ids": [5, 6, 7], "loss_mask": [0, 0, 0]})


def logged(trainer) -> dict[str, float]:
    trainer.evaluate()
    return {name: value for name, value in trainer.state.log_history[-1].items() if not name.endswith("_second")}


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("family", ["eagle3", "causal_lm"])
def test_figures_are_those_of_a_loop_over_all_tokens(tmp_path, family, batch_size):
    target = tiny_target(seed=3)
    drafter = tiny_eagle3(target, draft_vocab_size=48) if family == "eagle3" else tiny_causal_drafter(target, 3)
    drafter.eval()
    held_out = rows()
    trainer = sft_trainer(
        tmp_path, drafter, target, eval_dataset=held_out, per_device_eval_batch_size=batch_size, eval_decode_prompts=0
    )
    windows = [window for row in held_out for window in naive_windows(drafter, target, row, trainer.ttt_steps)]
    figures = logged(trainer)
    for name, value in naive_figures(windows, trainer.ttt_steps).items():
        assert figures[f"eval_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_figures_do_not_depend_on_the_batch_size(tmp_path):
    target = tiny_target(seed=3)
    drafter = tiny_eagle3(target, draft_vocab_size=48)
    results = []
    for batch_size in BATCH_SIZES:
        trainer = sft_trainer(
            tmp_path,
            drafter,
            target,
            eval_dataset=rows(),
            per_device_eval_batch_size=batch_size,
            eval_decode_prompts=0,
            window_reward_weight=0.7,
            distillation_weight=0.4,
        )
        figures = logged(trainer)
        assert {"eval_loss", "eval_window_reward", "eval_step_2/accuracy"} <= figures.keys()
        results.append({name: value for name, value in figures.items() if not name.endswith("time")})
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    assert results[2] == pytest.approx(results[0], rel=1e-4)


def test_they_are_among_what_an_evaluation_returns_under_its_own_prefix(tmp_path):
    trainer = sft_trainer(tmp_path, eval_dataset=rows(), eval_decode_prompts=0)
    first = trainer.evaluate(metric_key_prefix="eval_short")
    assert "eval_short_step_0/accuracy" in first and "eval_step_0/accuracy" not in first
    again = trainer.evaluate()
    assert again["eval_step_0/accuracy"] == first["eval_short_step_0/accuracy"]


def test_weighted_means():
    means = WeightedMeans()
    means.add({"a": (6.0, 3), "b": (1.0, 1), "none": (5.0, 0)})
    means.add({"a": (2.0, 1)})
    assert means.times_added("a") == 2 and means.times_added("none") == 0
    assert means.take() == {"a": 2.0, "b": 1.0}
    assert means.take() == {} and means.times_added("a") == 0
