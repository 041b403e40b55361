# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""How many positions models say that they have, and behind which of them they cannot go."""

import sys

import pytest
from transformers import AutoModelForCausalLM, BloomConfig

from ppow_hf import CausalLMDrafter
from ppow_hf.trainer.positions import learned_positions, longest_text, positions_of
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target
from tests.trainer.common import token_rows
from tests.trainer.ppow_common import ppow_trainer


def short_target(family: str, positions: int):
    """GPT-2 has a table of positions; those of Llama are rotary."""
    return tiny_target(family, **{"n_positions" if family == "gpt2" else "max_position_embeddings": positions})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_positions(family):
    target, short = tiny_target(family), short_target(family, 20)
    assert positions_of(target) == 256 and positions_of(short) == 20
    assert positions_of(tiny_causal_drafter(short)) == positions_of(tiny_eagle3(short)) == 20
    wrapped = CausalLMDrafter.from_causal_lm(short)
    assert positions_of(wrapped) == 20


def test_a_model_that_does_not_say_has_no_limit():
    """BLOOM's positions are distances."""
    model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4))
    assert positions_of(model) is None and positions_of(CausalLMDrafter.from_causal_lm(model)) is None


def test_a_table_of_learned_positions_ends():
    learned, rotary = short_target("gpt2", 20), short_target("llama", 20)
    assert learned_positions(learned) == 20 and learned_positions(rotary) is None
    drafters = [tiny_eagle3(learned), tiny_causal_drafter(rotary), CausalLMDrafter.from_causal_lm(learned)]
    assert [learned_positions(drafter) for drafter in drafters] == [None, None, 20]
    # The last token of a text is not read.
    assert longest_text(learned, tiny_eagle3(learned)) == longest_text(rotary, drafters[2]) == 21
    assert longest_text(rotary, tiny_eagle3(rotary)) == sys.maxsize


def test_frequencies_that_change_end_what_one_pass_can_verify():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 32, "factor": 8.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    assert positions_of(tiny_target("llama", rope_parameters=rope)) == 32
    with pytest.raises(ValueError, match="32"):
        ppow_trainer("unused", target=tiny_target("llama", rope_parameters=rope), dataset=token_rows(4, length=40))
