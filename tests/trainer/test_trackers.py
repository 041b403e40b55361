# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a training logs reaches the trackers that `report_to` names, in a form that they take."""

import pytest
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, rewrite_logs

from tests.trainer.common import sft_trainer, token_rows
from tests.trainer.ppow_common import ppow_trainer

PPOW_METRICS = {
    "loss", "learning_rate", "grad_norm", "reward", "reward_std", "flat_groups", "accepted_length",
    "share_none_accepted", "policy_loss", "kl", "clip_ratio", "entropy", "log_prob_drift", "skipped_rows", "adaw",
    "criticality/chosen", "criticality/all", "windows_per_second", "target_tokens", "rewards/speedup_reward/mean",
    "acceptance/position_0", "acceptance/position_2", "seconds/rollout", "seconds/verification",
}  # fmt: skip
SFT_METRICS = {
    "loss", "learning_rate", "grad_norm", "simulated_acceptance_length", "step_0/loss", "step_2/accuracy",
    "step_1/expected_acceptance", "target_tokens",
}  # fmt: skip
DECODED = {"eval_acceptance_length", "eval_acceptance_rate", "eval_mean_window", "eval_skipped_prompts"}


class Tracker(TrainerCallback):
    """A tracker as transformers has them: built without arguments, set up when training begins, handed every log."""

    built: list["Tracker"]

    def __init__(self):
        self.options, self.logged = {}, []
        self.built.append(self)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.options = args.to_sanitized_dict()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logged.append((state.global_step, dict(logs)))


@pytest.fixture
def trackers(monkeypatch):
    """All trackers that were built under the name "recorder"."""
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "recorder", Tracker)
    monkeypatch.setattr(Tracker, "built", [], raising=False)
    return Tracker.built


@pytest.mark.parametrize(
    ("make", "metrics", "decoded"),
    [(ppow_trainer, PPOW_METRICS, DECODED), (sft_trainer, SFT_METRICS, DECODED)],
    ids=["ppow", "sft"],
)
def test_all_figures_reach_a_tracker(tmp_path, trackers, make, metrics, decoded):
    trainer = make(
        tmp_path, eval_dataset=token_rows(4, seed=1), report_to="recorder", eval_on_start=True, max_steps=3,
        eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    trainer.train()
    (tracker,) = trackers
    assert tracker.options["max_steps"] == 3 and tracker.options["eval_window"] == "fixed:3"
    assert [step for step, logs in tracker.logged if "learning_rate" in logs] == [1, 2, 3]
    seen = set().union(*(logs for _, logs in tracker.logged))
    assert metrics | decoded <= seen, (metrics | decoded) - seen
    measured = {step: logs["eval_acceptance_length"] for step, logs in tracker.logged if decoded <= logs.keys()}
    assert measured.keys() == {0, 2, 3} and min(measured.values()) >= 1.0
    # What is not a number they drop, and names with a prefix of their own they put under it.
    assert all(isinstance(value, int | float) for _, logs in tracker.logged for value in logs.values())
    shown = rewrite_logs(dict.fromkeys(seen, 0.0))
    assert len(shown) == len(seen) and {f"train/{name}" for name in metrics} <= shown.keys()


def test_without_a_tracker_none_is_built(tmp_path, trackers):
    sft_trainer(tmp_path, max_steps=1).train()
    assert trackers == []
