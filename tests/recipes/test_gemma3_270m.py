# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
from pathlib import Path

import pytest
import torch

from ppow_hf.scripts.sft_drafter import make_parser
from tests.recipes.loaded_script import loaded_script
from tests.recipes.stubbed_commands import run_recipe
from tests.testing_utils import tiny_target

RECIPE = Path(__file__).parents[2] / "trainers" / "recipes" / "gemma3_270m"
STAGES = ["data", "init", "sft", "window", "finish", "bench"]


@pytest.fixture(scope="module")
def script():
    with loaded_script(RECIPE / "initial_drafter.py") as module:
        yield module


@pytest.fixture(scope="module")
def target():
    """Like the real one: hidden dimensions of very different size, and a final norm that evens them out."""
    target = tiny_target(family="gemma3_text").eval()
    size = torch.logspace(-2, 2, target.config.hidden_size)
    with torch.no_grad():
        target.model.embed_tokens.weight.mul_(size)
        target.model.norm.weight.copy_(1 / size - 1)
    return target


@torch.no_grad()
def test_states_are_the_deepest_feature_behind_the_final_gain(script, target):
    generator = torch.Generator().manual_seed(0)
    vocab_size = target.config.vocab_size
    rows = [torch.randint(vocab_size, (20,), generator=generator).tolist() for _ in range(8)]
    kept = torch.arange(0, vocab_size, 2)
    drafter = script.balanced_drafter(target, rows, kept)
    ids = torch.tensor(rows)
    states = target(ids, output_hidden_states=True).hidden_states
    features = torch.cat([states[k] for k in drafter.feature_layer_ids], dim=-1)

    normed = torch.cat(
        [n(f) for n, f in zip(drafter.fc_norm, features.split(states[0].shape[-1], -1), strict=True)], -1
    )
    sizes = normed[:, 1:].square().mean((0, 1)).sqrt()
    assert 0.5 < sizes.min() and sizes.max() < 2

    mine = drafter.project_features(features)[:, 1:]
    # The gain by its definition in this family, and the target's own head on what it would be fed.
    expected = states[drafter.feature_layer_ids[-1]][:, 1:] * (1 + target.model.norm.weight)
    assert torch.cosine_similarity(mine, expected, dim=-1).min() > 0.98
    assert 0.5 < mine.square().mean().sqrt() < 2
    logits = drafter.lm_head(drafter.norm(mine))
    reference = expected @ target.lm_head.weight[kept].T
    assert torch.cosine_similarity(logits, reference, dim=-1).min() > 0.9
    final = target.model(ids).last_hidden_state[:, 1:].square().mean(-1).sqrt().median()
    assert torch.isclose(drafter.norm(mine).square().mean(-1).sqrt().median(), final, rtol=0.1)


def test_balanced_drafter_can_be_saved_and_decodes(script, target, tmp_path):
    from ppow_hf import AutoDrafter

    script.balanced_drafter(target, [[1, 2, 3, 4, 5]] * 2, None).save_pretrained(tmp_path)
    drafter = AutoDrafter.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    options = {"max_new_tokens": 24, "do_sample": False}
    plain = target.generate(ids, **options)
    assert torch.equal(plain, target.generate(ids, assistant_model=drafter, window="fixed:3", **options))


@pytest.mark.parametrize("name", ["sft.yaml", "window.yaml"])
def test_stage_configs_are_understood(name):
    script_args, training_args = make_parser().parse_args_and_config(["--config", str(RECIPE / name)])
    assert script_args.target == "gemma3-270m" and training_args.max_seconds > 0
    # Resuming must not start the time anew.
    assert training_args.save_strategy == "steps" and training_args.restore_callback_states_from_checkpoint


def test_stages_run_in_order_and_finished_ones_are_skipped(tmp_path):
    calls = run_recipe(RECIPE / "run.sh", tmp_path)
    assert [call.split()[1] for call in calls if call.startswith("ppow")] == [
        "data",
        "sft",
        "sft",
        "calibrate",
        "bench",
    ]
    assert "--prompts a.jsonl::q --prompts b.jsonl --exclude e.jsonl --exclude f.jsonl" in calls[0]
    assert "initial_drafter.py" in calls[1] and "finish_drafter.py" in calls[4]
    assert "--drafter runs/gemma/init" in calls[2] and "--drafter runs/gemma/sft" in calls[3]
    assert "--suite e.jsonl --suite f.jsonl" in calls[6]
    assert run_recipe(RECIPE / "run.sh", tmp_path, *STAGES[:5]) == []
    assert len(run_recipe(RECIPE / "run.sh", tmp_path, "bench")) == 2  # the stub leaves no cost_model.json
