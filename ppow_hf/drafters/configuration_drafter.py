# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What every drafter's configuration holds: which target it was built for, and its vocabulary."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class DrafterConfig(PreTrainedConfig):
    r"""
    Base of all drafter configurations.

    Args:
        vocab_size (`int`, *optional*, defaults to 32000):
            Logit width of the target (its padding rows included). Drafts are verified by exactly this target
            vocabulary.
        draft_vocab_size (`int`, *optional*):
            Number of target tokens the drafter can propose. Defaults to `vocab_size`.
        target_name_or_path (`str`, *optional*):
            The target this drafter was trained for. Recorded for the model card and for the check in `bind_target`.
        target_model_type (`str`, *optional*):
            `model_type` of that target.
        target_num_hidden_layers (`int`, *optional*):
            Number of layers of that target.
    """

    model_type = "ppow_drafter"

    vocab_size: int = 32000
    draft_vocab_size: int | None = None
    target_name_or_path: str | None = None
    target_model_type: str | None = None
    target_num_hidden_layers: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.draft_vocab_size is None:
            self.draft_vocab_size = self.vocab_size
        super().__post_init__(**kwargs)

    def validate_draft_vocabulary(self):
        """Part of `@strict` validation."""
        if not 0 < self.draft_vocab_size <= self.vocab_size:
            raise ValueError(
                f"`draft_vocab_size` must be between 1 and `vocab_size` ({self.vocab_size}), got "
                f"{self.draft_vocab_size}."
            )
