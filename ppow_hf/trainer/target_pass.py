# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One pass of the frozen target over a training batch: the features a drafter reads and the distributions it learns.

On the fly by default. With a cache folder, features and final hidden states of every row are kept on disk after the
first epoch, and the target's layers are not run again.
"""

import torch
from transformers import PreTrainedModel

from ..drafters import DrafterModel, gather_features
from ..drafters.logits_head import logits_head
from .acceptance_losses import TeacherRows
from .feature_cache import FeatureCache


class TargetPass:
    """
    Runs a frozen target for a drafter.

    Args:
        target ([`~transformers.PreTrainedModel`]): Decoder-only causal LM. It is never trained nor registered as a
            submodule of anything.
        drafter ([`DrafterModel`]): Says which features are needed and which tokens can be drafted.
        cache (`FeatureCache`, *optional*): Where hidden states are kept between epochs.
    """

    def __init__(self, target: PreTrainedModel, drafter: DrafterModel, cache: FeatureCache | None = None):
        self.target = target.eval().requires_grad_(False)
        self.layer_ids = drafter.feature_layer_ids
        self.draft_token_ids = drafter.draft_token_ids
        self.cache = cache

    @torch.no_grad()
    def __call__(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        positions: torch.Tensor,
        row_ids: list[int] | None = None,
    ) -> tuple[torch.Tensor | None, TeacherRows]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): Token ids, padded on the right.
            attention_mask (`torch.Tensor` of shape `(batch, length)`): 1 for tokens.
            positions (`torch.Tensor` of shape `(batch, length)`, bool): Positions whose next-token distribution is
                wanted.
            row_ids (`list[int]`, *optional*): Dataset rows, needed with a cache.

        Returns:
            `tuple[torch.Tensor | None, TeacherRows]`: Features `(batch, length, len(layer_ids) *
            target_hidden_size)` (or `None` when the drafter reads none), and the teacher's rows in row-major order
            of `positions`.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            use_cache = self.cache is not None and row_ids is not None
            states = self.cache.read(row_ids, input_ids) if use_cache else None
            if states is None:
                features, last, logits = self._run(input_ids, attention_mask)
                if use_cache:
                    self.cache.write(row_ids, attention_mask, features, last)
            else:
                (features, last), logits = states, None
            # Where the head can be applied apart, it is applied to the scored positions alone, few at a time.
            head = logits_head(self.target, input_ids) if logits is None else None
            rows = (last if logits is None else logits)[positions]
            return features, TeacherRows.from_logits(rows, self._ids_on(rows.device), head)

    @torch.no_grad()
    def fill_cache(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor, row_ids: list[int]) -> None:
        """
        Keeps the states of rows without scoring them.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): Token ids, padded on the right.
            attention_mask (`torch.Tensor` of shape `(batch, length)`): 1 for tokens.
            row_ids (`list[int]`): Their dataset rows.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            features, last, _ = self._run(input_ids, attention_mask)
            self.cache.write(row_ids, attention_mask, features, last)

    def _ids_on(self, device: torch.device) -> torch.Tensor | None:
        if self.draft_token_ids is not None and self.draft_token_ids.device != device:
            self.draft_token_ids = self.draft_token_ids.to(device)
        return self.draft_token_ids

    def _run(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor):
        head = logits_head(self.target, input_ids)
        if head is None and self.cache is not None:
            raise ValueError(
                f"`feature_cache_dir` cannot be used with `{type(self.target).__name__}`: its logits are more than "
                "its head on the last hidden state. Train without the cache."
            )
        model = self.target if head is None else self.target.base_model
        output = model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            output_hidden_states=list(self.layer_ids) or False,
        )
        features = gather_features(output.hidden_states, self.layer_ids) if self.layer_ids else None
        if head is not None:
            return features, output.last_hidden_state, None
        return features, None, output.logits
