# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Prompts, the target's own responses to them, and tokenised sets to train on."""

from .prompts import Prompt, load_prompts, select_prompts
from .responses import generate_responses
from .throughput import measure_throughput
from .tokenized import (
    DrafterDataCollator,
    build_draft_vocabulary,
    count_response_tokens,
    draft_vocabulary_coverage,
    import_responses,
    load_responses,
    special_token_ids,
    split_holdout,
)

__all__ = [
    "DrafterDataCollator",
    "Prompt",
    "build_draft_vocabulary",
    "count_response_tokens",
    "draft_vocabulary_coverage",
    "generate_responses",
    "import_responses",
    "load_prompts",
    "load_responses",
    "measure_throughput",
    "select_prompts",
    "special_token_ids",
    "split_holdout",
]
