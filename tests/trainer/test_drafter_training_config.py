# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the configurations of both stages share."""

import dataclasses

import pytest
from transformers import TrainingArguments

from ppow_hf.trainer import DrafterSFTConfig, DrafterTrainingConfig, PPOWConfig

CONFIGS = pytest.mark.parametrize("cls", [DrafterSFTConfig, PPOWConfig])
EVERY_FIVE_STEPS = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}


def config(cls, tmp_path, **values):
    return cls(output_dir=str(tmp_path), use_cpu=True, report_to="none", **values)


@CONFIGS
def test_the_best_checkpoint_is_the_best_by_acceptance_length(cls, tmp_path):
    args = config(cls, tmp_path, load_best_model_at_end=True, **EVERY_FIVE_STEPS)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_acceptance_length", True)


def test_a_loss_to_choose_by_is_better_when_it_is_lower(tmp_path):
    args = config(DrafterSFTConfig, tmp_path, metric_for_best_model="eval_loss", eval_decode_prompts=0)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_loss", False)


@CONFIGS
@pytest.mark.parametrize(
    "goes_by", [{"load_best_model_at_end": True}, {"early_stopping_patience": 1}, {"save_strategy": "best"}]
)
def test_what_goes_by_the_acceptance_length_needs_it(cls, tmp_path, goes_by):
    values = {**EVERY_FIVE_STEPS, **goes_by}
    name = next(iter(goes_by))
    with pytest.raises(ValueError, match=f"`{name}.*`eval_decode_prompts` is 0.*`metric_for_best_model`"):
        config(cls, tmp_path, **values, eval_decode_prompts=0)
    config(cls, tmp_path, **values, eval_decode_prompts=4)
    config(cls, tmp_path, **values, eval_decode_prompts=0, metric_for_best_model="eval_a_figure_of_ones_own")


@CONFIGS
def test_without_decoding_there_is_nothing_to_choose_by(cls, tmp_path):
    args = config(cls, tmp_path, eval_decode_prompts=0)
    assert args.metric_for_best_model is None and args.greater_is_better is None


@CONFIGS
def test_a_plateau_of_the_acceptance_length_is_no_rise(cls, tmp_path):
    values = {**EVERY_FIVE_STEPS, "lr_scheduler_type": "reduce_lr_on_plateau"}
    assert config(cls, tmp_path, **values).lr_scheduler_kwargs == {"mode": "max"}
    if cls is DrafterSFTConfig:  # which has a loss on held-out rows
        assert config(cls, tmp_path, **values, eval_decode_prompts=0).lr_scheduler_kwargs == {"mode": "min"}
    given = config(cls, tmp_path, **values, lr_scheduler_kwargs={"mode": "min", "patience": 3})
    assert given.lr_scheduler_kwargs == {"mode": "min", "patience": 3}


@CONFIGS
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_length", 2),
        ("eval_decode_prompts", -1),
        ("eval_decode_prompts", 2.0),
        ("eval_decode_new_tokens", 1),
        ("eval_window", "fixed:0"),
        ("early_stopping_patience", 0),
        ("max_seconds", 0.0),
        ("max_seconds", float("nan")),
    ],
)
def test_a_bad_value_is_refused_by_name(cls, tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        config(cls, tmp_path, **{field: value})


def test_every_field_is_documented_and_has_a_help_text():
    own = {f.name for f in dataclasses.fields(DrafterTrainingConfig)}
    own -= {f.name for f in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(DrafterTrainingConfig):
        if field.name in own:
            assert f"        {field.name} (" in DrafterTrainingConfig.__doc__, field.name
            assert field.metadata.get("help"), field.name


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
@pytest.mark.parametrize("config", [DrafterSFTConfig, PPOWConfig])
def test_evaluation_in_half_precision_is_refused(tmp_path, config, name):
    with pytest.raises(ValueError, match=f"`{name}=True` would leave the drafter in half precision"):
        config(str(tmp_path), use_cpu=True, **{name: True})
