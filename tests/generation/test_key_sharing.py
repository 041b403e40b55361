# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
import os
import threading

import pytest
import torch
from transformers.integrations import sdpa_attention

from ppow_hf.generation.key_sharing import _SWITCH, shared_keys
from tests.testing_utils import tiny_eagle3, tiny_target


@pytest.fixture
def copies(monkeypatch):
    """Counts copies of keys and values that transformers makes."""
    monkeypatch.delenv(_SWITCH, raising=False)
    counted = []
    original = sdpa_attention.repeat_kv
    monkeypatch.setattr(sdpa_attention, "repeat_kv", lambda *args: (counted.append(1), original(*args))[1])
    return counted


def several_tokens(target):
    with torch.no_grad():
        cache = target(torch.arange(1, 9)[None], use_cache=True).past_key_values
        return target(torch.arange(3, 7)[None], past_key_values=cache).logits


def test_upstream_copies_and_then_does_not(copies):
    target = tiny_target("llama")
    assert target.config.num_attention_heads > target.config.num_key_value_heads
    plain = several_tokens(target)
    assert copies, "transformers no longer copies shared keys: `shared_keys` can go"
    copies.clear()
    with shared_keys(target.device):
        shared = several_tokens(target)
    assert not copies, "transformers has moved the switch that `shared_keys` relies on"
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", ["fixed:3", "tree:4", "lookup"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_decoding_makes_no_copies(copies, window, do_sample):
    target = tiny_target("llama")
    drafter = tiny_eagle3(target)
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    call = {"assistant_model": drafter, "window": window, "max_new_tokens": 12, "do_sample": do_sample}
    target.generate(ids, **call)  # costs are measured here, and plain passes are made to compare with
    copies.clear()
    target.generate(ids, **call)
    assert drafter.last_trace.verifications > 1 and not copies
    assert _SWITCH not in os.environ


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv(_SWITCH, "0")
    with shared_keys("cpu"):
        assert os.environ[_SWITCH] == "0"
    assert os.environ[_SWITCH] == "0"


def test_other_devices_are_left_alone(monkeypatch):
    monkeypatch.delenv(_SWITCH, raising=False)
    with shared_keys("cuda"):
        assert _SWITCH not in os.environ


def test_calls_that_overlap_end_when_the_last_one_does(monkeypatch):
    monkeypatch.delenv(_SWITCH, raising=False)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with shared_keys("cpu"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with pytest.raises(RuntimeError, match="interrupted"), shared_keys("cpu"):
        thread.start()
        assert inside.wait(10)
        raise RuntimeError("interrupted")
    assert os.environ[_SWITCH] == "1"
    leave.set()
    thread.join()
    assert _SWITCH not in os.environ
