# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import json
import time

import pytest
import torch
from transformers import LogitsProcessor

from ppow_hf import GenerationTrace, WindowConfig
from ppow_hf.generation import fit_calibration
from ppow_hf.generation.acceptance import FEATURES
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


@pytest.fixture
def traced(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    start = time.perf_counter()
    output = target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=40, do_sample=False)
    return drafter.last_trace, output[0, prompt.shape[1] :].tolist(), time.perf_counter() - start


def test_the_cycles_tell_the_text(traced):
    """The text is the first token, then per cycle the accepted draft tokens and the target's own."""
    trace, text, _ = traced
    told = text[:1]
    for cycle in trace.cycles:
        assert cycle.drafted == len(cycle.tokens) == len(cycle.predicted) == len(cycle.confidence)
        told += cycle.tokens[: cycle.accepted] + ([cycle.bonus] if cycle.bonus is not None else [])
        assert cycle.committed == cycle.accepted + (cycle.bonus is not None)
    assert told == text


def test_figures(traced):
    trace, text, _ = traced
    assert trace.prompt_length == 8 and trace.prefill_tokens == 1
    assert trace.new_tokens == len(text) == 40
    assert trace.verifications == len(trace.cycles)
    assert trace.acceptance_length == pytest.approx(39 / trace.verifications)
    assert trace.mean_window == pytest.approx(sum(c.drafted for c in trace.cycles) / trace.verifications)
    assert trace.acceptance_rate == pytest.approx(trace.accepted / trace.drafted)
    assert 0 < trace.accepted < trace.drafted


def test_outcomes_cover_the_positions_that_were_judged(traced):
    trace, _, _ = traced
    for cycle in trace.cycles[:-1]:
        judged = min(cycle.accepted + 1, cycle.drafted)
        assert cycle.outcomes == [1.0] * cycle.accepted + [0.0] * (judged - cycle.accepted)
    predicted, confidence, outcomes = trace.calibration_pairs()
    assert len(predicted) == len(confidence) == len(outcomes) == sum(len(c.outcomes) for c in trace.cycles)
    assert all(0 < p < 1 for p in predicted) and all(0 < c <= 1 for c in confidence)
    records = trace.calibration_records()
    assert len(records) == len(outcomes)
    assert len(fit_calibration(records)) == len(FEATURES)


def test_seconds_add_up(traced):
    trace, _, wall = traced
    seconds = trace.seconds
    assert set(seconds) == {"prefill", "draft", "verify", "other"}
    assert all(value > 0 for value in seconds.values())
    assert seconds["prefill"] == trace.prefill_seconds
    for phase in ("draft", "verify", "other"):
        assert seconds[phase] == pytest.approx(sum(cycle.seconds[phase] for cycle in trace.cycles))
    assert sum(seconds.values()) <= wall
    # What is not covered is the preparation in `generate` before the first pass.
    spans = [cycle.marks["cycle"][0] for cycle in trace.cycles]
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_a_slow_drafter_shows_as_draft(prompt):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    step = drafter.step
    drafter.step = lambda *args: (time.sleep(0.02), step(*args))[1]
    target.generate(prompt, assistant_model=drafter, window="fixed:4", max_new_tokens=6, do_sample=False)
    seconds = drafter.last_trace.cycles[0].seconds
    assert seconds["draft"] >= 0.06 and max(seconds, key=seconds.get) == "draft"


def test_a_slow_target_shows_as_verify_and_prefill(prompt):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    target.model.register_forward_hook(lambda *args: time.sleep(0.05))
    target.generate(prompt, assistant_model=drafter, window="fixed:4", max_new_tokens=6, do_sample=False)
    assert drafter.last_trace.prefill_seconds >= 0.05
    seconds = drafter.last_trace.cycles[0].seconds
    assert seconds["verify"] >= 0.05 and max(seconds, key=seconds.get) == "verify"


def test_json(traced):
    trace, _, _ = traced
    content = json.loads(json.dumps(trace.to_dict()))
    assert content["acceptance_length"] == trace.acceptance_length
    assert content["window"] == WindowConfig("fixed", size=3).to_dict()
    assert len(content["cycles"]) == trace.verifications
    assert content["cycles"][0]["tokens"] == trace.cycles[0].tokens


def test_sampling_outcomes_are_acceptance_probabilities(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target, num_layers=3)
    torch.manual_seed(0)
    target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=30, do_sample=True)
    outcomes = [o for cycle in drafter.last_trace.cycles for o in cycle.outcomes]
    assert all(0 <= o <= 1 for o in outcomes) and any(0 < o < 1 for o in outcomes)


@pytest.mark.parametrize("metric", ["tv", "kl"])
@pytest.mark.parametrize("reduced", [False, True])
def test_divergence_is_that_of_both_distributions(metric, reduced, prompt):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target, draft_vocab_size=48 if reduced else None)
    window = WindowConfig("fixed", size=2, divergence_metric=metric, divergence_decay=0.0)
    text = target.generate(prompt, assistant_model=drafter, window=window, max_new_tokens=12, do_sample=False)
    first, second = drafter.last_trace.cycles[:2]
    # With no memory, the second cycle's figure is that of the last position judged in the first: computed again here.
    judged = min(first.accepted + 1, first.drafted)
    length = prompt.shape[1] + 1
    with torch.no_grad():
        ids = torch.cat([text[:, :length], torch.tensor([first.tokens])], dim=-1)
        output = target(ids[:, : length + judged - 1], output_hidden_states=True)
        p = output.logits[0, -1].softmax(-1)
        features = torch.cat([output.hidden_states[k] for k in drafter.feature_layer_ids], dim=-1)[:, : length - 1]
        state = drafter.new_state()
        logits = drafter.extend(state, text[:, :length], features)
        for token in first.tokens[: judged - 1]:
            logits = drafter.step(state, torch.tensor([token]))
    q = torch.zeros(96)
    q[drafter.draft_token_ids if reduced else slice(None)] = logits[0].softmax(-1)
    expected = 0.5 * (p - q).abs().sum() if metric == "tv" else (q * (q / p).log()).nan_to_num(0.0).sum()
    assert second.divergence == pytest.approx(float(expected), abs=1e-4)
    assert first.divergence == {"tv": 0.4, "kl": 1.0}[metric]  # nothing verified yet


class Watch(LogitsProcessor):
    """Reads the trace while the text is being written."""

    def __init__(self, drafter):
        self.drafter, self.seen = drafter, []

    def __call__(self, input_ids, scores):
        self.seen.append(self.drafter.last_trace.new_tokens)
        return scores


def test_the_trace_fills_as_the_text_grows(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    watch = Watch(drafter)
    target.generate(
        prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=20, logits_processor=[watch], do_sample=False
    )
    assert watch.seen[0] == 0 and watch.seen == sorted(watch.seen) and watch.seen[-1] > 5


def test_an_empty_trace():
    trace = GenerationTrace()
    assert trace.acceptance_length is None and trace.acceptance_rate is None and trace.mean_window is None
    assert trace.new_tokens == 0 and sum(trace.seconds.values()) == 0
    json.dumps(trace.to_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_seconds_on_a_gpu(prompt):
    target = tiny_target("llama").cuda()
    drafter = tiny_eagle3(target).cuda()
    target.generate(prompt.cuda(), assistant_model=drafter, window="fixed:3", max_new_tokens=20, do_sample=False)
    seconds = drafter.last_trace.seconds
    assert all(value > 0 for value in seconds.values()) and sum(seconds.values()) < 60
