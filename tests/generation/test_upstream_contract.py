# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What generation relies on in transformers. A failure here means upstream moved: read `generation/hook.py` first."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import utils as generation_utils
from transformers.generation.candidate_generator import CandidateGenerator

from ppow_hf.generation.hook import _MARKER, check_upstream
from tests.testing_utils import tiny_target


def upstream(name):
    method = getattr(GenerationMixin, name)
    return getattr(method, _MARKER, method)


def test_check_passes_with_the_installed_version():
    check_upstream()


def test_candidate_generator_is_chosen_by_keyword():
    parameters = inspect.signature(upstream("_get_candidate_generator")).parameters
    wanted = {"generation_config", "input_ids", "logits_processor", "model_kwargs", "assistant_model"}
    assert wanted <= set(parameters)
    source = inspect.getsource(GenerationMixin._assisted_decoding)
    assert "self._get_candidate_generator(" in source
    assert "assistant_model=assistant_model" in source


def test_no_target_class_overrides_what_is_hooked():
    for name in ("_get_candidate_generator", "_validate_generation_mode", "_assisted_decoding"):
        for family in ("LlamaForCausalLM", "Gemma3ForCausalLM", "Qwen3MoeForCausalLM", "GPTNeoXForCausalLM"):
            assert getattr(getattr(transformers, family), name) is getattr(GenerationMixin, name)
    # And none of the several hundred others: by their sources, for importing them takes minutes.
    sources = list((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"))
    assert len(sources) > 300
    hooked = re.compile(r"def (_get_candidate_generator|_validate_generation_mode|_assisted_decoding)\b")
    assert [source.name for source in sources if hooked.search(source.read_text(encoding="utf-8"))] == []


def test_what_the_loop_of_chains_calls():
    parameters = list(inspect.signature(generation_utils._speculative_sampling).parameters)
    assert parameters[:4] == ["candidate_input_ids", "candidate_logits", "candidate_length", "new_logits"]
    assert "assistant_ensemble_weight" in parameters


def test_what_a_function_of_custom_generate_is_not_given():
    """Why an attached target passes its loop the arguments itself."""
    target, given = tiny_target("llama"), {"tokenizer": "mine", "assistant_model": None, "streamer": "too"}
    mode = target._extract_generation_mode_kwargs(None, dict(given), None, "assistant", "streamer")
    assert mode == {"tokenizer": "mine", "assistant_model": "assistant", "streamer": "streamer", "synced_gpus": False}
    function = lambda model, input_ids, **prepared: input_ids  # noqa: E731
    assert target._extract_generation_mode_kwargs(function, dict(given), None, "assistant", "streamer") == {}


def test_candidate_generator_interface():
    assert CandidateGenerator.requires_model_outputs is False
    assert list(inspect.signature(CandidateGenerator.update_candidate_strategy).parameters)[1:] == [
        "input_ids",
        "scores",
        "num_matches",
    ]


class Recorder(CandidateGenerator):
    """Drafts two fixed tokens per round and records how transformers calls it."""

    requires_model_outputs = True

    def __init__(self):
        self.calls, self.updates, self.reads = [], [], 0

    @property
    def model_kwargs_overrides(self):
        self.reads += 1
        return {"output_hidden_states": [1, 3]}

    def get_candidates(self, input_ids, **kwargs):
        self.calls.append({"length": input_ids.shape[1], **kwargs})
        if kwargs["is_first_iteration"]:
            return input_ids, None
        return torch.cat([input_ids, torch.tensor([[7, 7]])], dim=-1), None

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        self.updates.append((input_ids.shape[1], tuple(scores.shape), int(num_matches)))


class Assistant:
    def __init__(self, target, recorder):
        self.config, self.recorder = target.config, recorder

    def make_candidate_generator(self, target, **kwargs):
        self.kwargs = kwargs
        return self.recorder

    def bind_target(self, target):
        pass


@pytest.fixture
def recorded(prompt):
    target, recorder = tiny_target("llama"), Recorder()
    assistant = Assistant(target, recorder)
    output = target.generate(prompt, assistant_model=assistant, max_new_tokens=9, do_sample=False)
    return recorder, assistant, prompt, output


def test_calls_of_one_generation(recorded):
    recorder, assistant, prompt, _ = recorded
    assert set(assistant.kwargs) == {"generation_config", "logits_processor", "input_ids", "model_kwargs"}
    first, *rest = recorder.calls
    assert first["is_first_iteration"] and first["model_outputs"] is None
    assert all(not call["is_first_iteration"] for call in rest)
    assert recorder.reads == len(recorder.calls) == len(recorder.updates)
    for call, (length, _, matches) in zip(rest, recorder.updates, strict=False):
        assert call["length"] == length and call["n_last_matches"] == matches


def test_hidden_states_are_a_full_tuple_with_holes_and_aligned_rows(recorded):
    recorder, _, prompt, _ = recorded
    first, second = recorder.calls[1]["model_outputs"], recorder.calls[2]["model_outputs"]
    assert len(first.hidden_states) == 5
    assert [state is None for state in first.hidden_states] == [True, False, True, False, True]
    assert first.hidden_states[1].shape[1] == prompt.shape[1]
    assert second.hidden_states[1].shape[1] == 3  # the last committed token and two drafts


def test_scores_cover_every_draft_and_the_bonus(recorded):
    recorder = recorded[0]
    assert recorder.updates[0][1] == (1, 1, 96)
    assert recorder.updates[1][1] == (1, 3, 96)


def test_text_length_is_exact(recorded):
    _, _, prompt, output = recorded
    assert output.shape[1] == prompt.shape[1] + 9


def test_a_class_attribute_makes_a_generate_argument(prompt):
    target = tiny_target("llama")
    config, rest = target._prepare_generation_config(None, window="fixed:3", max_new_tokens=2)
    assert config.window == "fixed:3" and rest == {}
    config, _ = target._prepare_generation_config(None, max_new_tokens=2)
    assert config.window is None
    assert "window" not in GenerationConfig().to_dict()


def test_custom_generate_gets_its_own_arguments_but_no_streamer(prompt):
    seen = {}

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, drafter=None, **kwargs):
        seen.update(drafter=drafter, kwargs=set(kwargs))
        return input_ids

    target = tiny_target("llama")
    target.generate(prompt, custom_generate=decode, drafter="mine", max_new_tokens=2)
    assert seen["drafter"] == "mine"
    assert {"past_key_values", "use_cache"} <= seen["kwargs"] and "streamer" not in seen["kwargs"]
