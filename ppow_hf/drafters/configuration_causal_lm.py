# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Configuration of the causal-LM drafter."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_drafter import DrafterConfig


@strict
class CausalLMDrafterConfig(DrafterConfig):
    r"""
    Configuration of a [`CausalLMDrafter`]: any small causal language model with the target's tokenizer.

    Args:
        causal_lm_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Configuration of the model that drafts. Its vocabulary must be the target's.
        target_hidden_size (`int`, *optional*):
            Width of the target it was made of. Recorded for the check in `bind_target`; this family reads none of the
            target's states.
    """

    model_type = "ppow_causal_lm"

    causal_lm_config: dict[str, Any] | PreTrainedConfig | None = None
    target_hidden_size: int | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.causal_lm_config, dict):
            values = dict(self.causal_lm_config)
            self.causal_lm_config = AutoConfig.for_model(values.pop("model_type"), **values)
        if self.causal_lm_config is not None:
            self.vocab_size = self.causal_lm_config.get_text_config().vocab_size
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if isinstance(self.causal_lm_config, PreTrainedConfig):
            output["causal_lm_config"] = self.causal_lm_config.to_dict()
        return output

    def get_text_config(self, decoder=None, encoder=None):
        # transformers looks for text towers by attribute name; a drafter is its own.
        return self

    def validate_causal_lm(self):
        """Part of `@strict` validation."""
        if self.causal_lm_config is not None and self.draft_vocab_size != self.vocab_size:
            raise ValueError(
                "A causal-LM drafter proposes its whole vocabulary: `draft_vocab_size` must be "
                f"{self.vocab_size}, got {self.draft_vocab_size}."
            )
