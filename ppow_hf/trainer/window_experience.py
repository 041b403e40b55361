# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""From a batch of texts to scored windows: target pass, selection, rollout, verification, rewards, advantages."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..drafters import DrafterModel
from ..generation import CostModel
from ..rl import (
    ProximityReward,
    Rollouts,
    SelectedWindows,
    TargetPrefix,
    Verification,
    combine_rewards,
    combine_token_rewards,
    criticality,
    expected_accepted,
    greedy_accepted,
    group_advantages,
    prefix_credit_mask,
    reach_probabilities,
    reward_name,
    rollout_windows,
    sampled_accepted,
    select_windows,
    target_prefix,
    target_windows,
    token_advantages,
    verify_windows,
    window_target_gap,
    window_values,
)
from .ppow_config import PPOWConfig


@dataclass
class Experience:
    """
    Scored windows of a batch: `N` windows of `K` tokens (starts that are missing left out), in groups of `G`.

    Args:
        inputs (`dict`): What the drafter needs to score the windows: `input_ids`, `target_features`, `starts` and
            `window_tokens`.
        chosen (`torch.Tensor` of shape `(B, S)`, bool): Which starts are real; `N = chosen.sum() * G`.
        columns, old_log_probs, mask, advantages (`torch.Tensor` of shape `(N, K)`): The drafted tokens as columns of
            the draft logits, their log-probabilities when drafted, which positions were drafted, and their advantages.
        target_probs (`torch.Tensor` of shape `(N, K, draft_vocab_size)`): The target's distributions there.
        reach (`torch.Tensor` of shape `(N, K)`): Chance that verification gets to each position.
        text_tokens, text_probs: The same for the text's own windows, if an anchor needs them.
        metrics (`dict[str, tuple[float, float]]`): Sums and counts, to be reduced over processes.
    """

    inputs: dict[str, Any]
    chosen: torch.Tensor
    columns: torch.LongTensor
    old_log_probs: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    target_probs: torch.Tensor
    reach: torch.Tensor
    text_tokens: torch.LongTensor | None = None
    text_probs: torch.Tensor | None = None
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)


def window_mask_of(loss_mask: torch.Tensor) -> torch.Tensor:
    """
    The target's own tokens, as far as windows may follow them: drafting begins behind two tokens at the earliest (a
    prompt and the first generated token), also where a text has no prompt.
    """
    loss_mask = loss_mask.bool().clone()
    loss_mask[:, 0] = False
    return loss_mask


class ExperienceMaker:
    """
    Makes [`Experience`] from batches of texts.

    Args:
        target ([`~transformers.PreTrainedModel`]): The frozen target.
        args ([`PPOWConfig`]): Configuration.
        reward_funcs (`Sequence[Callable]`): Reward functions, in GRPO's calling convention.
        cost_model ([`CostModel`], *optional*): Measured costs, for the rewards that read them.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*): Decodes prompts and windows for
            reward functions that want text.
        eos_token_ids (`frozenset[int]`): Tokens that end the text.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        args: PPOWConfig,
        reward_funcs: Sequence[Callable],
        cost_model: CostModel | None,
        processing_class: PreTrainedTokenizerBase | None,
        eos_token_ids: frozenset[int],
    ):
        self.target = target
        self.args = args
        self.reward_funcs = list(reward_funcs)
        self.cost_model = cost_model
        self.processing_class = processing_class
        self.eos_token_ids = eos_token_ids
        self.seconds: dict[str, float] = {}
        # The target's own windows cost passes of their own, which only the proximity reward (or an unknown one) needs.
        self.needs_gap = any(isinstance(f, ProximityReward) or not _is_ours(f) for f in self.reward_funcs)

    @contextmanager
    def timed(self, phase: str):
        """Adds the time of a block to `seconds[phase]`."""
        device = self.target.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    @torch.no_grad()
    def __call__(
        self,
        drafter: DrafterModel,
        inputs: dict[str, Any],
        *,
        law: str,
        seed: int,
        precision: Callable[[], AbstractContextManager],
    ) -> Experience:
        """
        Args:
            drafter ([`DrafterModel`]): The policy, unwrapped.
            inputs (`dict`): A batch with `input_ids`, `attention_mask`, `loss_mask` and further columns.
            law (`str`): `"adaw"` or `"uniform"`.
            seed (`int`): Of everything drawn here; the same seed gives the same windows.
            precision (`Callable[[], AbstractContextManager]`): Makes the context in which the drafter runs, e.g. mixed
                precision; the policy that is rolled out should be the one that is trained.
        """
        args = self.args
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        loss_mask = window_mask_of(inputs["loss_mask"].bool() & attention_mask.bool())
        generator = torch.Generator().manual_seed(seed)
        device_generator = torch.Generator(input_ids.device).manual_seed(seed + 1)
        metrics: dict[str, tuple[float, float]] = {}

        with self.timed("target"):
            prefix = target_prefix(self.target, input_ids, attention_mask, drafter.feature_layer_ids)
        with self.timed("selection"):
            values = None
            if law == "adaw":
                values = self._criticality(drafter, prefix, loss_mask, precision)
            selected = select_windows(
                loss_mask,
                args.window_size,
                args.num_windows,
                values=values,
                uniform_share=args.uniform_share,
                min_distance=args.min_distance,
                generator=generator,
            )
            self._selection_metrics(metrics, selected, values)
        with self.timed("rollout"), precision():
            rollouts = rollout_windows(
                drafter,
                input_ids,
                prefix.features,
                selected.starts,
                window_size=args.window_size,
                group_size=args.num_generations,
                temperature=args.rollout_temperature,
                greedy_window=args.greedy_window,
                eos_token_ids=self.eos_token_ids,
                generator=device_generator,
            )
        temperature = 1.0 if args.acceptance == "greedy" else args.rollout_temperature
        with self.timed("verification"):
            verification = verify_windows(
                self.target,
                prefix,
                selected.starts,
                rollouts.tokens,
                draft_token_ids=drafter.draft_token_ids,
                temperature=temperature,
            )
            preferred = None
            if self.needs_gap:
                preferred = target_windows(
                    self.target, prefix, selected.starts, args.window_size, temperature=temperature
                )[1]
        return self._score(inputs, drafter, prefix, selected, rollouts, verification, preferred, generator, metrics)

    # ---- windows ---------------------------------------------------------------------------------------------------

    def _criticality(
        self,
        drafter: DrafterModel,
        prefix: TargetPrefix,
        loss_mask: torch.Tensor,
        precision: Callable[[], AbstractContextManager],
    ) -> torch.Tensor:
        """Mean v_t of the window at every start, `(B, T)`."""
        # Token t is foretold by the target from t - 1, by the drafter from its column t - prediction_offset.
        wanted = loss_mask.clone()
        wanted[:, : drafter.prediction_offset] = False
        rows, tokens = wanted.nonzero(as_tuple=True)
        with precision():
            project = drafter.text_logits(prefix.input_ids, prefix.features)

        def draft_logits(index: torch.Tensor) -> torch.Tensor:
            with precision():
                return project(rows[index], tokens[index] - drafter.prediction_offset)

        result = criticality(
            lambda index: prefix.logits_at(rows[index], tokens[index] - 1),
            draft_logits,
            len(rows),
            drafter.draft_token_ids,
            device=loss_mask.device,
        )
        values = torch.zeros(loss_mask.shape, device=loss_mask.device)
        values[rows, tokens] = result.value
        return window_values(values, self.args.window_size)

    def _selection_metrics(
        self, metrics: dict[str, tuple[float, float]], selected: SelectedWindows, values: torch.Tensor | None
    ) -> None:
        metrics["skipped_rows"] = (float(selected.skipped_rows), 1.0)
        if values is not None:
            for name, mean in zip(("chosen", "all"), selected.mean_values(values), strict=True):
                if mean is not None:
                    metrics[f"criticality/{name}"] = (mean, 1.0)

    # ---- rewards and advantages ------------------------------------------------------------------------------------

    def _score(
        self,
        inputs: dict[str, Any],
        drafter: DrafterModel,
        prefix: TargetPrefix,
        selected: SelectedWindows,
        rollouts: Rollouts,
        verification: Verification,
        preferred: torch.Tensor | None,
        generator: torch.Generator,
        metrics: dict[str, tuple[float, float]],
    ) -> Experience:
        args = self.args
        chosen = selected.mask
        tokens, columns, draft, mask = (
            tensor[chosen].flatten(0, 1)
            for tensor in (rollouts.tokens, rollouts.columns, rollouts.log_probs, rollouts.mask)
        )
        argmax, target, probs = (
            tensor[chosen].flatten(0, 1)
            for tensor in (verification.argmax, verification.log_probs, verification.draft_probs)
        )
        matched = greedy_accepted(tokens, argmax, mask)
        if args.acceptance == "greedy":
            accepted = refused_at = matched
        else:
            refused_at = sampled_accepted(target.cpu(), draft.cpu(), generator, mask.cpu()).to(target.device)
            accepted = refused_at if args.acceptance == "sampled" else expected_accepted(target, draft, mask)
        advantages = torch.zeros(len(tokens), device=target.device)
        if len(tokens):
            facts = {
                # First, so that no column of the dataset takes the place of a fact about the window.
                **self._texts(inputs, selected, tokens, mask),
                "completion_ids": [row[keep].tolist() for row, keep in zip(tokens.cpu(), mask.cpu(), strict=True)],
                "accepted": accepted.tolist(),
                "first_rejected": (refused_at == 0).tolist(),
                "target_argmax": argmax.tolist(),
                "window_size": mask.sum(-1).tolist(),
                "cost_ratio": self.cost_model.gamma if args.cost_ratio == "measured" else args.cost_ratio,
                "cost_model": self.cost_model,
            }
            if preferred is not None:
                best = preferred[chosen].repeat_interleave(args.num_generations, dim=0)
                facts["target_gap"] = window_target_gap(best, target, mask).tolist()
            advantages = self._advantages(facts, mask, metrics).to(target.device)
            self._acceptance_metrics(metrics, matched, accepted, mask)
        experience = Experience(
            inputs={
                "input_ids": prefix.input_ids,
                "target_features": prefix.features,
                "starts": selected.starts,
                "window_tokens": rollouts.tokens,
            },
            chosen=chosen,
            columns=columns,
            old_log_probs=draft,
            mask=mask,
            advantages=token_advantages(advantages, mask, args.credit, refused_at),
            target_probs=probs,
            reach=self._reach(target, draft, mask, matched),
            metrics=metrics,
        )
        if args.anchor_weight:
            self._add_text_windows(experience, drafter, prefix, selected)
        return experience

    def _advantages(
        self, facts: dict[str, Any], mask: torch.Tensor, metrics: dict[str, tuple[float, float]]
    ) -> torch.Tensor:
        """Advantages of the windows, `(N,)`, or of their tokens where a reward is token-level, `(N, K)`."""
        args = self.args
        total, table = combine_rewards(self.reward_funcs, args.reward_weights, **facts)
        by_token = combine_token_rewards(self.reward_funcs, args.reward_weights, width=args.window_size, **facts)
        groups = total.view(-1, args.num_generations)
        advantages = group_advantages(groups, args.scale_rewards).flatten()
        if by_token is not None:
            valid = mask.cpu().view(*groups.shape, args.window_size)
            per_token = group_advantages(by_token.view(valid.shape), args.scale_rewards, valid=valid)
            advantages = advantages[:, None] + per_token.flatten(0, 1)
        spread = groups.std(-1)
        metrics["reward"] = (float(total.sum()), float(len(total)))
        metrics["reward_std"] = (float(spread.sum()), float(len(groups)))
        # Not by the spread: the deviation of equal numbers is not always 0 in float32.
        flat = groups.amax(-1) == groups.amin(-1)
        metrics["flat_groups"] = (float(flat.sum()), float(len(groups)))
        for name, column in zip(map(reward_name, self.reward_funcs), table.unbind(-1), strict=True):
            applies = ~column.isnan()
            metrics[f"rewards/{name}/mean"] = (float(column[applies].sum()), float(applies.sum()))
            metrics[f"rewards/{name}/share"] = (float(applies.sum()), float(len(total)))
        return advantages

    def _reach(
        self, target: torch.Tensor, draft: torch.Tensor, mask: torch.Tensor, matched: torch.LongTensor
    ) -> torch.Tensor:
        if self.args.acceptance == "greedy":
            return prefix_credit_mask(matched, mask.shape[1], mask).to(target.dtype)
        return reach_probabilities(target, draft, mask)

    def _texts(
        self, inputs: dict[str, Any], selected: SelectedWindows, tokens: torch.LongTensor, mask: torch.Tensor
    ) -> dict[str, list]:
        """What only reward functions of the user's read: text, and the other columns of the dataset."""
        if all(map(_is_ours, self.reward_funcs)):
            return {}
        rows = selected.mask.nonzero()[:, 0].tolist()
        rows = [row for row in rows for _ in range(self.args.num_generations)]
        tensors = ("input_ids", "attention_mask", "loss_mask")
        texts = {name: [values[row] for row in rows] for name, values in inputs.items() if name not in tensors}
        if self.processing_class is not None:
            starts = selected.starts[selected.mask].tolist()
            starts = [start for start in starts for _ in range(self.args.num_generations)]
            prompts = [inputs["input_ids"][row, :start] for row, start in zip(rows, starts, strict=True)]
            texts["prompts"] = self.processing_class.batch_decode(prompts)
            windows = [row[keep] for row, keep in zip(tokens, mask, strict=True)]
            texts["completions"] = self.processing_class.batch_decode(windows)
        return texts

    def _add_text_windows(
        self, experience: Experience, drafter: DrafterModel, prefix: TargetPrefix, selected: SelectedWindows
    ) -> None:
        """The text's own windows at the same starts, and the target's distributions along them."""
        offsets = torch.arange(self.args.window_size, device=selected.starts.device)
        places = selected.starts.clamp_min(2)[..., None] + offsets
        places = places.clamp_max(prefix.input_ids.shape[1] - 1)
        rows = torch.arange(len(places), device=places.device)[:, None, None].expand_as(places)
        experience.text_tokens = prefix.input_ids[rows, places][:, :, None]
        real = selected.mask
        ids = drafter.draft_token_ids
        probs = []
        for row, place in zip(rows[real].split(32), places[real].split(32), strict=True):
            logits = prefix.logits_at(row.flatten(), place.flatten() - 1)
            kept = logits if ids is None else logits.index_select(-1, ids.to(logits.device))
            probs.append((kept - logits.logsumexp(-1, keepdim=True)).exp().unflatten(0, place.shape))
        experience.text_probs = torch.cat(probs) if probs else None

    def _acceptance_metrics(
        self,
        metrics: dict[str, tuple[float, float]],
        matched: torch.LongTensor,
        accepted: torch.Tensor,
        mask: torch.Tensor,
    ) -> None:
        count = float(len(matched))
        metrics["accepted_length"] = (float(accepted.float().sum()), count)
        metrics["share_none_accepted"] = (float((matched == 0).sum()), count)
        for k in range(self.args.window_size):
            metrics[f"acceptance/position_{k}"] = (float((matched > k).sum()), float(mask[:, k].sum()))


def _is_ours(reward_func: Callable) -> bool:
    """Whether a reward function is of this library, whose needs are known."""
    return getattr(reward_func, "__module__", None) == "ppow_hf.rl.rewards"
