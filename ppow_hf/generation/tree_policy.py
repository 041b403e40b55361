# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Tree policies: which nodes a draft tree has, and which of them the drafter is asked to go on from.

A node's *gain* is the estimated chance that it is accepted together with everything above it: the tokens the tree can
expect to commit is the sum of its nodes' gains. Sampling stays lossless as with windows: a node's gain is known before
its token is drawn, and a token that is drawn is verified.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .cost_model import CostModel
from .token_price import price_of_next
from .tree_config import TreeConfig
from .window_config import WindowConfig

# Most nodes of a level that are gone on from: EAGLE-2's number (arXiv 2406.16858).
MOST_ROWS = 10


class TreePolicy:
    """
    Base of the tree policies. One instance serves one `generate` call.

    Args:
        config ([`WindowConfig`]): With a `tree`.
    """

    def __init__(self, config: WindowConfig):
        self.tree: TreeConfig = config.tree
        self.min_size = min(config.min_size, self.tree.max_nodes)

    @property
    def rate(self) -> float | None:
        """`float`: Running tokens per unit cost, for policies that keep one."""
        return None

    def room(self, count: int, levels_left: int) -> int:
        """
        Most nodes to draw in the coming level, where what is drawn must be kept.

        Args:
            count (`int`): Nodes of the levels above.
            levels_left (`int`): Levels that may follow, the coming one included.
        """
        return self.tree.max_nodes - count

    def take(
        self, gains: Sequence[float], count: int = 0, room: int | None = None, follow: float = 0.0, levels: int = 0
    ) -> int:
        """
        How many nodes to add.

        Args:
            gains (`Sequence[float]`): Of the nodes to choose from, highest first.
            count (`int`, *optional*, defaults to 0): Nodes already in the tree.
            room (`int`, *optional*): Most to add; what `max_nodes` leaves by default.
            follow (`float`, *optional*, defaults to 0.0): Highest gain of those that the tree may still grow from.
            levels (`int`, *optional*, defaults to 0): Most levels it may grow by.
        """
        room = self.tree.max_nodes - count if room is None else min(room, self.tree.max_nodes - count)
        gains = gains[: max(room, 0)]
        least = min(max(self.min_size - count, 0), len(gains))
        return self.worth(gains, count, least, follow, levels)

    def worth(self, gains: Sequence[float], count: int, least: int, follow: float, levels: int) -> int:
        """How many nodes to add where there is room for all of them, at least `least`; see `take`."""
        raise NotImplementedError

    def observe(self, estimate: float) -> None:
        """Learns the acceptance estimate of a node's most probable child, below the first level."""

    def go_on_from(self, gains: Sequence[float], estimates: Sequence[float | None], count: int, level: int) -> int:
        """
        How many nodes of the last level to go on from, of those whose gains are highest.

        Args:
            gains (`Sequence[float]`): Of the level's nodes in the tree, highest first.
            estimates (`Sequence[float]`): Acceptance estimate of each, given its parent; `None` for later children.
            count (`int`): Nodes in the tree.
            level (`int`): Levels in the tree.
        """
        raise NotImplementedError

    def update(self, nodes: int, committed: int, steps: Sequence[int]) -> None:
        """
        Learns from the verification of a tree.

        Args:
            nodes (`int`): Nodes verified.
            committed (`int`): Tokens added to the text.
            steps (`Sequence[int]`): Nodes fed to each of the drafter's passes, the text counted as one.
        """


class FixedTreePolicy(TreePolicy):
    """Always `max_depth` levels, and of them the `max_nodes` nodes of highest gain (EAGLE-2, arXiv 2406.16858)."""

    def room(self, count: int, levels_left: int) -> int:
        # Evenly: nodes that must be kept cannot make room for better ones further down.
        return -(-(self.tree.max_nodes - count) // levels_left)

    def worth(self, gains: Sequence[float], count: int, least: int, follow: float, levels: int) -> int:
        return len(gains)

    def go_on_from(self, gains: Sequence[float], estimates: Sequence[float | None], count: int, level: int) -> int:
        return min(len(gains), max(self.tree.branching, 1))


class CostAwareTreePolicy(TreePolicy):
    r"""
    Adds the nodes of highest gain, as many as are worth most, and another level as long as the level pays (ours).

    In units of one plain target step, with `gamma` the cost of a draft step, `v(n)` that of verifying `n` nodes, and
    `rho` the running rate of committed tokens per unit cost:

    - of all nodes at hand, `n` are added for which the sum of their gains less `rho * v(n)` is largest. While `v` is
      convex, that is every node whose gain exceeds `rho * (v(n) - v(n-1))`;
    - where that leaves some out before a jump of `v` that they would pay for together with what is expected behind
      them, they stay in until it is known what is behind them (greedy), or for good (sampling: what is drawn stays);
    - a further draft step, for all nodes worth going on from at once, is paid for while what their most probable
      children are expected to gain beyond their own verification exceeds `rho * gamma`.

    With one child per node and a convex `v` these are the rules of [`CostAwarePolicy`].

    Args:
        config ([`WindowConfig`]): With a `tree`.
        cost_model ([`CostModel`]): Measured costs.
    """

    def __init__(self, config: WindowConfig, cost_model: CostModel):
        super().__init__(config)
        self.cost_model = cost_model
        self._rate = _Rate(config, cost_model)
        self._gamma = cost_model.gamma
        self._verify = [cost_model.verify(n) for n in range(self.tree.max_nodes + 1)]
        self._typical = 0.6  # running mean of the estimates behind the first level

    @property
    def rate(self) -> float:
        return self._rate.value

    def worth(self, gains: Sequence[float], count: int, least: int, follow: float, levels: int) -> int:
        rate, verify = self.rate, self._verify
        gained, best, taken = 0.0, -math.inf, 0
        for n in range(len(gains) + 1):
            value = gained - rate * verify[count + n]
            if n >= least and value > best:
                best, taken = value, n
            if n < len(gains):
                gained += gains[n]
        return max(taken, self._worth_ahead(gains, count, follow, levels)) if levels else taken

    def _worth_ahead(self, gains: Sequence[float], count: int, follow: float, levels: int) -> int:
        """How many are worth having as part of the best tree that one path of `levels` more nodes can make of them."""
        rate, verify = self.rate, self._verify
        gained, best, taken = 0.0, -rate * verify[count], 0
        n, ahead = 0, follow * self._typical - rate * self._gamma
        for total in range(count + 1, len(verify)):
            if n < len(gains) and gains[n] >= ahead:
                gained += gains[n]
                n += 1
            elif levels and ahead > 0.0:
                gained += ahead
                levels -= 1
                follow *= self._typical
                ahead = follow * self._typical - rate * self._gamma
            elif n < len(gains):
                gained += gains[n]
                n += 1
            else:
                break
            if gained - rate * verify[total] > best:
                best, taken = gained - rate * verify[total], n
        return taken

    def observe(self, estimate: float) -> None:
        self._typical += 0.02 * (estimate - self._typical)

    def go_on_from(self, gains: Sequence[float], estimates: Sequence[float | None], count: int, level: int) -> int:
        if count >= self.tree.max_nodes:
            return 0
        rate = self.rate
        # Up to the most nodes of one path from here, over which a jump of the curve is shared.
        reachable = self._verify[: count + 1 + max(self.tree.max_depth - level, 1)]
        verification = rate * price_of_next(reachable, count, self._typical, self._gamma)
        best = total = 0.0
        rows = 0
        for taken, (gain, estimate) in enumerate(zip(gains[:MOST_ROWS], estimates, strict=False), start=1):
            # The child's estimate is not known before its draft step is paid for: expect one between its parent's, if
            # that is a first choice itself, and the usual.
            expected = 0.5 * (self._typical if estimate is None else estimate) + 0.5 * self._typical
            total += max(gain * expected - verification, 0.0)
            profit = total - rate * self._gamma * self.cost_model.level_cost(taken)
            if profit > best:
                best, rows = profit, taken
        if rows == 0 and level < self.min_size and gains:
            return 1
        return rows

    def update(self, nodes: int, committed: int, steps: Sequence[int]) -> None:
        self._rate.add(sum(self.cost_model.level_cost(fed) for fed in steps), nodes, committed)


class _Rate:
    """Committed tokens per unit cost, over the last cycles: that of [`CostAwarePolicy`]."""

    def __init__(self, config: WindowConfig, cost_model: CostModel):
        self._cost_model, self._memory = cost_model, config.rate_memory
        # The prior counts as ten cycles' worth, so that one lucky tree does not swing the rate.
        self._cost = min(10.0, config.rate_memory)
        self._tokens = config.initial_rate * self._cost

    @property
    def value(self) -> float:
        return self._tokens / self._cost

    def add(self, steps: float, nodes: int, committed: int) -> None:
        model = self._cost_model
        cost = model.gamma * steps + model.verify(nodes) + model.overhead
        keep = max(0.0, 1.0 - cost / self._memory)
        self._cost = self._cost * keep + cost
        self._tokens = self._tokens * keep + committed


def make_tree_policy(config: WindowConfig, cost_model: CostModel | None = None) -> TreePolicy:
    """
    Builds the tree policy a configuration names.

    Args:
        config ([`WindowConfig`]): With a `tree`.
        cost_model ([`CostModel`], *optional*): Needed by `"cost_aware"`.

    Raises:
        ValueError: If `"cost_aware"` has no cost model.
    """
    if config.policy == "fixed":
        return FixedTreePolicy(config)
    if cost_model is None:
        raise ValueError(
            "The `cost_aware` tree needs a cost model: measure one with `CostModel.measure(target, drafter)`."
        )
    return CostAwareTreePolicy(config, cost_model)
