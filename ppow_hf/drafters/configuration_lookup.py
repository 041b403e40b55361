# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Configuration of the lookup drafter."""

from huggingface_hub.dataclasses import strict

from .configuration_drafter import DrafterConfig


@strict
class LookupDrafterConfig(DrafterConfig):
    r"""
    Configuration of a [`LookupDrafter`]: the vocabulary of its target, and nothing else.
    """

    model_type = "ppow_lookup"
