# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import copy
import gc

import pytest
import torch
from transformers import Cache, GenerationConfig, GenerationMixin

import ppow_hf
from ppow_hf.generation import attach, attached, detach, install_hook, is_hook_installed, uninstall_hook
from ppow_hf.generation.hook import check_upstream
from tests.data.data_testing_utils import char_target, char_tokenizer
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target


@pytest.fixture
def without_hook():
    uninstall_hook()
    yield
    install_hook()


def test_import_installs_the_hook_once():
    assert is_hook_installed()
    method = GenerationMixin._get_candidate_generator
    install_hook()
    install_hook()
    assert GenerationMixin._get_candidate_generator is method


def test_uninstall_restores_the_original(without_hook, prompt):
    assert not is_hook_installed()
    assert not hasattr(GenerationConfig, "window")
    assert GenerationMixin._get_candidate_generator.__module__ == "transformers.generation.utils"
    target = tiny_target("llama")
    with pytest.raises(ValueError, match="window"):  # transformers' own refusal of unknown arguments
        target.generate(prompt, window="fixed:2", max_new_tokens=2)


def test_without_the_hook_a_drafter_says_what_to_do(without_hook, prompt):
    target = tiny_target("llama")
    for drafter in (tiny_eagle3(target), tiny_causal_drafter(target)):
        with pytest.raises(RuntimeError, match="`ppow_hf.install_hook\\(\\)`, or `ppow_hf.attach"):
            target.generate(prompt, assistant_model=drafter, max_new_tokens=4)


def test_other_assistants_are_untouched(prompt):
    target, assistant = tiny_target("llama"), tiny_target("llama", seed=1, num_hidden_layers=2)
    hooked = target.generate(prompt, assistant_model=assistant, max_new_tokens=20, do_sample=False)
    lookup = target.generate(prompt, prompt_lookup_num_tokens=3, max_new_tokens=20, do_sample=False)
    uninstall_hook()
    try:
        original = target.generate(prompt, assistant_model=assistant, max_new_tokens=20, do_sample=False)
        original_lookup = target.generate(prompt, prompt_lookup_num_tokens=3, max_new_tokens=20, do_sample=False)
    finally:
        install_hook()
    assert torch.equal(hooked, original) and torch.equal(lookup, original_lookup)
    assert not hasattr(assistant, "last_trace")


@pytest.mark.parametrize("do_sample", [False, True])
def test_assistants_of_other_kinds_are_untouched(do_sample, prompt):
    """Early exit, and an assistant with a vocabulary and a tokenizer of its own, whose text is decoded and read."""
    target, assistant = char_target(), char_target(seed=1, vocab_size=120)
    tokenizers = {"tokenizer": char_tokenizer(), "assistant_tokenizer": char_tokenizer()}
    calls = [{"assistant_early_exit": 1}]
    if not do_sample:  # transformers' own fails there, where the two tokenizers are alike
        calls.append({"assistant_model": assistant, **tokenizers})

    def texts():
        found = []
        for call in calls:
            torch.manual_seed(11)
            found.append(target.generate(prompt, do_sample=do_sample, max_new_tokens=16, **call).tolist())
        return found

    hooked = texts()
    attach(target)
    both = texts()
    detach(target)
    uninstall_hook()
    try:
        original = texts()
    finally:
        install_hook()
    assert hooked == both == original
    assert all(len(text[0]) > prompt.shape[1] for text in original)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"repetition_penalty": 1.3}])
def test_other_assistants_sample_as_without_the_hook(options, prompt):
    target, assistant = tiny_target("llama"), tiny_target("llama", seed=1, num_hidden_layers=2)
    calls = ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}, {})

    def texts():
        found = []
        for call in calls:
            torch.manual_seed(11)
            found.append(target.generate(prompt, do_sample=True, max_new_tokens=24, **call, **options).tolist())
        return found

    hooked = texts()
    attach(target)
    both = texts()
    uninstall_hook()
    try:
        alone = texts()
        detach(target)
        original = texts()
    finally:
        install_hook()
    assert hooked == both == alone == original


def test_attach_serves_one_target_without_the_hook(without_hook, prompt):
    target, other = tiny_target("llama"), tiny_target("llama", seed=3)
    drafter = tiny_eagle3(target)
    plain = target.generate(prompt, max_new_tokens=20, do_sample=False)
    assert attach(target) is target
    attach(target)
    output = target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=20, do_sample=False)
    assert torch.equal(output, plain) and drafter.last_trace.window["policy"] == "fixed"
    assert "_get_candidate_generator" not in other.__dict__
    assert "_get_candidate_generator" not in type(target).__dict__
    detach(target)
    assert target.__dict__.keys() == other.__dict__.keys()
    assert "window" not in target.generation_config.to_dict()
    with pytest.raises(Exception):  # noqa: B017  transformers' own assisted generation cannot use a drafter
        target.generate(prompt, assistant_model=drafter, max_new_tokens=4)


def test_attached_is_limited_to_its_block(without_hook, prompt):
    target = tiny_target("llama")
    with attached(target):
        assert "_get_candidate_generator" in target.__dict__
        with attached(target):
            pass
        assert "_get_candidate_generator" in target.__dict__
    assert "_get_candidate_generator" not in target.__dict__


def test_an_attached_target_outlives_the_global_hook(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)
    options = {"max_new_tokens": 12, "do_sample": False}
    attach(target)
    try:
        uninstall_hook()
        text = target.generate(prompt, assistant_model=drafter, window="fixed:3", **options)
        assert drafter.last_trace.window["size"] == 3
        assert torch.equal(text, target.generate(prompt, **options))
        detach(target)
        assert "window" not in vars(target.generation_config)
    finally:
        install_hook()


def test_a_copy_of_an_attached_target_is_attached_itself(without_hook, prompt):
    target = attach(tiny_target("llama"))
    other = copy.deepcopy(target)
    drafter = tiny_causal_drafter(target)
    assert other.generate.__self__ is other
    detach(target)
    options = {"max_new_tokens": 12, "do_sample": False}
    text = other.generate(prompt, assistant_model=drafter, window="fixed:3", **options)
    assert drafter.last_trace.drafted > 0 and torch.equal(text, target.generate(prompt, **options))


def test_attached_target_still_serves_other_assistants(without_hook, prompt):
    target, assistant = tiny_target("llama"), tiny_target("llama", seed=1, num_hidden_layers=2)
    plain = target.generate(prompt, max_new_tokens=12, do_sample=False)
    with attached(target):
        output = target.generate(prompt, assistant_model=assistant, max_new_tokens=12, do_sample=False)
    assert torch.equal(output, plain)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (GenerationMixin, "_get_candidate_generator"),
        (GenerationMixin, "_update_model_kwargs_for_generation"),
        (GenerationMixin, "_extract_generation_mode_kwargs"),
        (GenerationMixin, "_get_stopping_criteria"),
        (Cache, "activate_past_recording"),
    ],
)
def test_a_moved_upstream_is_named(monkeypatch, owner, name):
    monkeypatch.delattr(owner, name)
    with pytest.raises(RuntimeError, match=f"{owner.__name__}.{name}` is gone"):
        check_upstream()


def test_a_moved_function_is_named(monkeypatch):
    monkeypatch.delattr("transformers.generation.utils._speculative_sampling")
    with pytest.raises(RuntimeError, match="_speculative_sampling` is gone"):
        check_upstream()


def test_every_sort_of_call_of_an_attached_target(without_hook, prompt):
    """Positional arguments, sampling, processors, embeddings, errors: `generate` of one target is `generate`."""
    target = attach(tiny_target("llama"))
    drafter = tiny_causal_drafter(target, num_layers=4)
    plain = target.generate(prompt, max_new_tokens=16, do_sample=False)
    config = copy.deepcopy(target.generation_config)
    config.max_new_tokens, config.do_sample, config.window = 16, False, "fixed:3"
    assert torch.equal(target.generate(prompt, config, None, None, None, None, drafter), plain)
    assert drafter.last_trace.window["size"] == 3
    for options in ({"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 1}):
        options = {"max_new_tokens": 16, "do_sample": False, **options}
        output = target.generate(prompt, assistant_model=drafter, window="fixed:4", **options)
        assert torch.equal(output, target.generate(prompt, **options)) and drafter.last_trace.accepted > 0
    embeds = target.get_input_embeddings()(prompt).detach()
    output = target.generate(
        inputs_embeds=embeds, assistant_model=drafter, window="fixed:3", max_new_tokens=16, do_sample=False
    )
    assert output.tolist() == plain[:, prompt.shape[1] :].tolist()
    with pytest.raises(ValueError, match="`num_beams`=2"):
        target.generate(prompt, assistant_model=drafter, num_beams=2, max_new_tokens=4)
    with pytest.raises(ValueError, match="`window` was given, but"):
        target.generate(prompt, window="fixed:3", max_new_tokens=4)
    assert torch.equal(target.generate(prompt, max_new_tokens=16, do_sample=False), plain)


def test_a_changed_signature_is_named(monkeypatch):
    monkeypatch.setattr(GenerationMixin, "_validate_generation_mode", lambda self, mode: None)
    with pytest.raises(RuntimeError, match=r"no longer takes \['generation_mode', "):
        check_upstream()


def test_nothing_stays_on_the_target(prompt):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    before = len(target._forward_hooks)
    target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=10)
    gc.collect()
    assert len(target._forward_hooks) == before
    copy.deepcopy(target)


def test_nothing_stays_on_the_target_after_an_error(prompt):
    target = tiny_target("llama")
    drafter = tiny_causal_drafter(target)

    def explode(state, token_ids):
        raise KeyboardInterrupt

    drafter.step = explode
    try:
        target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=10)
    except KeyboardInterrupt:
        pass
    gc.collect()
    assert not target._forward_hooks
    plain = target.generate(prompt, max_new_tokens=10, do_sample=False)
    del drafter.step
    output = target.generate(prompt, assistant_model=drafter, window="fixed:3", max_new_tokens=10, do_sample=False)
    assert torch.equal(output, plain)


def test_public_names():
    assert ppow_hf.attach is attach and ppow_hf.install_hook is install_hook


def test_a_compiled_target_is_attached_where_its_generate_leads(without_hook):
    target = tiny_target()
    compiled = torch.compile(target, backend="eager")
    drafter = tiny_causal_drafter(target)
    ids = torch.tensor([[3, 4, 5]])
    with attached(compiled):
        output = compiled.generate(ids, assistant_model=drafter, window="fixed:2", max_new_tokens=8, do_sample=False)
        assert drafter.last_trace.verifications > 0
    assert "_get_candidate_generator" not in target.__dict__
    assert torch.equal(output, target.generate(ids, max_new_tokens=8, do_sample=False))
