# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Whether a tokenizer is the target's own."""

from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..end_tokens import eos_token_ids_of

logger = logging.get_logger(__name__)

# Vocabularies are padded by a few percent at most; tokenizers know a few more tokens than some text models (Gemma 3's
# has one for images).
_SHARE_KNOWN, _SHARE_BEYOND = 0.9, 0.01


def check_tokenizer(processing_class: Any, target: PreTrainedModel) -> None:
    """
    Looks for signs that a tokenizer belongs to another model (ours).

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer.
        target ([`~transformers.PreTrainedModel`]): The target.

    Raises:
        ValueError: If it knows many more tokens than the target, or pads with one the target does not know.
    """
    if processing_class is None or not hasattr(processing_class, "__len__"):
        return
    tokens, vocab_size = len(processing_class), target.config.get_text_config().vocab_size
    if tokens > vocab_size * (1 + _SHARE_BEYOND):
        raise ValueError(
            f"`processing_class` knows {tokens} tokens, but the target's vocabulary has {vocab_size}: it belongs to "
            "another model. Pass the target's own tokenizer."
        )
    pad_token_id = getattr(processing_class, "pad_token_id", None)
    if pad_token_id is not None and pad_token_id >= vocab_size:
        raise ValueError(
            f"`processing_class` pads with token {pad_token_id}, but the target's vocabulary has {vocab_size}. Set "
            "`processing_class.pad_token` to a token the target knows, `processing_class.eos_token` for example."
        )
    signs = []
    if tokens < vocab_size * _SHARE_KNOWN:
        signs.append(f"it knows {tokens} tokens, the target {vocab_size}")
    ends = eos_token_ids_of(target.generation_config) | eos_token_ids_of(target.config.get_text_config())
    eos_token_id = getattr(processing_class, "eos_token_id", None)
    if ends and eos_token_id is not None and eos_token_id not in ends:
        signs.append(f"its end of text is token {eos_token_id}, the target's {' or '.join(map(str, sorted(ends)))}")
    if signs:
        logger.warning(
            f"`processing_class` may belong to another model than `target_model`: {'; '.join(signs)}. Pass the "
            "target's own tokenizer."
        )
