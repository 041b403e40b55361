# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A tokenizer of single characters with a chat template, and a tiny target that speaks it."""

import string

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.testing_utils import tiny_target

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Shows earlier answers in another form than they were written in, as templates that drop the reasoning do.
REWRITING_TEMPLATE = CHAT_TEMPLATE.replace("m['content']", "(m['content'] if m['role'] != 'assistant' else 'said')")
EOS = 2


def char_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    characters = sorted(set(string.printable) - set("\r\x0b\x0c\t"))
    vocabulary = {token: index for index, token in enumerate(specials + characters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<|endoftext|>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=specials[0], bos_token=specials[1], eos_token=specials[2]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def char_target(seed: int = 0, vocab_size: int = 104, **overrides) -> PreTrainedModel:
    target = tiny_target(
        vocab_size=vocab_size, seed=seed, max_position_embeddings=512, num_hidden_layers=2, **overrides
    )
    target.generation_config.eos_token_id = EOS
    return target
