# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Window policies simulated on the target's texts: what each would have drafted, what of it accepted, and at which cost.

At temperature 0 the text does not depend on the windows, and what the drafter proposes at a place depends on the text
before it alone. So one pass of the drafter from everywhere records all that any policy could see; then the real policy
and the real acceptance estimate walk through the text in the real window loop, and a [`CostModel`] charges every cycle
as the policy's own books do. Decoding takes seconds a text, a walk milliseconds. Sampled texts: [`sampled_windows`].
Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from ..drafters import DrafterModel
from ..generation import CostModel, WindowConfig
from ..generation.acceptance import AcceptanceEstimator
from ..generation.divergence import RunningDivergence, window_divergence
from ..generation.policies import Outcome, make_policy
from ..generation.window_loop import DraftSampler, draft_window
from ..rl.target_prefix import target_prefix

# Rows of the target's logits that are held at a time.
_ROWS = 256


@dataclass
class RecordedWindows:
    """
    The drafter's greedy windows of `W` tokens from each of the `S` places of a text where a window may start.

    Args:
        stats (`torch.Tensor` of shape `(S, W, 5)`, float32): What [`DraftSampler.draw`] says of every draft token: the
            two highest probabilities, the entropy, the token's target id and its probability.
        accepted (`list[int]`): Per place, how many tokens of the window the text goes on with.
        variation (`list[list[float]]`): Per place, total variation between drafter and target behind the accepted
            tokens and at the first rejected one: the positions a verification can reach.
        divergence (`list[list[float]]`): The same as KL divergence; empty lists unless it was asked for.
    """

    stats: torch.Tensor
    accepted: list[int]
    variation: list[list[float]]
    divergence: list[list[float]]


@dataclass
class Walk:
    """
    The cycles of one or several texts, added up.

    Args:
        committed (`int`): Tokens committed by them.
        verifications (`int`): Cycles.
        drafted (`int`): Draft tokens verified.
        accepted (`int`): How many of them were accepted.
        cost (`float`): In plain target steps. Plain decoding pays one per token.
        cycles (`list[tuple[int, int]]`): Drafted and accepted tokens of each cycle.
    """

    committed: int = 0
    verifications: int = 0
    drafted: int = 0
    accepted: int = 0
    cost: float = 0.0
    cycles: list[tuple[int, int]] = field(default_factory=list)

    def add(self, committed: int, drafted: int, accepted: int, cost: float) -> None:
        """Adds one cycle."""
        self.committed += committed
        self.verifications += 1
        self.drafted += drafted
        self.accepted += accepted
        self.cost += cost
        self.cycles.append((drafted, accepted))

    def __add__(self, other: Walk) -> Walk:
        return Walk(
            self.committed + other.committed,
            self.verifications + other.verifications,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
            self.cost + other.cost,
            self.cycles + other.cycles,
        )

    def totals(self) -> dict[str, float]:
        """Everything but the single cycles, for a log."""
        return {name: value for name, value in vars(self).items() if name != "cycles"}

    @property
    def speedup(self) -> float | None:
        """`float`: Modelled speed relative to plain decoding, the prompt left out; `None` without a cycle."""
        return self.committed / self.cost if self.verifications else None


@torch.no_grad()
def record_windows(
    target: PreTrainedModel,
    drafter: DrafterModel,
    input_ids: torch.LongTensor,
    first: int,
    window_size: int,
    kl: bool = False,
) -> RecordedWindows:
    """
    Records the drafter's greedy windows from every position of a greedy text.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        drafter ([`DrafterModel`]): The drafter, bound to it.
        input_ids (`torch.LongTensor` of shape `(1, length)`): Prompt and the target's greedy response.
        first (`int`): First position a window may start at: behind the prompt and the first token of the response.
        window_size (`int`): Draft tokens per window.
        kl (`bool`, *optional*, defaults to `False`): Record KL divergences too.

    Returns:
        [`RecordedWindows`]: Place `i` is the window that starts at `first + i`.
    """
    prefix = target_prefix(target, input_ids, torch.ones_like(input_ids), drafter.feature_layer_ids, keep_cache=False)
    length, device = input_ids.shape[1], input_ids.device
    starts = torch.arange(first, length, device=device)[None]
    sampler = DraftSampler(drafter.draft_token_ids, vocab_size=drafter.config.vocab_size)
    text = torch.nn.functional.pad(input_ids[0], (0, window_size), value=-1)
    places = length - first
    alive = torch.ones(places, dtype=torch.bool, device=device)
    accepted = torch.zeros(places, dtype=torch.long, device=device)
    variation: list[list[float]] = [[] for _ in range(places)]
    divergence: list[list[float]] = [[] for _ in range(places)]
    stats = []
    state, logits = drafter.begin_windows(input_ids, prefix.features, starts)
    for k in range(window_size):
        scores = sampler.scores(logits[0], None)
        _, tokens, values = sampler.draw(scores)
        stats.append(values)
        # What follows the text's last token was never decoded.
        reached = (alive & (starts[0] + k < length)).nonzero()[:, 0]
        for rows in reached.split(_ROWS):
            target_scores = prefix.logits_at(torch.zeros_like(rows), first + rows + k - 1).float()
            found = window_divergence([scores[rows]], target_scores, sampler, kl=kl)
            for parts, column in zip((variation, divergence), found, strict=True):
                for place, value in zip(rows.tolist(), column, strict=False):
                    parts[place].append(value)
        alive = alive & (tokens == text[first + k : length + k])
        accepted += alive
        if k + 1 < window_size:
            logits = drafter.step_windows(state, tokens[None])
    return RecordedWindows(torch.stack(stats, dim=1).cpu(), accepted.tolist(), variation, divergence)


class _RecordedSampler(DraftSampler):
    """Draws what was recorded: its logits are the statistics themselves, `(1, 5)`."""

    def __init__(self):
        super().__init__(None, vocab_size=0)

    def simple(self, logits: torch.Tensor) -> bool:
        return False  # statistics are no logits to take a favourite from

    def draw(self, scores: torch.Tensor) -> tuple[torch.LongTensor, torch.LongTensor, torch.Tensor]:
        tokens = scores[:, 3].long()
        return tokens, tokens, scores


def simulate(
    windows: RecordedWindows,
    config: WindowConfig,
    cost_model: CostModel,
    budget: int,
    eos_token_ids: frozenset[int] = frozenset(),
    sampling: bool = False,
    estimator: AcceptanceEstimator | None = None,
) -> Walk:
    """
    Walks through a text with a window policy, as decoding would.

    Args:
        windows ([`RecordedWindows`]): The drafter's windows from everywhere in the text.
        config ([`WindowConfig`]): The policy. A chain of the drafter's own; nothing is carried over from elsewhere.
        cost_model ([`CostModel`]): Costs of a cycle: `gamma` per drafter pass, `v(drafted)` and the overhead.
        budget (`int`): Tokens that may still be generated at the first place: `max_new_tokens - 1`.
        eos_token_ids (`frozenset[int]`, *optional*): Tokens after which nothing is drafted.
        sampling (`bool`, *optional*, defaults to `False`): The windows are those of a sampled text: which acceptance
            estimate decides, and what it learns from.
        estimator ([`AcceptanceEstimator`], *optional*): In place of the one the configuration describes.

    Returns:
        [`Walk`].

    Raises:
        ValueError: If the configuration asks for larger windows than were recorded, for a tree or for lookup, or the
            text is longer than the budget.
    """
    places, width = windows.stats.shape[:2]
    if config.tree is not None or config.proposals != "drafter":
        raise ValueError("`config` must be a chain of the drafter's own: set `tree=None` and `proposals='drafter'`.")
    if config.limit > width:
        raise ValueError(f"`config` allows windows of {config.limit}, but only {width} draft tokens were recorded.")
    if places > budget:
        raise ValueError(f"`budget` is {budget}, but the text has {places} tokens there.")
    policy = make_policy(config, cost_model)
    if estimator is None:
        estimator = AcceptanceEstimator(config.calibration, sampling=sampling, online=config.online_calibration)
    divergence = RunningDivergence(config.divergence_metric, config.divergence_decay)
    sampler = _RecordedSampler()
    walk, position = Walk(), 0
    while position < places:
        # As in decoding, the last token that may be generated is left to the target.
        limit = budget - position - 1
        wanted = min(limit, policy.target_size()) if limit > 0 else 0
        window, drafted, forwards = None, 0, 0
        if wanted > 0:
            window = draft_window(
                None,  # `step` takes its place
                None,
                windows.stats[position, :1],
                sampler=sampler,
                policies=[policy],
                sizes=[wanted],
                estimator=estimator,
                divergence=divergence.total_variation,
                eos_token_ids=eos_token_ids,
                step=_Steps(windows.stats[position]),
            )
            drafted, forwards = window.lengths[0], window.forwards
        accepted = min(windows.accepted[position], drafted)
        # Where an accepted draft token ends the text, the target adds none of its own.
        ended = position + accepted == places
        committed = accepted if ended else accepted + 1
        reached = accepted if ended else min(accepted + 1, drafted)
        if reached:
            divergence.update(windows.variation[position][:reached], windows.divergence[position][:reached])
            for i, features in enumerate(window.features[0][:reached]):
                estimator.update(features, 1.0 - windows.variation[position][i] if sampling else float(i < accepted))
        policy.update(Outcome(drafted, accepted, committed, forwards, divergence.value if reached else None))
        cost = cost_model.gamma * forwards + cost_model.verify(drafted) + cost_model.overhead
        walk.add(committed, drafted, accepted, cost)
        position += committed
    return walk


class _Steps:
    """In place of the drafter's draft steps: the recorded ones of one window."""

    def __init__(self, stats: torch.Tensor):
        self._stats = stats
        self._fed = 0

    def __call__(self, state: None, token_ids: torch.Tensor) -> torch.Tensor:
        self._fed += 1
        return self._stats[self._fed : self._fed + 1]


def oracle_walk(accepted: Sequence[int], max_size: int, cost_model: CostModel) -> Walk:
    """
    Walks through a text with a window policy that knows in advance how many of the drafter's tokens will be accepted,
    and drafts exactly these.

    A window of `k` tokens pays for `k` draft steps: knowing `k`, the oracle does not need the step that would show it
    the token to be rejected, and where `k` is 0 it leaves the drafter alone (which catches up at the next window, in
    one pass). A token that the target adds anyway is not drafted.

    Args:
        accepted (`Sequence[int]`): Accepted prefix of the window at every place.
        max_size (`int`): Largest window.
        cost_model ([`CostModel`]): Cost of a cycle with a window of `k`: `gamma * k + v(k) + overhead`.

    Returns:
        [`Walk`].
    """
    walk, position = Walk(), 0
    while position < len(accepted):
        size = min(accepted[position], max_size, len(accepted) - position - 1)
        walk.add(size + 1, size, size, cost_model.cycle_cost(size))
        position += size + 1
    return walk


def cheapest_walk(accepted: Sequence[int], max_size: int, cost_model: CostModel) -> Walk:
    """
    The cheapest way through a text that any sequence of windows can take: no policy for this drafter is faster. Unlike
    the oracle it may stop a window early, where the drafter knows better from a later place, or where another token
    costs more than it saves.

    Args:
        accepted, max_size, cost_model: As for [`oracle_walk`].

    Returns:
        [`Walk`].
    """
    places = len(accepted)
    costs = [cost_model.cycle_cost(size) for size in range(max_size + 1)]
    best = [0.0] * (places + 1)  # of the text from a place on
    choice = [0] * places
    for position in reversed(range(places)):
        most = min(accepted[position], max_size, places - position - 1)
        options = [costs[size] + best[position + size + 1] for size in range(most + 1)]
        choice[position] = min(range(most + 1), key=options.__getitem__)
        best[position] = options[choice[position]]
    walk, position = Walk(), 0
    while position < places:
        size = choice[position]
        walk.add(size + 1, size, size, costs[size])
        position += size + 1
    return walk
