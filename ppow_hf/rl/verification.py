# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the target says about drafted windows: all windows of a batch in one packed target pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..drafters.packed_pass import PackedPass, cannot_pack
from ..generation.tree_attention import evaluating
from ..row_blocks import rows_per_block
from .target_prefix import ROWS_IN_CACHE, TargetPrefix, target_prefix

logger = logging.get_logger(__name__)

# Query tokens of a text in one pass. Windows attend to nothing of each other, but the kernels compute it all the same:
# a few passes of bounded length keep the cost of a window the same however many there are.
MAX_PACKED_TOKENS = 1024

# Result of the trial of packing, by target and by what could change it.
_TRIALS: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple, str | None]] = weakref.WeakKeyDictionary()


@dataclass
class Verification:
    """
    The target's view of `B x S x G` windows of `K` tokens; zero where there is no window.

    Args:
        argmax (`torch.LongTensor` of shape `(B, S, G, K)`): The target's most probable token at every position, given
            the drafted tokens before it.
        log_probs (`torch.Tensor` of shape `(B, S, G, K)`, float32): Log-probability of the drafted token, over the
            full vocabulary.
        draft_probs (`torch.Tensor` of shape `(B, S, G, K, Vd)`, float32, *optional*): Probabilities of the tokens that
            can be drafted, not renormalised.
        plain_log_probs (`torch.Tensor` of shape `(B, S, G, K)`, float32, *optional*): `log_probs` at temperature 1.
    """

    argmax: torch.LongTensor
    log_probs: torch.Tensor
    draft_probs: torch.Tensor | None = None
    plain_log_probs: torch.Tensor | None = None


@torch.no_grad()
def verify_windows(
    target: PreTrainedModel,
    prefix: TargetPrefix,
    starts: torch.LongTensor,
    windows: torch.LongTensor,
    *,
    draft_token_ids: torch.LongTensor | None = None,
    temperature: float = 1.0,
    keep_draft_probs: bool = True,
    keep_plain_log_probs: bool = False,
    packed: bool | str = "auto",
    chunk_size: int = 256,
) -> Verification:
    """
    Verifies windows that start in given places of given texts.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        prefix ([`TargetPrefix`]): Its pass over the texts.
        starts (`torch.LongTensor` of shape `(B, S)`): Position of each window's first draft token, so the number of
            tokens of its prefix: at least 1, at most the text's length; -1 for no window.
        windows (`torch.LongTensor` of shape `(B, S, G, K)`): Draft tokens, as target ids.
        draft_token_ids (`torch.LongTensor` of shape `(Vd,)`, *optional*): Target ids of the draft vocabulary; all by
            default.
        temperature (`float`, *optional*, defaults to 1.0): Of the target's distribution.
        keep_draft_probs (`bool`, *optional*, defaults to `True`): Return `draft_probs`, the largest of the results.
        keep_plain_log_probs (`bool`, *optional*, defaults to `False`): Return `plain_log_probs`: the target's own
            opinion of the windows, whatever the temperature they are verified at.
        packed (`bool` or `"auto"`, *optional*, defaults to `"auto"`): `True` for one pass over all windows, `False`
            for plain passes over prefix and window, one start after another. `"auto"` packs where the target can,
            and says so once where it cannot.
        chunk_size (`int`, *optional*, defaults to 256): Positions whose vocabulary is projected at a time.

    Returns:
        [`Verification`], on the device of `windows`.

    Raises:
        ValueError: If shapes or starts do not fit the texts, `temperature` or `chunk_size` is not positive, or
            `packed=True` and the target cannot.
    """
    check_windows(prefix, starts, windows, temperature, chunk_size)
    rows, columns = (starts >= 0).nonzero(as_tuple=True)
    vocab_size = len(draft_token_ids) if draft_token_ids is not None else target.config.get_text_config().vocab_size
    result = Verification(
        argmax=torch.zeros(windows.shape, dtype=torch.long, device=windows.device),
        log_probs=torch.zeros(windows.shape, device=windows.device),
        draft_probs=torch.zeros(*windows.shape, vocab_size, device=windows.device) if keep_draft_probs else None,
    )
    if keep_plain_log_probs:
        same = temperature == 1
        result.plain_log_probs = result.log_probs if same else torch.zeros_like(result.log_probs)
    if len(rows) == 0:
        return result
    score = _Scorer(result, windows, draft_token_ids, temperature)
    with torch.autocast(prefix.input_ids.device.type, enabled=False):
        if use_packing(target, prefix, packed):
            _first_tokens(prefix, starts, rows, columns, windows, score, chunk_size)
            if windows.shape[-1] > 1:
                _packed_tokens(target, prefix, starts, windows, score, chunk_size)
        else:
            _window_by_window(target, prefix, starts, rows, columns, windows, score, chunk_size)
    return result


def check_windows(
    prefix: TargetPrefix, starts: torch.Tensor, windows: torch.Tensor, temperature: float, chunk_size: int
) -> None:
    batch = prefix.input_ids.shape[0]
    if starts.dim() != 2 or windows.dim() != 4 or starts.shape[0] != batch or windows.shape[:2] != starts.shape:
        raise ValueError(
            f"`starts` must have the shape (batch, S) and `windows` (batch, S, G, K) with a batch of {batch}, got "
            f"{tuple(starts.shape)} and {tuple(windows.shape)}."
        )
    if 0 in windows.shape[2:]:
        raise ValueError(f"`windows` must hold at least one window of one token, got shape {tuple(windows.shape)}.")
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}. For greedy decoding, read `argmax`.")
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    lengths = prefix.lengths.to(starts.device)[:, None]
    wrong = (starts != -1) & ((starts < 1) | (starts > lengths))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"`starts[{row}, {column}]` is {int(starts[row, column])}: a window starts at position 1 at the earliest "
            f"and right behind the text's {int(lengths[row])} tokens at the latest; -1 stands for no window."
        )


class _Scorer:
    """Writes what is asked of rows of logits to their places in a [`Verification`]."""

    def __init__(
        self,
        result: Verification,
        windows: torch.LongTensor,
        draft_token_ids: torch.LongTensor | None,
        temperature: float,
    ):
        self.device = windows.device
        self.tokens = windows.reshape(-1)
        self.argmax, self.log_probs = result.argmax.view(-1), result.log_probs.view(-1)
        self.probs = None if result.draft_probs is None else result.draft_probs.flatten(0, -2)
        apart = temperature != 1 and result.plain_log_probs is not None
        self.plain_log_probs = result.plain_log_probs.view(-1) if apart else None
        self.draft_token_ids = draft_token_ids
        self.temperature = temperature

    def __call__(self, logits: torch.Tensor, slots: torch.LongTensor) -> None:
        """`logits` `(N, V)`, and `slots` `(N, M)`: the flat places of the tokens each of them is for."""
        rows = rows_per_block(logits.device, ROWS_IN_CACHE, logits.shape[-1])
        for block, places in zip(logits.split(rows), slots.to(self.device).split(rows), strict=True):
            self._score(block, places)

    def _score(self, logits: torch.Tensor, slots: torch.LongTensor) -> None:
        logits = logits.float()
        self.argmax[slots] = logits.argmax(-1)[:, None].to(self.device)
        tokens = self.tokens[slots].to(logits.device)
        if self.plain_log_probs is not None:
            plain = logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
            self.plain_log_probs[slots] = plain.to(self.device)
        logits = logits if self.temperature == 1 else logits / self.temperature
        log_mass = logits.logsumexp(-1, keepdim=True)
        chosen = logits.gather(-1, tokens) - log_mass
        self.log_probs[slots] = chosen.to(self.device)
        if self.probs is not None:
            if self.draft_token_ids is not None:
                logits = logits.index_select(-1, self.draft_token_ids.to(logits.device))
            probs = (logits - log_mass).exp().to(self.device)
            # Whole rows are copied many times faster than they are indexed.
            for places in slots.unbind(-1):
                self.probs.index_copy_(0, places, probs)


def _slots(starts: torch.Tensor, windows: torch.Tensor) -> torch.LongTensor:
    """Flat index of every window's first token, `(B, S, G)`."""
    count = windows.shape[:-1].numel()
    return (torch.arange(count, device=starts.device) * windows.shape[-1]).view(windows.shape[:-1])


def _first_tokens(prefix, starts, rows, columns, windows, score: _Scorer, chunk_size: int) -> None:
    """The first token of every window: from the prefix pass, once for all windows of a start."""
    slots = _slots(starts, windows)[rows, columns]
    for part in torch.arange(len(rows), device=rows.device).split(chunk_size):
        score(prefix.logits_at(rows[part], starts[rows[part], columns[part]] - 1), slots[part])


def _packed_tokens(target, prefix, starts, windows, score: _Scorer, chunk_size: int) -> None:
    """The later tokens of all windows, in passes of bounded length."""
    batch, num_starts, group, size = windows.shape
    valid = starts >= 0
    # Windows that are there come first, so that missing ones cost no more than uneven rows do.
    most = int(valid.sum(-1).max())
    order = valid.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :most]
    units = (order[..., None] * group + torch.arange(group, device=order.device)).flatten(1)
    alive = valid.gather(1, order).repeat_interleave(group, dim=1)
    unit_starts = torch.where(alive, starts.gather(1, order).repeat_interleave(group, dim=1), 1)
    # The last token of a window need not be fed.
    tokens = windows.reshape(batch, num_starts * group, size)[..., :-1]
    tokens = tokens.gather(1, units[..., None].expand(-1, -1, size - 1)) * alive[..., None]
    slots = _slots(starts, windows).flatten(1).gather(1, units)[..., None] + torch.arange(
        1, size, device=starts.device
    )

    per_pass = max(1, MAX_PACKED_TOKENS // (size - 1))
    if prefix.head is None:
        # The target hands out whole logits: fewer at a time.
        per_pass = max(1, min(per_pass, chunk_size // (batch * (size - 1))))
    for part in torch.arange(units.shape[1], device=units.device).split(per_pass):
        here = alive[:, part]
        states = packed_pass(target, prefix, unit_starts[:, part]).feed(tokens[:, part])
        states = states[here.to(states.device)].flatten(0, 1)
        places = slots[:, part][here].flatten()
        for states_chunk, places_chunk in zip(states.split(chunk_size), places.split(chunk_size), strict=True):
            score(prefix.project(states_chunk), places_chunk[:, None])


def last_logits(target: PreTrainedModel, input_ids: torch.LongTensor, count: int) -> torch.Tensor:
    """Logits in float32 behind the last `count` tokens of unpadded texts, from a plain pass without a cache."""
    kwargs = {"logits_to_keep": count} if target._supports_logits_to_keep() else {}
    return target(input_ids=input_ids, use_cache=False, **kwargs).logits[:, -count:].float()


def _window_by_window(target, prefix, starts, rows, columns, windows, score: _Scorer, chunk_size: int) -> None:
    """Plain passes over prefix and window: one start at a time, its windows as rows of a batch."""
    size = windows.shape[-1]
    slots = _slots(starts, windows)[..., None] + torch.arange(size, device=starts.device)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        text = prefix.input_ids[row, : int(starts[row, column])]
        group = windows[row, column].to(text.device)
        per_pass = max(1, chunk_size // size)
        for part, places in zip(group.split(per_pass), slots[row, column].split(per_pass), strict=True):
            logits = last_logits(target, torch.cat([text.expand(len(part), -1), part[:, :-1]], dim=1), size)
            score(logits.flatten(0, 1), places.reshape(-1, 1))


def use_packing(target: PreTrainedModel, prefix: TargetPrefix, packed: bool | str) -> bool:
    if packed is False:
        return False
    if packed is not True and packed != "auto":
        raise ValueError(f"`packed` must be True, False or 'auto', got {packed!r}.")
    reason = cannot_pack(target)
    if reason is None and prefix.cache is None:
        reason = "the prefix was made with `keep_cache=False`"
    if reason is None:
        reason = _trial(target, prefix.input_ids.device)
    if reason is None:
        return True
    if packed is True:
        raise ValueError(
            f"`packed=True` is not possible with `{type(target).__name__}`: {reason}. Use `packed='auto'` or `False`."
        )
    logger.warning_once(
        f"`{type(target).__name__}` cannot verify all windows in one packed pass: {reason}. Windows are verified one "
        "start after another, which is several times slower."
    )
    return False


def _trial(target: PreTrainedModel, device: torch.device) -> str | None:
    """Packed against plain verification of a few tokens, once per target: a mask that is ignored raises no error."""
    trials = _TRIALS.setdefault(target, {})
    key = (target.config.get_text_config()._attn_implementation, target.dtype, str(device))
    if key not in trials:
        try:
            with evaluating(target):  # dropout would make any two passes differ
                trials[key] = _compare(target, device)
        except Exception as error:  # not kept: memory may be free the next time
            return f"a trial of it failed with {type(error).__name__}: {error}"
    return trials[key]


def _compare(target: PreTrainedModel, device: torch.device) -> str | None:
    # No random numbers: a trial must not move the generators of a training run. Texts of two lengths, windows that
    # differ within a start and between starts, each with text behind it that it must not see.
    vocab_size = target.config.get_text_config().vocab_size
    ids = (torch.arange(56, device=device) * 7919 + 13) % vocab_size
    input_ids, windows = ids[:24].view(2, 12), ids[24:].view(2, 2, 2, 4)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 10:] = 0
    starts = torch.tensor([[7, 3], [2, 6]], device=device)
    prefix = target_prefix(target, input_ids, attention_mask)
    rows, columns = (starts >= 0).nonzero(as_tuple=True)
    found = []
    for verify in (_packed_tokens, _window_by_window):
        result = Verification(
            torch.zeros_like(windows),
            torch.zeros(windows.shape, device=device),
            torch.zeros(*windows.shape, vocab_size, device=device),
        )
        places = (rows, columns) if verify is _window_by_window else ()
        verify(target, prefix, starts, *places, windows, _Scorer(result, windows, None, 1.0), 64)
        log_probs = result.draft_probs[..., 1:, :].clamp(min=1e-30).log()
        found.append(log_probs - log_probs.mean(-1, keepdim=True))
    # Relative to how far the target's logits spread. Half precision moves a few rows a good deal (routing, ties in
    # rounding), a mask that is ignored moves all of them.
    error = (found[0] - found[1]).norm(dim=-1) / found[1].norm(dim=-1).clamp(min=1e-30)
    exact = target.dtype in (torch.float32, torch.float64)
    distance, limit = (error.max(), 1e-3) if exact else (error.median(), 0.1)
    if distance <= limit:
        return None
    return f"its logits under a packed mask are {float(distance):.2g} of their spread away from plain ones"


def packed_pass(target: PreTrainedModel, prefix: TargetPrefix, starts: torch.LongTensor, **kwargs) -> PackedPass:
    """A packed pass on top of a prefix."""
    return PackedPass(target, prefix.cache, prefix.attention_mask, starts, apart=prefix.head is not None, **kwargs)
