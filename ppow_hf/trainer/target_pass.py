# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""One pass of the frozen target over a training batch: the features a drafter reads and the distributions it learns.

On the fly by default. With a cache folder, features and final hidden states of every row are kept on disk after the
first epoch, and the target's layers are not run again.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..drafters import DrafterModel, gather_features
from ..drafters.logits_head import logits_head
from .acceptance_losses import TeacherRows


class TargetPass:
    """
    Runs a frozen target for a drafter.

    Args:
        target ([`~transformers.PreTrainedModel`]): Decoder-only causal LM. It is never trained nor registered as a
            submodule of anything.
        drafter ([`DrafterModel`]): Says which features are needed and which tokens can be drafted.
        cache (`FeatureCache`, *optional*): Where hidden states are kept between epochs.
    """

    def __init__(self, target: PreTrainedModel, drafter: DrafterModel, cache: "FeatureCache | None" = None):
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


class FeatureCache:
    """
    Hidden states of a whole dataset in one memory-mapped file, in the target's dtype.

    Args:
        folder (`str` or `os.PathLike`): Where to keep it. Caches of other targets, layers or data get other names.
        lengths (`list[int]`): Tokens of every dataset row.
        target ([`~transformers.PreTrainedModel`]): Whose hidden states.
        layer_ids (`tuple[int, ...]`): Which layers.
        fingerprint (`str`): Identifies the dataset.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        lengths: list[int],
        target: PreTrainedModel,
        layer_ids: tuple[int, ...],
        fingerprint: str,
    ):
        width = target.config.get_text_config().hidden_size
        self.feature_width = width * len(layer_ids)
        self.width = self.feature_width + width
        self.dtype = target.dtype
        self.offsets = [0]
        for length in lengths:
            self.offsets.append(self.offsets[-1] + length)
        key = {
            "target": target.config._name_or_path,
            "dtype": str(target.dtype),
            "layers": list(layer_ids),
            "dataset": fingerprint,
            "tokens": self.offsets[-1],
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.path = Path(folder) / name
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "key.json").write_text(json.dumps(key, indent=2) + "\n")
        # `from_file` maps the file, so that what is written survives a kill; a row counts once its flag is set.
        self.states = torch.from_file(
            str(self.path / "states.bin"), shared=True, size=self.offsets[-1] * self.width, dtype=self.dtype
        ).view(-1, self.width)
        self.filled = torch.from_file(str(self.path / "filled.bin"), shared=True, size=len(lengths), dtype=torch.uint8)

    def read(self, row_ids: list[int], input_ids: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        """Features and final states of a batch, zero on padding, or `None` unless every row is there."""
        if not bool(self.filled[row_ids].all()):
            return None
        batch = torch.zeros(*input_ids.shape, self.width, dtype=self.dtype)
        for i, row in enumerate(row_ids):
            start, end = self.offsets[row], min(self.offsets[row + 1], self.offsets[row] + input_ids.shape[1])
            batch[i, : end - start] = self.states[start:end]
        batch = batch.to(input_ids.device)
        features = batch[..., : self.feature_width] if self.feature_width else None
        return features, batch[..., self.feature_width :]

    def write(
        self, row_ids: list[int], attention_mask: torch.Tensor, features: torch.Tensor | None, last: torch.Tensor
    ) -> None:
        """Keeps the states of a batch. Rows cut by `max_length` are not kept."""
        parts = [last] if features is None else [features, last]
        joined = torch.cat(parts, dim=-1).to("cpu", self.dtype)
        for i, row in enumerate(row_ids):
            length = int(attention_mask[i].sum())
            if length == self.offsets[row + 1] - self.offsets[row]:
                self.states[self.offsets[row] : self.offsets[row + 1]] = joined[i, :length]
                self.filled[row] = 1
