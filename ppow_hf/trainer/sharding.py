# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The whole drafter on every process, where FSDP2 has sharded the one that is trained."""

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..drafters import DrafterModel


class WholeDrafter:
    """
    A copy of a sharded drafter with whole weights, for rollouts and decoding.

    FSDP gathers weights when a module's `forward` is called by all processes. Drafting calls other methods, and every
    process as often as its own texts need, so each gets a copy; a drafter is small beside its target. Ours.

    Args:
        drafter ([`DrafterModel`]): The drafter before it is sharded.
        target ([`~transformers.PreTrainedModel`]): The target it drafts for.
    """

    def __init__(self, drafter: DrafterModel, target: PreTrainedModel):
        self._class, self._config, self._target = type(drafter), drafter.config, target
        self._generation_config = drafter.generation_config
        self._copy: DrafterModel | None = None

    @torch.no_grad()
    def refresh(self, sharded: DrafterModel) -> DrafterModel:
        """
        Brings the copy up to date. All processes must call it.

        Args:
            sharded ([`DrafterModel`]): The drafter in training, its parameters `DTensor`s.

        Returns:
            [`DrafterModel`]: The copy, in evaluation mode; the same object every time.
        """
        state = {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in sharded.state_dict().items()
        }
        if self._copy is None:
            weight = next(iter(state.values()))
            self._copy = self._class(self._config).to(weight.device).eval().requires_grad_(False)
            self._copy.generation_config = self._generation_config
            self._copy.bind_target(self._target)
        self._copy.load_state_dict(state)
        return self._copy
