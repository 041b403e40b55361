# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the target is given of a text that grows by windows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

# Inputs whose growth is known.
_KNOWN = frozenset({"attention_mask", "logits_to_keep", "past_key_values", "position_ids", "use_cache"})
_SPARE = 512


class WindowInputs:
    """
    The target's inputs for one pass after another.

    As the target itself prepares them, or, for a target that leaves that to transformers and a prompt without padding,
    the same from tensors that are made once: what transformers does anew for every pass, joining masks and positions
    twice, takes as long as several layers of a small target.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        model_kwargs (`dict`): Its prepared inputs.
    """

    def __init__(self, target: PreTrainedModel, model_kwargs: dict[str, Any]):
        self._target, self.model_kwargs = target, model_kwargs
        self._first = True
        self._short = _leaves_it_to_transformers(target) and _is_plain(model_kwargs)
        self._position = self._columns = 0  # of the text's last token; of the text
        self._ones = self._positions = torch.empty((1, 0), dtype=torch.long)

    def of(self, candidates: torch.LongTensor, drafted: int) -> dict[str, Any]:
        """
        Args:
            candidates (`torch.LongTensor` of shape `(1, length + drafted)`): The text, and the window behind it.
            drafted (`int`): Tokens in the window.

        Returns:
            `dict`: What the target is called with.
        """
        if self._short and not self._first:
            return self._made(candidates, drafted)
        inputs = self._target.prepare_inputs_for_generation(
            candidates,
            next_sequence_length=None if self._first else drafted + 1,
            is_first_iteration=self._first,
            **(self._grown(drafted) if drafted else self.model_kwargs),
        )
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = drafted + 1
        return inputs

    def commit(self, outputs: Any, committed: int) -> None:
        """
        The text has grown.

        Args:
            outputs (`ModelOutput`): The target's.
            committed (`int`): By how many tokens.
        """
        if self._short and not self._first:
            self._position += committed
            self._columns += committed
            return
        self.model_kwargs = self._target._update_model_kwargs_for_generation(
            outputs, self.model_kwargs, num_new_tokens=committed
        )
        if self._short:
            self._position = int(self.model_kwargs["position_ids"][0, -1])
            mask = self.model_kwargs.get("attention_mask")
            self._columns = 0 if mask is None else mask.shape[1]
        self._first = False

    def _made(self, candidates: torch.LongTensor, drafted: int) -> dict[str, Any]:
        given, last = self.model_kwargs, self._position + drafted + 1
        device = self._target.device  # a prompt may lie elsewhere
        if self._positions.shape[1] < last:
            self._positions = torch.arange(last + _SPARE, dtype=given["position_ids"].dtype, device=device)[None]
        inputs = {
            "input_ids": candidates[:, -drafted - 1 :].to(device),
            "position_ids": self._positions[:, self._position : last],
            **{name: given[name] for name in ("past_key_values", "use_cache")},
        }
        if (mask := given.get("attention_mask")) is not None:
            columns = self._columns + drafted
            if self._ones.shape[1] < columns:
                self._ones = mask.new_ones((1, columns + _SPARE), device=device)
            inputs["attention_mask"] = self._ones[:, :columns]
        if "logits_to_keep" in given:
            inputs["logits_to_keep"] = drafted + 1
        return inputs

    def _grown(self, drafted: int) -> dict[str, Any]:
        """The target's inputs with a window behind the text, as the target itself lets them grow with it."""
        grown = self._target._update_model_kwargs_for_generation({}, dict(self.model_kwargs), num_new_tokens=drafted)
        if (types := self.model_kwargs.get("token_type_ids")) is not None:
            # Plain decoding repeats the last one; of several new tokens at once transformers repeats the last several.
            grown["token_type_ids"] = torch.cat([types, types[:, -1:].expand(-1, drafted)], dim=-1)
        return grown


def _leaves_it_to_transformers(target: PreTrainedModel) -> bool:
    """Whether a target prepares and updates its inputs as every other does."""
    names = ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
    common = all(getattr(type(target), name) is getattr(GenerationMixin, name) for name in names)
    return common and not target.is_remote_code() and not any(name in vars(target) for name in names)


def _is_plain(model_kwargs: dict[str, Any]) -> bool:
    """Whether the prompt is text alone, without padding, with positions that go up by one."""
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if not model_kwargs.keys() <= _KNOWN or positions is None or positions.dim() != 2 or len(positions) != 1:
        return False
    return mask is None or (mask.dim() == 2 and bool(mask.all()))
