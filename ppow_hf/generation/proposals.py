# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Mixed proposals: per cycle, the drafter, lookup, or lookup followed by the drafter (ours).

Each is worth the tokens it is expected to commit per unit of cost, in plain target steps, `gamma` a draft step, `v(n)`
the verification of `n` tokens and `o` our own work, with `A_i` the chance that the first `i` looked-up tokens are
right:

- lookup of `n` tokens: `(1 + A_1 + ... + A_n) / (v(n) + o)`;
- the drafter, with its window policy: what it has recently been worth, where lookup looked as good as it does now;
- `n` of its tokens, then the drafter: `(1 + A_1 + ... + A_n + A_n * d) / (gamma * (n + f) + v(n + k) + o)`, with the
  drafter's usual `d` accepted tokens, `f` passes and `k` drafted tokens.

In a draft tree the drafter's own cycles carry looked-up tokens, too, and so the third way is part of the second.

Lookup is judged in every cycle, used or not: the committed tokens tell which of its tokens would have been right. The
drafter is not, so that where it has not been tried it is expected to do better than it usually does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile
from operator import eq

import torch

from .cost_model import CostModel
from .lookup import LookupIndex, LookupMatch
from .lookup_acceptance import LookupAcceptance
from .window_config import WindowConfig

# Lookup's worth at which the drafter's record is kept apart: where a text repeats itself, drafters do well too.
_STRENGTHS = (1.3, 2.0, 3.0, 5.0)
_MEMORY = 0.93  # what a cycle of a drafter leaves of the ones before it
_FADING = 0.99  # what any cycle leaves of them
_PRIOR_TOKENS = 4.0  # weight of the belief that lookup is worth what its estimates say
_PRIOR_COST = 3.0  # weight of what is assumed, in plain target steps
_OPTIMISM = 1.1
_TYPICAL_ACCEPTANCE = 0.7
_MOST_LEADING = 4


@dataclass
class Proposal:
    """
    What leads the coming window.

    Args:
        source (`str`): `"drafter"`, `"lookup"`, or `"mixed"`: looked-up tokens, and the drafter behind them.
        tokens (`list[int]`): Looked-up tokens to verify, as target ids.
        predicted (`list[float]`): Their estimated acceptance, each given that those before it are accepted.
        value (`float`, *optional*): Expected tokens per unit cost.
    """

    source: str = "drafter"
    tokens: list[int] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)
    value: float | None = None

    def logits(self, vocab_size: int, device: torch.device) -> torch.Tensor:
        """
        What sampling verification needs: logits of the distributions the tokens were drawn from, all mass on each.

        Returns:
            `torch.Tensor` of shape `(1, len(tokens), vocab_size)`, float32.
        """
        certain = torch.full((1, len(self.tokens), vocab_size), -torch.inf, device=device)
        return certain.scatter_(-1, torch.tensor(self.tokens, device=device)[None, :, None], 0.0)


@dataclass
class DrafterRecord:
    """Fading sums over the drafter's cycles: their number, committed tokens, passes, drafted tokens, and cost."""

    cycles: float = 0.0
    tokens: float = 0.0
    forwards: float = 0.0
    drafted: float = 0.0
    cost: float = 0.0

    def fade(self, keep: float) -> None:
        for name in ("cycles", "tokens", "forwards", "drafted", "cost"):
            setattr(self, name, keep * getattr(self, name))

    def add(self, tokens: int, forwards: int, drafted: int, cost: float) -> None:
        self.fade(_MEMORY)
        self.cycles += 1.0
        self.tokens += tokens
        self.forwards += forwards
        self.drafted += drafted
        self.cost += cost

    def rate(self, assumed: float) -> float:
        """Tokens per unit cost, with a few steps' worth of what is assumed."""
        return (self.tokens + assumed * _PRIOR_COST) / (self.cost + _PRIOR_COST)


class ProposalSwitch:
    """
    What is learnt about lookup and drafter, and the choice between them.

    Args:
        config ([`WindowConfig`]): Limits; its `proposals` is `"lookup"` or `"mixed"`.
        cost_model ([`CostModel`], *optional*): Costs; not needed by fixed windows of lookup alone.
        sampling (`bool`, *optional*, defaults to `False`): Whether the target samples.
    """

    def __init__(self, config: WindowConfig, cost_model: CostModel | None, sampling: bool = False):
        self.config = config
        self.acceptance = LookupAcceptance(sampling=sampling, online=config.online_calibration)
        self.mixes = config.proposals == "mixed"
        self.leads = self.mixes and config.tree is None
        self.fixed = config.size if config.policy == "fixed" and not self.mixes else None
        self.size = self.fixed or config.lookup_size
        if cost_model is None and self.fixed is None:
            raise ValueError("Choosing between proposals needs a cost model: `CostModel.measure(target, drafter)`.")
        self.cost_model = cost_model
        # Per class of worth, looked-up tokens that were expected to be right, and that were.
        self._expected = [_PRIOR_TOKENS] * (len(_STRENGTHS) + 1)
        self._right = [_PRIOR_TOKENS] * (len(_STRENGTHS) + 1)
        if cost_model is not None:
            self._lookup_costs = [cost_model.verify(n) + cost_model.overhead for n in range(self.size + 1)]
        if self.mixes:
            self._usual_window = self._best_window()
            self._overall = DrafterRecord()
            self._records = [DrafterRecord() for _ in range(len(_STRENGTHS) + 1)]
            # Behind looked-up tokens the drafter reads its own states, not the target's: how much that costs it.
            self._expected_behind, self._accepted_behind = 5.0, 4.5

    def _best_window(self) -> tuple[float, int]:
        """Worth and size of the best window of a drafter that is right as often as drafters usually are."""
        best, size, reach, tokens = 0.0, 1, 1.0, 1.0
        for n in range(1, self.config.limit + 1):
            reach *= _TYPICAL_ACCEPTANCE
            tokens += reach
            if tokens / self.cost_model.cycle_cost(n) > best:
                best, size = tokens / self.cost_model.cycle_cost(n), n
        return best, size

    # ---- the choice ------------------------------------------------------------------------------------------------

    def predict(self, match: LookupMatch | None, count: int) -> list[float]:
        """Estimated acceptance of `count` looked-up tokens."""
        return [self.acceptance.predict(match, position) for position in range(count)]

    def lookup_value(self, predicted: list[float], share: float = 1.0) -> tuple[float, int]:
        """
        Args:
            predicted (`list[float]`): Estimated acceptance of the looked-up tokens at hand.
            share (`float`, *optional*, defaults to 1.0): How many of the tokens expected to be right are.

        Returns:
            `(value, count)`: Expected tokens per unit cost of the best number of them to verify. May be none.
        """
        best, count, reach, tokens = 1.0 / self._lookup_costs[0], 0, share, 1.0
        for n, estimate in enumerate(predicted, start=1):
            reach *= estimate
            tokens += reach
            if tokens / self._lookup_costs[n] > best:
                best, count = tokens / self._lookup_costs[n], n
        return best, count

    def strength(self, predicted: list[float]) -> int:
        """Class of what lookup is worth by its estimates, from 0 (nothing to propose, or nothing that pays)."""
        value, _ = self.lookup_value(predicted)
        return sum(value >= bound for bound in _STRENGTHS)

    def drafter_value(self, strength: int) -> float:
        """
        Args:
            strength (`int`): How good lookup looks, see [`ProposalSwitch.strength`].

        Returns:
            `float`: Expected tokens per unit cost of a drafter's cycle there.
        """
        usual = self._overall.rate(self._usual_window[0])
        return self._records[strength].rate(_OPTIMISM * usual)

    def mixed_value(self, predicted: list[float], drafter_value: float, share: float = 1.0) -> tuple[float, int]:
        """
        Args:
            predicted (`list[float]`): Estimated acceptance of the looked-up tokens at hand.
            drafter_value (`float`): Expected tokens per unit cost of the drafter.
            share (`float`, *optional*, defaults to 1.0): As in [`ProposalSwitch.lookup_value`].

        Returns:
            `(value, count)`: Expected tokens per unit cost of the best number of them with the drafter behind.
        """
        record, costs = self._overall, self.cost_model
        if record.cycles:
            forwards, drafted = record.forwards / record.cycles, record.drafted / record.cycles
        else:
            forwards = drafted = float(self._usual_window[1])
        usual = costs.gamma * forwards + costs.verify(drafted) + costs.overhead
        behind = max(drafter_value * usual - 1.0, 0.0) * self._accepted_behind / self._expected_behind
        best, count, reach, tokens = 0.0, 0, share, 1.0
        # The drafter must be fed every looked-up token, a draft step each.
        for n, estimate in enumerate(predicted[:_MOST_LEADING], start=1):
            reach *= estimate
            tokens += reach
            cost = costs.gamma * (n + forwards) + costs.verify(n + drafted) + costs.overhead
            if (tokens + reach * behind) / cost > best:
                best, count = (tokens + reach * behind) / cost, n
        return best, count

    def choose(self, tokens: list[int], predicted: list[float], limit: int, can_draft: bool = True) -> Proposal:
        """
        Args:
            tokens (`list[int]`): Looked-up tokens.
            predicted (`list[float]`): Their estimated acceptance.
            limit (`int`): Most tokens that the length of the text leaves room for.
            can_draft (`bool`, *optional*, defaults to `True`): Whether the drafter has what it needs.

        Returns:
            [`Proposal`].
        """
        if self.fixed is not None:
            return Proposal("lookup", tokens[:limit], predicted[:limit])
        strength = self.strength(predicted)
        tokens, predicted = tokens[:limit], predicted[:limit]
        share = min(self._right[strength] / self._expected[strength], 1.0)
        value, count = self.lookup_value(predicted, share)
        best = Proposal("lookup", tokens[:count], predicted[:count], value)
        if self.mixes and can_draft:
            drafter_value = self.drafter_value(strength)
            if drafter_value >= best.value or not count:
                best = Proposal(value=drafter_value)
        if self.leads and can_draft:
            # Not the last one: it may end the text, or leave no room behind it.
            mixed, count = self.mixed_value(predicted[:-1][: self.config.limit - 1], drafter_value, share)
            if count and mixed > best.value:
                best = Proposal("mixed", tokens[:count], predicted[:count], mixed)
        return best

    # ---- learning --------------------------------------------------------------------------------------------------

    def learn_lookup(self, match: LookupMatch, outcomes: list[float]) -> None:
        """
        Learns whether looked-up tokens were right.

        Args:
            match ([`LookupMatch`]): Where they were found.
            outcomes (`list[float]`): Of the first tokens, as far as the committed text tells.
        """
        for position, outcome in enumerate(outcomes):
            self.acceptance.update(match, position, outcome)

    def learn_run(self, strength: int, predicted: list[float], right: int) -> None:
        """
        Learns how many looked-up tokens were right, where token by token the estimates may be good and yet runs of
        right tokens end sooner than they say.

        Args:
            strength (`int`): How good lookup looked.
            predicted (`list[float]`): Estimated acceptance of the tokens that the committed text could judge.
            right (`int`): How many of them, from the front, were right.
        """
        reach = expected = 1.0
        for estimate in predicted:
            reach *= estimate
            expected += reach
        self._expected[strength] = _fading_mean(self._expected[strength], expected - 1.0)
        self._right[strength] = _fading_mean(self._right[strength], min(right, 2.0 * expected))

    def learn_drafter(self, strength: int, committed: int, forwards: float, drafted: int) -> None:
        """
        Learns what a cycle of the drafter was worth.

        Args:
            strength (`int`): How good lookup looked, see [`ProposalSwitch.strength`].
            committed (`int`): Tokens committed.
            forwards (`float`): Passes of the drafter, in passes over one token.
            drafted (`int`): Draft tokens verified.
        """
        costs = self.cost_model
        cost = costs.gamma * forwards + costs.verify(drafted) + costs.overhead
        for record in (self._overall, self._records[strength]):
            record.add(committed, forwards, drafted, cost)

    def learn_behind(self, expected: float, accepted: int) -> None:
        """Learns how many draft tokens were accepted behind looked-up ones that were all right, of those expected."""
        self._expected_behind = _MEMORY * self._expected_behind + expected
        self._accepted_behind = _MEMORY * self._accepted_behind + min(accepted, expected)

    def fade(self) -> None:
        """After every cycle: what is known of the drafter fades, so that it is tried again some day."""
        for record in (self._overall, *self._records) if self.mixes else ():
            record.fade(_FADING)


def _fading_mean(total: float, value: float) -> float:
    """A sum that keeps the weight of its prior, and forgets."""
    return _MEMORY * total + (1.0 - _MEMORY) * _PRIOR_TOKENS + value


class LookupProposer:
    """
    Lookup over one text, with what a [`ProposalSwitch`] makes of it.

    Args:
        switch ([`ProposalSwitch`]): Chooses; may have learnt from other texts.
        eos_token_ids (`frozenset[int]`): Tokens behind which nothing is proposed.
    """

    def __init__(self, switch: ProposalSwitch, eos_token_ids: frozenset[int]):
        self.switch = switch
        self.index = LookupIndex()
        self._eos_token_ids = eos_token_ids
        self._tokens: list[int] = []
        self._match: LookupMatch | None = None
        self._predicted: list[float] = []
        self._strength = 0

    def propose(self, limit: int, can_draft: bool = True) -> Proposal:
        """What leads the coming window; see [`ProposalSwitch.choose`]."""
        tokens = self.index.propose(self.switch.size)
        for i, token in enumerate(tokens):
            if token in self._eos_token_ids:
                tokens = tokens[: i + 1]
                break
        self._tokens, self._match = tokens, self.index.match
        predicted = self.switch.predict(self._match, len(tokens))
        if self.switch.fixed is None:
            self._predicted, self._strength = predicted, self.switch.strength(predicted)
        return self.switch.choose(tokens, predicted, limit, can_draft)

    def stop_reason(self, proposal: Proposal, limit: int) -> str:
        """Why a window of looked-up tokens ended, as in [`Cycle`]."""
        tokens = proposal.tokens
        if tokens and tokens[-1] in self._eos_token_ids:
            return "eos"
        if len(tokens) == limit:
            return "length"
        if self._match is None:
            return "no_match"
        return "limit" if len(tokens) == self.switch.size else "policy"

    def learn(
        self,
        proposal: Proposal,
        committed: list[int],
        *,
        accepted: int,
        drafted: int,
        forwards: float,
        cut: bool,
        scores: torch.Tensor | None,
    ) -> None:
        """
        Learns from one verification, and takes the committed tokens into the text.

        Args:
            proposal ([`Proposal`]): What led the window.
            committed (`list[int]`): Tokens committed.
            accepted (`int`), drafted (`int`): Tokens of the window that were accepted, and that were verified.
            forwards (`float`): Passes of the drafter, in passes over one token.
            cut (`bool`): Whether the end of the text cut the window short: it says little of the drafter then.
            scores (`torch.Tensor` of shape `(positions, vocab_size)`, *optional*):
                The target's processed logits, when sampling.
        """
        right = sum(1 for _ in takewhile(bool, map(eq, self._tokens, committed)))
        known = min(right + 1, len(self._tokens), len(committed))  # the committed text judges these
        if known:
            if scores is None:
                outcomes = [float(t == a) for t, a in zip(self._tokens[:known], committed, strict=False)]
            else:
                chosen = torch.tensor(self._tokens[:known], device=scores.device)[:, None]
                outcomes = scores[:known].float().softmax(dim=-1).gather(-1, chosen)[:, 0].tolist()
            self.switch.learn_lookup(self._match, outcomes)
        leading = len(proposal.tokens)
        if not cut and self._predicted:
            judged = leading if proposal.source == "lookup" else len(committed)
            self.switch.learn_run(self._strength, self._predicted[:judged], min(right, judged))
        if not cut and proposal.source == "drafter":
            self.switch.learn_drafter(self._strength, len(committed), forwards, drafted)
        elif not cut and proposal.source == "mixed" and accepted >= leading:
            costs = self.switch.cost_model
            cost = costs.gamma * (forwards - leading) + costs.verify(drafted - leading) + costs.overhead
            expected = max(self.switch.drafter_value(self._strength) * cost - 1.0, 0.1)
            self.switch.learn_behind(expected, accepted - leading)
        self.switch.fade()
        self.index.extend(committed)
