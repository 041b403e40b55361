# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The whole drafter on every process, where FSDP2 has sharded the one that is trained."""

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..drafters import DrafterModel


def check_sharding(accelerator: Accelerator) -> None:
    """
    Refuses the ways of sharding that cannot hand out whole weights for drafting.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Of the trainer.

    Raises:
        ValueError: For FSDP version 1 and DeepSpeed's ZeRO stage 3, naming what to set instead.
    """
    if getattr(accelerator.state, "fsdp_plugin", None) is not None and not getattr(accelerator, "is_fsdp2", False):
        raise ValueError(
            "FSDP version 1 cannot hand out whole weights for drafting. Set `fsdp_version: 2` in the accelerate "
            "configuration (`trainers/accelerate/fsdp_8gpu.yaml`)."
        )
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ValueError(
            "DeepSpeed's ZeRO stage 3 parts the drafter's weights, which drafting needs whole. Set `zero_stage: 2` in "
            "the accelerate configuration (`trainers/accelerate/deepspeed_zero2_8gpu.yaml`), or shard with FSDP2."
        )


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
