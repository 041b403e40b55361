# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Window policies: when to stop drafting.

**The rule that keeps sampling lossless.** A policy is asked two questions about every draft token:

- `wants(features...)`, *before* the token is drawn: may look at the draft distribution the token would come from, at
  everything drawn and kept before it, and at the past; never at the token itself.
- `continues(...)`, *after* the token is drawn and kept for good: may look at it too. It decides only whether the next
  draft distribution is computed.

A token that is drawn is therefore always sent to verification, and no token is ever dropped because of its own value,
which would skew the sampled text (leaving out tokens the drafter found improbable makes them rarer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .acceptance import DraftStats
from .cost_model import CostModel
from .token_price import price_of_next
from .window_config import WindowConfig


@dataclass(slots=True)
class Outcome:
    """
    What verification said about one window.

    Args:
        drafted (`int`): Draft tokens verified.
        accepted (`int`): How many of them, from the front, were accepted.
        committed (`int`): Tokens added to the text.
        forwards (`int`): Drafter forward passes spent on the window.
        divergence (`float`, *optional*): Running divergence after this verification, in the unit of the config.
    """

    drafted: int
    accepted: int
    committed: int
    forwards: int
    divergence: float | None = None


class WindowPolicy:
    """
    Base of the policies. One instance serves one `generate` call (one row of a batch).

    Args:
        config ([`WindowConfig`]): Limits and parameters.
    """

    # Whether the decisions need numbers on the host. Without, a window is drafted without any device synchronisation.
    needs_stats = False

    def __init__(self, config: WindowConfig):
        self.config = config
        self.size = config.size

    @property
    def rate(self) -> float | None:
        """`float`: Running tokens per unit cost, for policies that keep one."""
        return None

    def target_size(self) -> int:
        """`int`: Most tokens to draft in the coming window, known before it begins."""
        return self.size

    def follow(self, estimate: float) -> None:
        """
        Tells, after `target_size`, of a token that another source puts before the drafter's own.

        Args:
            estimate (`float`): Its estimated acceptance, given that those before it are accepted.
        """

    def wants(self, position: int, estimate: float, stats: DraftStats | None) -> bool:
        """
        Whether to draw token `position` (from 0) and send it to verification. The token is not known yet.

        Args:
            position (`int`): Index in the window.
            estimate (`float`): Estimated acceptance probability of the token, given that all before it are accepted.
            stats ([`DraftStats`], *optional*): Its draft distribution; `None` unless `needs_stats`.
        """
        return True

    def continues(self, position: int, estimate: float, stats: DraftStats | None, probability: float | None) -> bool:
        """
        Whether to pay for the next draft distribution, after token `position` was kept.

        Args:
            position (`int`): Index of the token just kept.
            estimate (`float`): As in `wants`.
            stats ([`DraftStats`], *optional*): As in `wants`.
            probability (`float`, *optional*): Draft probability of the kept token; `None` unless `needs_stats`.
        """
        return True

    def update(self, outcome: Outcome) -> None:
        """Learns from the verification of the window."""


class FixedPolicy(WindowPolicy):
    """Always `size` tokens."""


class HeuristicPolicy(WindowPolicy):
    """`grow` more tokens after a fully accepted window, else `shrink` fewer (transformers' heuristic schedule)."""

    def __init__(self, config: WindowConfig):
        super().__init__(config)
        self.size = min(max(config.size, config.min_size, 1), config.max_size)

    def update(self, outcome: Outcome) -> None:
        # A window cut short by the length budget says nothing about its size.
        if outcome.drafted == 0:
            return
        full = outcome.accepted == outcome.drafted
        size = self.size + self.config.grow if full else self.size - self.config.shrink
        # Never 0: with nothing drafted there would be nothing to grow from again.
        self.size = min(max(size, self.config.min_size, 1), self.config.max_size)


class ConfidencePolicy(WindowPolicy):
    """Stops after keeping a token whose draft probability is below `threshold`."""

    needs_stats = True

    def target_size(self) -> int:
        return self.config.max_size

    def continues(self, position: int, estimate: float, stats: DraftStats | None, probability: float | None) -> bool:
        return position + 1 < self.config.min_size or probability >= self.config.threshold


class DivergencePolicy(WindowPolicy):
    r"""
    The running divergence between drafter and target sets the window: short where they part, long where they agree.

    With total variation `D`, a draft token is accepted with probability `a = 1 - D`, and the expected run of accepted
    tokens is `a / (1 - a)`; the window is `stretch` times that, between `min_size` and `max_size`. A KL divergence is
    turned into the total variation that bounds it, `D = sqrt(1 - exp(-KL))` (Bretagnolle and Huber, 1979). The idea of
    a divergence-driven window at inference is reported of PPOW; this formula is ours.
    """

    def __init__(self, config: WindowConfig):
        super().__init__(config)
        self.size = min(max(config.size, config.min_size), config.max_size)

    def window_for(self, divergence: float) -> int:
        """
        Args:
            divergence (`float`): Running divergence, in the unit of `config.divergence_metric`.

        Returns:
            `int`: The window.
        """
        if self.config.divergence_metric == "kl":
            divergence = math.sqrt(1.0 - math.exp(-max(divergence, 0.0)))
        divergence = min(max(divergence, 1e-6), 1.0)
        run = self.config.stretch * (1.0 - divergence) / divergence
        low = max(self.config.min_size, 1)  # at 0 nothing would be verified, and the divergence could never fall again
        return int(min(max(round(run), low), self.config.max_size))

    def update(self, outcome: Outcome) -> None:
        if outcome.divergence is not None:
            self.size = self.window_for(outcome.divergence)


class CostAwarePolicy(WindowPolicy):
    r"""
    Drafts and verifies a token only while it pays (ours).

    In units of one plain target step, with `gamma` the cost of a draft step, `v(n)` that of verifying `n` draft
    tokens, and `A_i` the chance that the first `i` draft tokens are all accepted:

    - a token whose distribution is known (its draft cost is spent) is sent while `A_i > rho * (v(i) - v(i-1))`;
    - the next distribution is computed while the *expected* `A_{i+1} > rho * (gamma + v(i+1) - v(i))`.

    Where `v` has a jump, a token may pay together with those expected behind it, see [`price_of_next`].

    `rho` is the running rate of committed tokens per unit cost. At the fixed point, where `rho` is the rate that the
    rule itself achieves, the rule maximises that rate (fractional programming; Dinkelbach, 1967).

    Args:
        config ([`WindowConfig`]): Limits and parameters.
        cost_model ([`CostModel`]): Measured costs.
    """

    needs_stats = True

    def __init__(self, config: WindowConfig, cost_model: CostModel):
        super().__init__(config)
        self.cost_model = cost_model
        self._gamma = cost_model.gamma
        self._verify = [cost_model.verify(n) for n in range(config.max_size + 1)]
        # The prior counts as ten cycles' worth, so that one lucky window does not swing the rate.
        self._prior_cost = min(10.0, config.rate_memory)
        self._cost = self._prior_cost
        self._tokens = config.initial_rate * self._prior_cost
        self._reach = 1.0  # chance that everything kept so far is accepted
        self._typical = 0.6  # running mean of the estimates behind the first token

    @property
    def rate(self) -> float:
        return self._tokens / self._cost

    def target_size(self) -> int:
        self._reach = 1.0
        return self.config.max_size

    def follow(self, estimate: float) -> None:
        self._reach *= estimate

    def wants(self, position: int, estimate: float, stats: DraftStats | None) -> bool:
        if position > 0:
            self._typical += 0.02 * (estimate - self._typical)
        if position < self.config.min_size:
            return True
        return self._reach * estimate > self.rate * self._price(position)

    def continues(self, position: int, estimate: float, stats: DraftStats | None, probability: float | None) -> bool:
        self._reach *= estimate
        if position + 1 < self.config.min_size:
            return True
        if position + 2 > self.config.max_size:
            return False
        # The next estimate is not known before its draft step is paid for: expect one between this one and the usual.
        expected = self._reach * (0.5 * estimate + 0.5 * self._typical)
        return expected > self.rate * self._price(position + 1, first=self._gamma)

    def _price(self, count: int, first: float = 0.0) -> float:
        return price_of_next(self._verify, count, self._typical, self._gamma, first)

    def update(self, outcome: Outcome) -> None:
        cost = self._gamma * outcome.forwards + self.cost_model.verify(outcome.drafted) + self.cost_model.overhead
        keep = max(0.0, 1.0 - cost / self.config.rate_memory)
        self._cost = self._cost * keep + cost
        self._tokens = self._tokens * keep + outcome.committed


def make_policy(config: WindowConfig, cost_model: CostModel | None = None) -> WindowPolicy:
    """
    Builds the policy a configuration names.

    Args:
        config ([`WindowConfig`]): The window configuration.
        cost_model ([`CostModel`], *optional*): Needed by `"cost_aware"`.

    Raises:
        ValueError: If `"cost_aware"` has no cost model.
    """
    if config.policy == "cost_aware":
        if cost_model is None:
            raise ValueError(
                "The `cost_aware` window needs a cost model: measure one with `CostModel.measure(target, drafter)`."
            )
        return CostAwarePolicy(config, cost_model)
    simple = {
        "fixed": FixedPolicy,
        "heuristic": HeuristicPolicy,
        "confidence": ConfidencePolicy,
        "divergence": DivergencePolicy,
    }
    return simple[config.policy](config)
