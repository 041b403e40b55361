# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""PPOW's loss written out in loops over windows and tokens: what the trainer's must equal.

Draft distributions come from `extend` and `step`, the target's from plain passes over text and window.
"""

import math
from dataclasses import dataclass, field

import torch

from ppow_hf.drafters import gather_features


@dataclass
class NaiveGroup:
    """One start of one text and the windows drafted from it."""

    ids: list[int]
    start: int
    windows: list[list[int]]
    old_log_probs: list[list[float]] = field(default_factory=list)
    # One number in [0, 1) per token: what rejection sampling is decided by.
    coins: list[list[float]] = field(default_factory=list)


def groups_of(experience, rows) -> list[NaiveGroup]:
    """The windows of an experience, by the rows they were drafted for."""
    starts, tokens = experience.inputs["starts"], experience.inputs["window_tokens"]
    return [
        NaiveGroup(list(rows[row]["input_ids"]), int(starts[row, place]), tokens[row, place].tolist())
        for row, place in (starts >= 0).nonzero().tolist()
    ]


def toss_coins(groups: list[NaiveGroup], experience, seed: int) -> None:
    """Gives groups the coins of an experience: the generator is used for the choice of windows first."""
    generator = torch.Generator().manual_seed(2 * seed * 1_000_003)
    torch.empty(experience.inputs["input_ids"].shape, dtype=torch.float64).exponential_(generator=generator)
    coins = iter(torch.rand(experience.mask.shape, generator=generator).tolist())
    for group in groups:
        group.coins = [next(coins) for _ in group.windows]


class NaivePPOW:
    """The loss of given windows for a drafter, a target and a configuration, as a number."""

    def __init__(self, drafter, target, args, eos=frozenset()):
        self.drafter, self.target, self.args, self.eos = drafter, target, args, eos

    @torch.no_grad()
    def draft_logits(self, ids: list[int], start: int, window: list[int]) -> list[torch.Tensor]:
        text = torch.tensor([ids[:start]])
        features = None
        if self.drafter.feature_layer_ids:
            output = self.target(text, output_hidden_states=True)
            features = gather_features(output.hidden_states, self.drafter.feature_layer_ids)[:, :-1]
        state = self.drafter.new_state()
        logits = [self.drafter.extend(state, text, features)[0]]
        for token in window[:-1]:
            logits.append(self.drafter.step(state, torch.tensor([token]))[0])
        return [row.double() for row in logits]

    @torch.no_grad()
    def target_logits(self, ids: list[int], start: int, window: list[int]) -> list[torch.Tensor]:
        text = torch.tensor([ids[:start] + window[:-1]])
        return list(self.target(text).logits[0, start - 1 :].double())

    def kept(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of the draft vocabulary, not renormalised."""
        probs = logits.softmax(-1)
        ids = self.drafter.draft_token_ids
        return probs if ids is None else probs[ids]

    def column(self, token: int) -> int:
        ids = self.drafter.draft_token_ids
        return token if ids is None else ids.tolist().index(token)

    def log_probs(self, ids, start, window) -> list[float]:
        logits = self.draft_logits(ids, start, window)
        return [
            (row / self.args.rollout_temperature).log_softmax(-1)[self.column(token)].item()
            for row, token in zip(logits, window, strict=True)
        ]

    def remember(self, groups: list[NaiveGroup]) -> None:
        """Takes the present drafter for the one that drafted the windows."""
        for group in groups:
            group.old_log_probs = [self.log_probs(group.ids, group.start, window) for window in group.windows]

    def drafted(self, window: list[int]) -> int:
        """Tokens of a window up to the end of the text."""
        return next((k + 1 for k, token in enumerate(window) if token in self.eos), len(window))

    def accepted(self, group: NaiveGroup, window: list[int]) -> int:
        """Tokens that are the target's argmax, up to the first that is not."""
        target = self.target_logits(group.ids, group.start, window)
        count = 0
        while count < self.drafted(window) and window[count] == int(target[count].argmax()):
            count += 1
        return count

    def chances(self, group: NaiveGroup, index: int) -> list[float]:
        """`min(1, p / q)` of every token of a window, both at the rollout temperature."""
        window, old = group.windows[index], group.old_log_probs[index]
        chances = []
        for row, token, log_q in zip(self.target_logits(group.ids, group.start, window), window, old, strict=True):
            log_p = (row / self.args.rollout_temperature).log_softmax(-1)[token].item()
            chances.append(min(1.0, math.exp(log_p - log_q)))
        return chances[: self.drafted(window)]

    def refused_at(self, group: NaiveGroup, index: int) -> int:
        """Tokens before the first that verification refuses: greedy, or by the coins."""
        if self.args.acceptance == "greedy":
            return self.accepted(group, group.windows[index])
        count = 0
        for coin, chance in zip(group.coins[index], self.chances(group, index), strict=False):
            if coin >= chance:
                break
            count += 1
        return count

    def length(self, group: NaiveGroup, index: int) -> float:
        """k, of the kind that is rewarded."""
        if self.args.acceptance != "expected":
            return self.refused_at(group, index)
        total, alive = 0.0, 1.0
        for chance in self.chances(group, index):
            alive *= chance
            total += alive
        return total

    def target_gap(self, group: NaiveGroup, window: list[int]) -> float:
        """Delta at temperature 1, as far as both windows go."""
        own = list(group.ids[: group.start])
        target = self.target_logits(group.ids, group.start, window)
        gap = 0.0
        for k in range(self.drafted(window)):
            with torch.no_grad():
                row = self.target(torch.tensor([own])).logits[0, -1].double().log_softmax(-1)
            own.append(int(row.argmax()))
            gap += row.max().item() - target[k].log_softmax(-1)[window[k]].item()
            if own[-1] in self.eos:
                break
        return gap

    def rewards(self, group: NaiveGroup) -> list[float]:
        args, rewards = self.args, []
        for index, window in enumerate(group.windows):
            k = self.length(group, index)
            reward = k / (k * args.cost_ratio + 1)
            refused = self.refused_at(group, index) == 0
            if args.proximity_eta and refused and self.target_gap(group, window) < args.proximity_epsilon:
                reward += args.proximity_eta
            rewards.append(reward)
        return rewards

    def advantages(self, rewards: list[float]) -> list[float]:
        mean = sum(rewards) / len(rewards)
        spread = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
        if max(rewards) - min(rewards) < 1e-9:
            return [0.0] * len(rewards)
        scale = spread + 1e-4 if self.args.scale_rewards == "group" else 1.0
        return [(r - mean) / scale for r in rewards]

    def credited(self, group: NaiveGroup) -> list[list[float]]:
        """
        What every token of every window is credited with. That it is the right thing to be credited with is shown
        without it, over every window there is: `test_ppow_gradient`, and for coins `tests/rl/test_advantages`.
        """
        args, rewards = self.args, self.rewards(group)
        advantages = self.advantages(rewards)
        refused = [self.refused_at(group, index) for index in range(len(rewards))]
        mean = sum(rewards) / len(rewards)
        spread = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5 + 1e-4
        table = []
        for index, advantage in enumerate(advantages):
            row = []
            for k in range(args.window_size):
                others = [h for h in range(len(rewards)) if h != index and refused[h] >= k]
                if args.credit == "window" or (args.proximity_eta and max(refused) == 0):
                    row.append(advantage)
                elif k > refused[index]:
                    row.append(0.0)
                elif args.baseline == "group":
                    row.append(advantage)
                elif not others:
                    row.append(0.0)
                else:
                    other = sum(rewards[h] for h in others) / len(others)
                    row.append((rewards[index] - other) / (spread if args.scale_rewards == "group" else 1.0))
            table.append(row)
        return table

    def loss(self, groups: list[NaiveGroup]) -> float:
        """The loss under the present drafter, of windows that an earlier one drafted."""
        args = self.args
        policy = divergence = length = 0.0
        tokens = windows = 0
        weight_sum = 0.0
        for group in groups:
            for index, (window, advantages, old) in enumerate(
                zip(group.windows, self.credited(group), group.old_log_probs, strict=True)
            ):
                count = self.drafted(window)
                last = self.refused_at(group, index)
                chances = self.chances(group, index)
                now = self.log_probs(group.ids, group.start, window)
                draft = self.draft_logits(group.ids, group.start, window)
                target = self.target_logits(group.ids, group.start, window)
                heat = 1.0 if args.acceptance == "greedy" else args.rollout_temperature
                alive, reach = 1.0, 1.0
                for k in range(count):
                    credited = advantages[k]
                    ratio = torch.tensor(now[k] - old[k]).exp().item()
                    clipped = min(max(ratio, 1 - args.epsilon), 1 + args.epsilon)
                    policy -= min(ratio * credited, clipped * credited)
                    q, p = (draft[k] / heat).softmax(-1), self.kept(target[k] / heat)
                    one, other = (p / p.sum(), q) if args.kl_direction == "forward" else (q, p / p.sum())
                    kl = (one * (one.log() - other.log())).sum().item()
                    if args.kl_weighting == "reach":
                        kl *= reach
                    divergence += kl
                    weight_sum += reach
                    reach *= float(k < last) if args.acceptance == "greedy" else chances[k]
                    alive *= torch.minimum(p, q).sum().item()
                    length += alive
                tokens += count
                windows += 1
        anchor = sum(map(self.anchor, groups)) / len(groups) if args.anchor_weight else 0.0
        return (
            args.policy_weight * policy / tokens
            + args.beta * divergence / (weight_sum if args.kl_weighting == "reach" else tokens)
            - args.expected_length_weight * length / windows
            + args.anchor_weight * anchor
        )

    def anchor(self, group: NaiveGroup) -> float:
        """KL to the target along the text's own window, per token."""
        window = group.ids[group.start : group.start + self.args.window_size]
        total = 0.0
        for draft, target in zip(
            self.draft_logits(group.ids, group.start, window),
            self.target_logits(group.ids, group.start, window),
            strict=True,
        ):
            p = self.kept(target)
            p = p / p.sum()
            total += (p * (p.log() - draft.log_softmax(-1))).sum().item()
        return total / len(window)
