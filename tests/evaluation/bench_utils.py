# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A byte-level tokenizer with a chat template, and tiny models whose vocabulary it is."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ppow_hf.evaluation import Example, run_benchmark
from tests.testing_utils import tiny_causal_drafter, tiny_eagle3, tiny_target

VOCAB_SIZE = 260
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
EXAMPLES = [
    Example("a", "short", ("abcabcabcabc",)),
    Example("b", "short", ("to be or not to be",)),
    Example("c", "short", ("one two one two",)),
    Example("d", "talk", ("hello there", "and again")),
    Example("e", "talk", ("what is it",)),
]
# What must not depend on how fast the machine was, or on whether the run was interrupted.
TIMELESS = (
    "suite",
    "method",
    "temperature",
    "dtype",
    "num_prompts",
    "new_tokens",
    "acceptance_length",
    "mean_window",
    "acceptance_rate",
    "verifications",
    "lossless",
    "lossless_float32",
    "acceptance_length_interval",
)


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte, plus `<pad>`, `<eos>`, `<bos>` and `<end>`."""
    special = ["<pad>", "<bos>", "<eos>", "<end>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate([*special, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<end>"],
    )
    fast.chat_template = chat_template
    return fast


def tiny_models(kind: str = "causal") -> tuple[Any, Any]:
    """A target and a drafter for it, in float32."""
    target = tiny_target(vocab_size=VOCAB_SIZE, max_position_embeddings=512)
    return target, tiny_causal_drafter(target, num_layers=3) if kind == "causal" else tiny_eagle3(target)


def bench(output_dir: Path, kind: str = "causal", models: tuple | None = None, **overrides: Any) -> dict[str, Any]:
    """`run_benchmark` on tiny models with small defaults."""
    target, drafter = models or tiny_models(kind)
    arguments: dict[str, Any] = {
        "suites": [EXAMPLES],
        "methods": ["target", "fixed:2", "heuristic"],
        "max_new_tokens": 12,
        "progress": False,
        "plots": False,
        "retries": 0,  # other tests run beside it
        "target_name": "tiny/target",
        "drafter_name": "tiny/drafter",
    }
    arguments.update(overrides)
    return run_benchmark(target, byte_tokenizer(), drafter, output_dir=output_dir, **arguments)
