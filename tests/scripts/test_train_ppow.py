# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The PPOW stage from the command line, `ppow train`, on a tiny target."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ppow_hf import AutoDrafter, CostModel, cli
from ppow_hf.data import generate_responses
from ppow_hf.rl import ProximityReward, measured_speedup_reward, speedup_reward, token_agreement_reward
from ppow_hf.scripts.train_ppow import choose_rewards, make_parser
from ppow_hf.trainer import window_experience
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_eagle3
from tests.trainer.ppow_common import ppow_args

CONFIGS = Path(__file__).parents[2] / "trainers" / "configs"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A target, the responses it gave, and a drafter of it."""
    root = tmp_path_factory.mktemp("ppow")
    target, tokenizer = char_target(), char_tokenizer()
    target.save_pretrained(root / "target")
    tokenizer.save_pretrained(root / "target")
    prompts = [f"Say {i}." for i in range(12)]
    generate_responses(target, tokenizer, prompts, root / "responses", max_new_tokens=12, progress=False)
    tiny_eagle3(target, draft_vocab_size=80).save_pretrained(root / "drafter")
    return root


def ppow_train(folders, output, *more, config: str = ""):
    """What `ppow train` leaves: the drafter, what it recorded and what it logged."""
    file = folders / "options.yaml"
    file.write_text(
        f"target: {folders / 'target'}\ndrafter: {folders / 'drafter'}\nresponses: [{folders / 'responses'}]\n"
        "holdout: 3\nuse_cpu: true\nreport_to: none\nmax_steps: 2\nlogging_steps: 1\nwindow_size: 3\n"
        "num_generations: 4\nnum_windows: 2\nper_device_train_batch_size: 4\nlearning_rate: 1.0e-3\n"
        "eval_decode_prompts: 2\neval_decode_new_tokens: 6\neval_window: fixed:3\nsave_strategy: 'no'\n" + config
    )
    arguments = ["train", "--config", str(file), "--output_dir", str(output), *more]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    facts, log = (
        json.loads((output / name).read_text()) for name in ("training_provenance.json", "training_log.json")
    )
    return AutoDrafter.from_pretrained(output), facts, log["log_history"]


def test_a_drafter_is_trained_and_what_was_done_is_recorded(folders, tmp_path):
    before = AutoDrafter.from_pretrained(folders / "drafter").state_dict()
    drafter, facts, log = ppow_train(folders, tmp_path / "out")
    assert any(not torch.equal(value, before[name]) for name, value in drafter.state_dict().items())
    assert facts["stage"] == "ppow" and facts["training"]["cost_ratio"] == 0.12
    assert facts["train_rows"] == 9 and facts["initial"]["acceptance_length"] >= 1
    steps = [entry for entry in log if "reward" in entry]
    assert len(steps) == 2
    assert all("rewards/speedup_reward/mean" in entry for entry in steps)


def test_measured_costs_reach_the_rewards(folders, tmp_path, monkeypatch):
    costs = CostModel(gamma=0.05, verify_curve=[1.0, 1.1, 1.2, 1.4], overhead=0.1)
    monkeypatch.setattr(CostModel, "for_models", lambda target, drafter: costs)
    rewarded, combine = [], window_experience.combine_all_rewards

    def remember(*arguments, **facts):
        rewarded.append(facts)
        return combine(*arguments, **facts)

    monkeypatch.setattr(window_experience, "combine_all_rewards", remember)
    config = "cost_ratio: measured\nrewards: [measured_speedup, proximity]\n"
    _, facts, log = ppow_train(folders, tmp_path / "out", config=config)
    assert facts["training"]["cost_ratio"] == "measured"
    steps = [entry for entry in log if "reward" in entry]
    assert len(steps) == len(rewarded) == 2
    for step, windows in zip(steps, rewarded, strict=True):
        assert windows["cost_ratio"] == 0.05
        by_hand = [
            count / (0.05 * size + costs.verify_curve[size] + 0.1)
            for count, size in zip(windows["committed"], windows["window_size"], strict=True)
        ]
        assert min(windows["committed"]) >= 1, "the target's own token"
        assert step["rewards/measured_speedup_reward/mean"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
        assert "rewards/speedup_reward/mean" not in step


def test_options_override_the_file(folders, tmp_path):
    before = AutoDrafter.from_pretrained(folders / "drafter").state_dict()
    more = ("--rewards", "token_agreement", "--learning_rate", "0", "--max_steps", "1", "--cost_ratio", "0.3")
    drafter, facts, log = ppow_train(folders, tmp_path / "out", *more)
    assert all(torch.equal(value, before[name]) for name, value in drafter.state_dict().items())
    assert facts["training"]["cost_ratio"] == 0.3
    (entry,) = [entry for entry in log if "kl" in entry]
    assert "rewards/token_agreement_reward/mean" in entry and "rewards/proximity_reward/share" not in entry


def test_rewards_by_name(tmp_path):
    args = ppow_args(tmp_path, proximity_eta=0.25, proximity_epsilon=3.0)
    assert choose_rewards(None, args) is None
    names = ["token_agreement", "proximity", "measured_speedup", "speedup"]
    first, proximity, *others = choose_rewards(names, args)
    assert first is token_agreement_reward and others == [measured_speedup_reward, speedup_reward]
    assert isinstance(proximity, ProximityReward) and (proximity.eta, proximity.epsilon) == (0.25, 3.0)
    for wrong in ([], ["speed"], ["speedup", "nearness"]):
        with pytest.raises(ValueError, match="`rewards` must name some of .*'token_agreement'"):
            choose_rewards(wrong, args)


@pytest.mark.parametrize("name", ["ppow_smollm2_cpu", "ppow_8b_8gpu"])
def test_the_configurations_at_hand(name):
    script_args, args = make_parser().parse_args_and_config(["--config", str(CONFIGS / f"{name}.yaml"), "--use_cpu"])
    assert script_args.rewards is None and isinstance(args.cost_ratio, float)
    # A refused window must not be worth more than one accepted token.
    assert args.proximity_eta < 1 / (1 + args.cost_ratio)
