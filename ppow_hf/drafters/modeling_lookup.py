# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A drafter without weights: it proposes what followed the last time the text read like this."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from .configuration_lookup import LookupDrafterConfig
from .drafter_state import DrafterState
from .loading import check_target
from .modeling_drafter import DrafterModel


@dataclass
class LookupState(DrafterState):
    """
    Args:
        rows (`list[LookupIndex]`): The text of every row.
        window (`list[list[int]]`): Draft tokens fed since the last commit, per row.
    """

    rows: list[Any] = field(default_factory=list)
    window: list[list[int]] = field(default_factory=list)

    def drop_draft(self, keep: int = 0) -> None:
        super().drop_draft(keep)
        for index, window in zip(self.rows, self.window, strict=True):
            index.extend(window[:keep])
        self.window = [[] for _ in self.rows]


class LookupDrafter(DrafterModel):
    """
    Prompt lookup as a drafter: any target, no training, no weights.

    Its generation config asks for lookup's own windows (`WindowConfig(proposals="lookup")`), which verify as many
    looked-up tokens as pay. Under any other window it is a drafter like the others, whose distributions put everything
    on the looked-up token.

    Example:

    ```python
    >>> from ppow_hf import LookupDrafter

    >>> drafter = LookupDrafter.from_target(target)
    >>> output = target.generate(**inputs, assistant_model=drafter)
    ```
    """

    config_class = LookupDrafterConfig
    proposes_by_lookup = True

    def __init__(self, config: LookupDrafterConfig):
        super().__init__(config)
        # Imported here: drafters know nothing of generation, they only lead to it.
        from ..generation import WindowConfig

        # One number that carries device and dtype, and makes a saved drafter a complete checkpoint.
        self.register_buffer("anchor", torch.zeros(()))
        self.generation_config.window = WindowConfig(proposals="lookup")
        self.post_init()

    @classmethod
    def from_target(cls, target: PreTrainedModel) -> "LookupDrafter":
        """
        Args:
            target ([`~transformers.PreTrainedModel`]): A decoder-only causal LM.

        Returns:
            [`LookupDrafter`]: On the target's device, in its dtype.

        Raises:
            ValueError: If the target cannot have a drafter.
        """
        check_target(target)
        text_config = target.config.get_text_config()
        config = LookupDrafterConfig(
            vocab_size=text_config.vocab_size,
            target_name_or_path=target.config._name_or_path or None,
            target_model_type=text_config.model_type,
            target_num_hidden_layers=text_config.num_hidden_layers,
            bos_token_id=text_config.bos_token_id,
            eos_token_id=text_config.eos_token_id,
            pad_token_id=text_config.pad_token_id,
        )
        return cls(config).to(device=target.device, dtype=target.dtype).eval()

    @property
    def device(self) -> torch.device:
        """`torch.device`: Where it is, though it has no parameters."""
        return self.anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """`torch.dtype`: What it was loaded or moved to."""
        return self.anchor.dtype

    def _vocabulary_remedy(self, vocab_size: int) -> str:
        return "Build one for this target: `LookupDrafter.from_target(target)`."

    def _check_recorded_target(self, target: PreTrainedModel) -> None:
        # It was trained for none: what it proposes depends on the text alone.
        pass

    # ---- decoding --------------------------------------------------------------------------------------------------

    def new_state(self, batch_size: int = 1) -> LookupState:
        from ..generation.lookup import LookupIndex

        rows = [LookupIndex() for _ in range(batch_size)]
        return LookupState(batch_size=batch_size, rows=rows, window=[[] for _ in rows])

    def extend(
        self,
        state: LookupState,
        input_ids: torch.LongTensor,
        features: torch.Tensor | None = None,
        num_accepted: int = 0,
    ) -> torch.Tensor:
        for index, tokens in zip(state.rows, input_ids.tolist(), strict=True):
            index.extend(tokens)
        state.window = [[] for _ in state.rows]
        state.committed += input_ids.shape[1]
        state.drafted = 0
        return self._logits(state)

    def step(self, state: LookupState, token_ids: torch.LongTensor) -> torch.Tensor:
        for window, token in zip(state.window, token_ids.tolist(), strict=True):
            window.append(token)
        state.drafted += 1
        return self._logits(state)

    def _logits(self, state: LookupState) -> torch.Tensor:
        # Where lookup knows nothing, any token is as good as another.
        logits = torch.zeros((len(state.rows), self.config.vocab_size), device=self.device)
        for row, (index, window) in enumerate(zip(state.rows, state.window, strict=True)):
            proposal = index.propose(len(window) + 1)
            if proposal and proposal[:-1] == window:
                logits[row] = -torch.inf
                logits[row, proposal[-1]] = 0.0
        return logits
