# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The attentions of each token of a window, as plain decoding returns them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import Cache, PreTrainedConfig


def attention_rows(
    attentions: Sequence[torch.Tensor | None], rows: int, drafted: int, cache: Cache, config: PreTrainedConfig
) -> Iterator[tuple[torch.Tensor | None, ...]]:
    """
    Args:
        attentions (`Sequence[torch.Tensor]`): Of each layer, `(batch, heads, drafted + 1, columns)`, of a pass over
            the text's last token and a window. None at all, or `None` for each layer, with attention implementations
            that do not give them.
        rows (`int`): First rows to return, one per committed token.
        drafted (`int`): Tokens of the window.
        cache ([`~transformers.Cache`]): What the pass wrote to.
        config ([`~transformers.PreTrainedConfig`]): Of the target's text model.

    Returns:
        `Iterator[tuple[torch.Tensor, ...]]`: For each row, of every layer `(batch, heads, 1, columns)`, as a pass over
        that token alone gives them.
    """
    windows = _sliding_windows(len(attentions), cache, config)
    for row in range(rows):
        yield tuple(
            layer if layer is None else _row(layer, row, drafted, window)
            for layer, window in zip(attentions, windows, strict=True)
        )


def _row(layer: torch.Tensor, row: int, drafted: int, window: int | None) -> torch.Tensor:
    # The last row sees all columns, each before it one less.
    alone = layer[..., row : row + 1, : layer.shape[-1] - drafted + row]
    # A pass over a window keeps what any of its rows sees; one over a single token what that token sees.
    return alone if window is None else alone[..., -window:]


def _sliding_windows(layers: int, cache: Cache, config: PreTrainedConfig) -> list[int | None]:
    """Columns that a token sees in every layer, `None` for all, by what the cache keeps."""
    kept = [getattr(layer, "sliding_window", None) for layer in cache.layers[:layers]]
    kept += [None] * (layers - len(kept))
    kinds = getattr(config, "layer_types", None)
    if kinds is None or len(kinds) != layers:
        return kept
    # Layers without keys of their own read those of another of their kind.
    by_kind = {kind: window for kind, window in zip(kinds, kept, strict=True) if window is not None}
    own = [i < len(cache.layers) and getattr(cache.layers[i], "keys", None) is not None for i in range(layers)]
    return [window if owned else by_kind.get(kind) for window, owned, kind in zip(kept, own, kinds, strict=True)]
