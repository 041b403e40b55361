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
from transformers.utils import logging

from ..drafters import DrafterModel
from ..generation import CostModel
from ..rl import (
    Rollouts,
    SelectedWindows,
    TargetPrefix,
    Verification,
    acceptance_probabilities,
    combine_all_rewards,
    committed_tokens,
    criticality,
    greedy_accepted,
    group_advantages,
    prefix_credit_mask,
    reach_probabilities,
    rollout_windows,
    sampled_accepted,
    select_windows,
    survivor_advantages,
    target_prefix,
    target_windows,
    text_mask,
    token_advantages,
    verify_windows,
    window_target_gap,
    window_values,
)
from ..row_blocks import rows_per_block
from .ppow_config import PPOWConfig
from .reward_checks import is_ours, reads_gap
from .reward_inputs import texts_of_windows
from .window_metrics import Metrics, acceptance_metrics, reward_metrics, selection_metrics

logger = logging.get_logger(__name__)

# Positions whose vocabulary is projected at a time, on a CPU.
_PROJECTED = 256


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
        reward_kwargs (`Callable[[], dict]`, *optional*): Gives further keywords of the reward functions, asked for
            whenever these are called.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        args: PPOWConfig,
        reward_funcs: Sequence[Callable],
        cost_model: CostModel | None,
        processing_class: PreTrainedTokenizerBase | None,
        eos_token_ids: frozenset[int],
        reward_kwargs: Callable[[], dict[str, Any]] = dict,
    ):
        self.target = target
        self.args = args
        self.reward_funcs = list(reward_funcs)
        self.cost_model = cost_model
        self.processing_class = processing_class
        self.eos_token_ids = eos_token_ids
        self.reward_kwargs = reward_kwargs
        self.seconds: dict[str, float] = {}
        # The target's own windows cost passes of their own, which only the proximity reward (or an unknown one) needs.
        self.needs_gap = any(map(reads_gap, self.reward_funcs))
        self.needs_texts = not all(map(is_ours, self.reward_funcs))

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
        rollout_seed: int | None = None,
        measure_criticality: bool = False,
    ) -> Experience:
        """
        Args:
            drafter ([`DrafterModel`]): The policy, unwrapped.
            inputs (`dict`): A batch with `input_ids`, `attention_mask`, `loss_mask` and further columns.
            law (`str`): `"adaw"` or `"uniform"`.
            seed (`int`): Of everything drawn here; the same seed gives the same windows.
            precision (`Callable[[], AbstractContextManager]`): Makes the context in which the drafter runs, e.g. mixed
                precision; the policy that is rolled out should be the one that is trained.
            rollout_seed (`int`, *optional*): Of the rollouts alone, to draw others from the same starts.
            measure_criticality (`bool`, *optional*, defaults to `False`): Log the criticality of windows under the
                uniform law too, for one more pass of the drafter; what is drawn stays the same.
        """
        args = self.args
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        loss_mask = window_mask_of(inputs["loss_mask"].bool() & attention_mask.bool())
        generator = torch.Generator().manual_seed(seed)
        rollout_seed = seed + 1 if rollout_seed is None else rollout_seed
        device_generator = torch.Generator(input_ids.device).manual_seed(rollout_seed)
        metrics: Metrics = {}

        with self.timed("target"):
            prefix = target_prefix(self.target, input_ids, attention_mask, drafter.feature_layer_ids)
        with self.timed("selection"):
            values = None
            if law == "adaw" or measure_criticality:
                values = self._criticality(drafter, prefix, loss_mask, precision)
            selected = select_windows(
                loss_mask,
                args.window_size,
                args.num_windows,
                values=values if law == "adaw" else None,
                uniform_share=args.uniform_share,
                min_distance=args.min_distance,
                generator=generator,
            )
            metrics |= selection_metrics(selected, values)
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
        projected = rows_per_block(input_ids.device, _PROJECTED, drafter.config.vocab_size)
        with self.timed("verification"):
            verification = verify_windows(
                self.target,
                prefix,
                selected.starts,
                rollouts.tokens,
                draft_token_ids=drafter.draft_token_ids,
                temperature=temperature,
                keep_plain_log_probs=self.needs_gap,
                chunk_size=projected,
            )
            preferred = None
            if self.needs_gap:
                # Delta is of the target's own distribution, whatever the temperature of drafting (paper).
                preferred = target_windows(
                    self.target, prefix, selected.starts, args.window_size, chunk_size=projected
                )
        with self.timed("scoring"):
            return self._score(
                inputs, drafter, prefix, selected, rollouts, verification, preferred, generator, metrics
            )

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
            chunk_size=rows_per_block(loss_mask.device, _PROJECTED, drafter.config.vocab_size),
            device=loss_mask.device,
        )
        values = torch.zeros(loss_mask.shape, device=loss_mask.device)
        values[rows, tokens] = result.value
        return window_values(values, self.args.window_size)

    # ---- rewards and advantages ------------------------------------------------------------------------------------

    def _score(
        self,
        inputs: dict[str, Any],
        drafter: DrafterModel,
        prefix: TargetPrefix,
        selected: SelectedWindows,
        rollouts: Rollouts,
        verification: Verification,
        preferred: tuple[torch.LongTensor, torch.Tensor] | None,
        generator: torch.Generator,
        metrics: Metrics,
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
        if args.acceptance == "greedy":
            refused_at = greedy_accepted(tokens, argmax, mask)
        else:
            refused_at = sampled_accepted(target.cpu(), draft.cpu(), generator, mask.cpu()).to(target.device)
        accepted = refused_at
        survived = torch.arange(args.window_size, device=refused_at.device) < refused_at[:, None]
        if args.acceptance == "expected":
            survived = acceptance_probabilities(target, draft, mask).cumprod(-1)
            accepted = survived.sum(-1)
        advantages = torch.zeros(len(tokens), device=target.device)
        if len(tokens):
            facts = {}
            if self.needs_texts:
                # First, so that no column of the dataset takes the place of a fact about the window.
                facts = texts_of_windows(inputs, selected, tokens, mask, args.num_generations, self.processing_class)
            facts |= {
                "completion_ids": [row[keep].tolist() for row, keep in zip(tokens.cpu(), mask.cpu(), strict=True)],
                "accepted": accepted.tolist(),
                "committed": committed_tokens(tokens, survived, self.eos_token_ids, mask).tolist(),
                "first_rejected": (refused_at == 0).tolist(),
                "target_argmax": argmax.tolist(),
                "window_size": mask.sum(-1).tolist(),
                "cost_ratio": self.cost_model.gamma if args.cost_ratio == "measured" else args.cost_ratio,
                "cost_model": self.cost_model,
                **self.reward_kwargs(),
            }
            if preferred is not None:
                plain = verification.plain_log_probs[chosen].flatten(0, 1)
                facts["target_gap"] = self._target_gap(preferred, chosen, plain, mask).tolist()
            advantages = self._advantages(facts, mask, refused_at, metrics).to(target.device)
            metrics |= acceptance_metrics(survived)
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
            advantages=token_advantages(advantages, mask, args.credit, refused_at, self._refused_groups(refused_at)),
            target_probs=probs,
            reach=self._reach(target, draft, mask, refused_at),
            metrics=metrics,
        )
        if args.anchor_weight:
            self._add_text_windows(experience, drafter, prefix, selected)
        return experience

    def _target_gap(
        self,
        preferred: tuple[torch.LongTensor, torch.Tensor],
        chosen: torch.Tensor,
        drafted: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Delta of every window, `(N,)`, up to where the window or the target's own comes to the end of the text."""
        tokens, log_probs = (part[chosen].repeat_interleave(self.args.num_generations, dim=0) for part in preferred)
        return window_target_gap(log_probs, drafted, mask & text_mask(tokens, self.eos_token_ids))

    def _refused_groups(self, refused_at: torch.LongTensor) -> torch.BoolTensor | None:
        """
        Windows of groups that were refused as a whole, `(N,)`: only the proximity reward tells those apart, and it is
        one of the whole window.
        """
        if not self.needs_gap:
            return None
        groups = (refused_at.view(-1, self.args.num_generations) == 0).all(-1)
        return groups.repeat_interleave(self.args.num_generations)

    def _advantages(
        self, facts: dict[str, Any], mask: torch.Tensor, refused_at: torch.LongTensor, metrics: Metrics
    ) -> torch.Tensor:
        """Advantages of the windows, `(N,)`, or of their tokens, `(N, K)`, where those differ."""
        args = self.args
        total, table, by_token = combine_all_rewards(self.reward_funcs, args.reward_weights, args.window_size, **facts)
        groups = total.view(-1, args.num_generations)
        # As in GRPOTrainer: a window that no function has judged is no bad one.
        judged = ~table.isnan().all(-1).view(groups.shape)
        if not judged.all():
            logger.warning_once(
                "Every function of `reward_funcs` returned None for some windows. These have no advantage, and are "
                "left out of the mean of their group and of the logged reward."
            )
        advantages = group_advantages(groups, args.scale_rewards, valid=judged).flatten()
        if args.baseline == "survivors":
            survivors = survivor_advantages(
                groups, refused_at.cpu().view(groups.shape), args.window_size, args.scale_rewards, valid=judged
            ).flatten(0, 1)
            # A group that was refused as a whole has one state, its start, and no token of it alone to tell apart.
            refused = self._refused_groups(refused_at)
            advantages = (
                survivors if refused is None else torch.where(refused.cpu()[:, None], advantages[:, None], survivors)
            )
        if by_token is not None:
            valid = mask.cpu().view(*groups.shape, args.window_size) & judged[..., None]
            by_token = by_token.view(valid.shape)
            per_token = group_advantages(by_token, args.scale_rewards, valid=valid)
            advantages = (advantages if advantages.dim() == 2 else advantages[:, None]) + per_token.flatten(0, 1)
            # What is logged of a window is the mean of its tokens.
            groups = groups + (by_token * valid).sum(-1) / valid.sum(-1).clamp_min(1)
        metrics |= reward_metrics(self.reward_funcs, table, groups, advantages, judged)
        return advantages

    def _reach(
        self, target: torch.Tensor, draft: torch.Tensor, mask: torch.Tensor, refused_at: torch.LongTensor
    ) -> torch.Tensor:
        if self.args.acceptance == "greedy":
            return prefix_credit_mask(refused_at, mask.shape[1], mask).to(target.dtype)
        return reach_probabilities(target, draft, mask)

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
        size = self.args.window_size
        starts = rows_per_block(places.device, 32 * size, drafter.config.vocab_size) // size
        for row, place in zip(rows[real].split(starts), places[real].split(starts), strict=True):
            logits = prefix.logits_at(row.flatten(), place.flatten() - 1)
            kept = logits if ids is None else logits.index_select(-1, ids.to(logits.device))
            # Widened first: at 20, half precision rounds to an eighth.
            kept, total = kept.float(), logits.float().logsumexp(-1, keepdim=True)
            probs.append((kept - total).exp().unflatten(0, place.shape))
        experience.text_probs = torch.cat(probs) if probs else None
