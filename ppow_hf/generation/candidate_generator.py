# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
`PPOWCandidateGenerator`: what transformers' assisted generation asks for draft tokens.

Per cycle transformers calls `get_candidates` (we commit what was accepted and draft a window), runs the target over
it, selects the accepted tokens, and calls `update_candidate_strategy` (we learn from the outcome). The first round is
a plain prefill: without target features there is nothing to draft from.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator

from ..drafters.target_features import gather_features
from ..end_tokens import eos_token_ids_of
from .adaptation import adaptation_for
from .call_checks import check_call, max_length_of
from .cost_model import CostModel
from .divergence import window_divergence

# Also looked for here.
from .drafter_window import window_for
from .policies import Outcome
from .proposals import LookupProposer, Proposal
from .trace import Clock, Cycle, GenerationTrace
from .window_loop import DraftSampler, DraftWindow, draft_window

if TYPE_CHECKING:
    from ..drafters import DrafterModel


class PPOWCandidateGenerator(CandidateGenerator):
    """
    Drafts windows with a drafter, under a window policy, and records a trace.

    Args:
        drafter ([`DrafterModel`]): The drafter.
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        generation_config ([`~transformers.GenerationConfig`]): The prepared configuration of this call; its `window`
            (if set) replaces the drafter's.
        logits_processor ([`~transformers.LogitsProcessorList`]): The prepared processors of this call.
        input_ids (`torch.LongTensor` of shape `(1, length)`): The prompt.
        model_kwargs (`dict`): The target's prepared inputs.

    Raises:
        ValueError: If the call asks for something a drafted window cannot give.
    """

    requires_model_outputs: bool = True

    def __init__(
        self,
        drafter: DrafterModel,
        target: PreTrainedModel,
        *,
        generation_config: GenerationConfig,
        logits_processor: LogitsProcessorList | None,
        input_ids: torch.LongTensor,
        model_kwargs: dict[str, Any],
        **unused: Any,
    ):
        check_call(generation_config, target, input_ids, model_kwargs, logits_processor)
        drafter.bind_target(target)
        self.drafter = drafter
        self.window_config = window_for(drafter, getattr(generation_config, "window", None))
        self.do_sample = bool(generation_config.do_sample)
        self.max_length = max_length_of(generation_config, target)
        self.eos_token_ids = eos_token_ids_of(generation_config)
        config = self.window_config
        # Where lookup alone proposes, the drafter sleeps.
        self._drafts = config.proposals != "lookup"
        self.layer_ids = tuple(drafter.feature_layer_ids) if self._drafts else ()
        self.sampler = DraftSampler(
            drafter.draft_token_ids,
            vocab_size=drafter.config.vocab_size,
            logits_processor=logits_processor,
            do_sample=self.do_sample,
        )
        cost_model = CostModel.for_models(target, drafter) if config.needs_costs else None
        adaptation = adaptation_for(drafter, target, config, cost_model, self.do_sample)
        self.policy, self.estimator = adaptation.policy, adaptation.estimator
        self.divergence = adaptation.divergence
        self.lookup = LookupProposer(adaptation.switch, self.eos_token_ids) if adaptation.switch is not None else None
        self._proposal = Proposal()

        self._overrides: dict[str, Any] = {}
        # The user's own `output_hidden_states=True` needs every layer; a list would leave holes in what is returned.
        if self.layer_ids and not generation_config.output_hidden_states:
            self._overrides["output_hidden_states"] = list(self.layer_ids)
        elif self.layer_ids:
            self._overrides["output_hidden_states"] = True

        self._state = drafter.new_state()
        # Remote code may bring a drafter of an older version, which does not say.
        self._max_positions = getattr(drafter, "max_positions", None)
        self._window: DraftWindow | None = None
        self._prompt_keep: torch.Tensor | None = None
        self._prompt_rows = 0
        self._committed = 0  # tokens of the text the drafter has been given or has waiting
        self._tokens: list[torch.Tensor] = []  # waiting to be given to the drafter
        self._features: list[torch.Tensor] = []
        self._num_accepted = 0

        self.trace = GenerationTrace(
            window=config.to_dict(), cost=cost_model.to_dict() if cost_model is not None else None
        )
        drafter.last_trace = self.trace
        self._clock = Clock(target.device)
        self._cycle: Cycle | None = None
        self._cycle_start = None
        self._verify_start = None
        self._watch_target(target)

    # ---- timing ----------------------------------------------------------------------------------------------------

    def _watch_target(self, target: PreTrainedModel) -> None:
        """Marks the end of every verification. The hook goes away with this object, however generation ends."""
        reference = weakref.ref(self)

        def mark_end(module: nn.Module, args: tuple, output: Any) -> None:
            generator = reference()
            if generator is not None:
                generator._verified()

        handle = target.register_forward_hook(mark_end)
        self._stop_watching = weakref.finalize(self, handle.remove)

    @property
    def model_kwargs_overrides(self) -> dict[str, Any]:
        """`dict`: What the target must return. Read by transformers right before the target runs."""
        self._verify_start = self._clock.mark()
        return self._overrides

    def _verified(self) -> None:
        if self._verify_start is None:
            return
        span = (self._verify_start, self._clock.mark())
        self._verify_start = None
        if self._cycle is None:
            self.trace.prefill_marks.append(span)
        else:
            self._cycle.marks.setdefault("verify", []).append(span)

    def _timed_step(self, state: Any, token_ids: torch.Tensor) -> torch.Tensor:
        start = self._clock.mark()
        logits = self.drafter.step(state, token_ids)
        self._cycle.marks["draft"].append((start, self._clock.mark()))
        return logits

    # ---- drafting --------------------------------------------------------------------------------------------------

    def get_candidates(
        self,
        input_ids: torch.LongTensor,
        model_kwargs: dict[str, Any] | None = None,
        model_outputs: Any = None,
        is_first_iteration: bool = False,
        n_last_matches: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.LongTensor, torch.FloatTensor | None]:
        """
        Drafts one window.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`): The text so far; its last token is not yet in the
                target's cache.
            model_kwargs (`dict`): The target's inputs.
            model_outputs (`ModelOutput`): The target's last output, with the hidden states the drafter reads.
            is_first_iteration (`bool`): Whether the target has not run yet.
            n_last_matches (`int`): Draft tokens accepted in the last round.

        Returns:
            `(candidate_ids, logits)`: the text with `k` draft tokens behind it, and, when sampling, the logits of the
            distributions they were drawn from, `(1, k, vocab_size)`; `None` when greedy or when `k` is 0.
        """
        if is_first_iteration:
            self._remember_prompt(input_ids, model_kwargs)
            return input_ids, None
        start = self._clock.mark()
        self._begin_cycle(start)
        self._take_in(input_ids, model_outputs, n_last_matches)
        limit = self.max_length - input_ids.shape[1] - 1
        cycle = self._cycle
        proposal = self._proposal = Proposal()
        if self.lookup is not None:
            found = self.lookup.propose(max(limit, 0), self._can_draft())
            if limit > 0:
                proposal = self._proposal = found
        cycle.source, cycle.looked_up = proposal.source if self._drafts else "lookup", len(proposal.tokens)
        cycle.tokens, cycle.predicted = list(proposal.tokens), list(proposal.predicted)
        self._window = None
        ids = input_ids
        if proposal.tokens:
            ids = torch.cat([ids, torch.tensor([proposal.tokens], device=ids.device)], dim=-1)
        if limit < 1:
            cycle.stop = "length"
        elif cycle.source == "lookup":
            cycle.stop = self.lookup.stop_reason(proposal, limit)
        else:
            self._draft(ids, limit)
        window = self._window
        cycle.drafted = len(cycle.tokens)
        if window is not None and window.lengths[0]:
            ids = torch.cat([ids, window.token_ids.to(ids.device)], dim=-1)
        # Greedy verification compares tokens; the V-wide logits would only be thrown away.
        return ids, self._candidate_logits() if self.do_sample and cycle.drafted else None

    def _draft(self, ids: torch.LongTensor, limit: int) -> None:
        """Drafts the window, behind the looked-up tokens at the end of `ids`, if any."""
        cycle, proposal = self._cycle, self._proposal
        limit = self._reachable(limit)
        if limit <= len(proposal.tokens):
            cycle.stop = "length"
            return
        wanted = min(limit, self.policy.target_size())
        if wanted < 1 or not self._can_draft():
            cycle.stop = "policy"
            return
        logits = self._extend()
        for token, estimate in zip(proposal.tokens, proposal.predicted, strict=True):
            logits = self._timed_step(self._state, torch.tensor([token], device=logits.device))
            self.policy.follow(estimate)
        window = draft_window(
            self.drafter,
            self._state,
            logits,
            sampler=self.sampler,
            policies=[self.policy],
            sizes=[wanted],
            context_ids=ids,
            estimator=self.estimator,
            divergence=self.divergence.total_variation,
            eos_token_ids=self.eos_token_ids,
            step=self._timed_step,
            offset=len(proposal.tokens),
        )
        window.forwards += len(proposal.tokens)
        self._window = window
        cycle.tokens += window.tokens[0]
        cycle.predicted += window.predicted[0]
        cycle.confidence = window.confidence[0]
        cycle.features = window.features[0]
        cycle.stop = "length" if window.stop[0] == "limit" and len(cycle.tokens) == limit else window.stop[0]

    def _candidate_logits(self) -> torch.Tensor:
        """Logits of the distributions the window's tokens were drawn from, looked-up ones first."""
        parts = []
        if self._proposal.tokens:
            parts.append(self._proposal.logits(self.sampler.vocab_size, self.drafter.device))
        if self._window is not None and self._window.scores:
            parts.append(self.sampler.candidate_logits(self._window.scores))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _begin_cycle(self, start: Any) -> None:
        if self._cycle is not None:
            # What transformers did since the verification belongs to the cycle before.
            self._cycle.marks["cycle"] = [(self._cycle_start, start)]
        self._cycle_start = start
        self._cycle = Cycle(divergence=self.divergence.value, rate=self.policy.rate, marks={"draft": []})
        self.trace.cycles.append(self._cycle)

    def _remember_prompt(self, input_ids: torch.LongTensor, model_kwargs: dict[str, Any] | None) -> None:
        self._prompt_rows = input_ids.shape[1]
        mask = (model_kwargs or {}).get("attention_mask")
        if mask is not None and mask.shape == input_ids.shape:
            # The drafter sees the text alone, without padding; positions of text tokens are consecutive in both.
            self._prompt_keep = mask[0].bool()

    def _take_in(self, input_ids: torch.LongTensor, model_outputs: Any, n_last_matches: int) -> None:
        """Queues what the last round committed: tokens, and the target's features of the positions it verified."""
        device = self.drafter.device
        rows = n_last_matches + 1
        features = None
        if self.layer_ids:
            features = gather_features(getattr(model_outputs, "hidden_states", None), self.layer_ids)
        if self._committed == 0:
            tokens = input_ids
            if features is not None:
                # A prompt given as embeddings has no token ids: the drafter begins behind it.
                features = features[:, -self._prompt_rows :] if self._prompt_rows else features[:, :0]
            if self._prompt_keep is not None:
                keep = self._prompt_keep
                tokens = torch.cat([input_ids[:, : len(keep)][:, keep], input_ids[:, len(keep) :]], dim=-1)
                features = features[:, keep.to(features.device)] if features is not None else None
            self.trace.prompt_length = tokens.shape[1] - 1
        else:
            tokens = input_ids[:, -rows:]
            features = features[:, :rows] if features is not None else None
            if not self._tokens:
                # Of the drafter's last window. Cycles of lookup since then only add to what waits.
                self._num_accepted = n_last_matches
        if self.lookup is not None and self._committed == 0:
            self.lookup.index.extend(tokens[0].tolist())
        self._committed += tokens.shape[1]
        if not self._drafts:
            return
        self._tokens.append(tokens.to(device))
        if features is not None:
            self._features.append(features.to(device))

    def _can_draft(self) -> bool:
        """A feature drafter needs one verified position behind the token it starts from, any other a place for it."""
        if self._reachable(1) < 1:
            return False
        return not self.layer_ids or sum(part.shape[1] for part in self._features) > 0

    def _reachable(self, limit: int) -> int:
        """The longest window up to `limit` that the drafter has positions for: its last token is not fed."""
        return limit if self._max_positions is None else min(limit, self._max_positions + 1 - self._committed)

    def _extend(self) -> torch.Tensor:
        """Gives the drafter everything that waits; returns the logits of the first draft token."""
        tokens = self._tokens[0] if len(self._tokens) == 1 else torch.cat(self._tokens, dim=1)
        features = None
        if self._features:
            features = self._features[0] if len(self._features) == 1 else torch.cat(self._features, dim=1)
        start = self._clock.mark()
        logits = self.drafter.extend(self._state, tokens, features, num_accepted=self._num_accepted)
        self._cycle.marks["draft"].append((start, self._clock.mark()))
        self._tokens, self._features, self._num_accepted = [], [], 0
        return logits

    # ---- learning from verification --------------------------------------------------------------------------------

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, num_matches: int):
        """
        Learns from one verification.

        Args:
            input_ids (`torch.LongTensor` of shape `(1, length)`): The text, with what was committed.
            scores (`torch.FloatTensor` of shape `(1, k + 1, vocab_size)`): The target's processed logits.
            num_matches (`int`): Committed tokens minus one: what is left after the end of the text was cut off.
        """
        num_matches = int(num_matches)
        cycle = self._cycle
        if cycle is None:
            self.trace.prefill_tokens = num_matches + 1
            return
        cycle.committed = num_matches + 1
        committed = input_ids[0, -cycle.committed :].tolist()
        drafted, looked_up, last = cycle.drafted, cycle.looked_up, committed[-1]
        # A rejected token is never the one the target puts in its place, so if the last token is the draft's own, the
        # text was cut behind an accepted draft token (end of text, length): what follows it was never judged.
        cut = num_matches < drafted and cycle.tokens[num_matches] == last
        cycle.accepted = num_matches + 1 if cut else num_matches
        cycle.bonus = None if cut else last
        reached = min(cycle.accepted if cut else num_matches + 1, drafted)
        forwards = self._window.forwards if self._window is not None else 0
        divergence = None
        if reached > looked_up and self._window is not None:
            variation, kl = window_divergence(
                self._window.scores[: reached - looked_up],
                scores[0, looked_up:reached],
                self.sampler,
                kl=self.divergence.metric == "kl",
            )
            self.divergence.update(variation, kl)
            divergence = self.divergence.value
            if self.do_sample:
                cycle.outcomes = [1.0 - value for value in variation]
            else:
                cycle.outcomes = [1.0 if i < cycle.accepted else 0.0 for i in range(looked_up, reached)]
            for features, outcome in zip(cycle.features, cycle.outcomes, strict=False):
                self.estimator.update(features, outcome)
        if cycle.source == "drafter":
            self.policy.update(Outcome(drafted, cycle.accepted, cycle.committed, forwards, divergence))
        if self.lookup is not None:
            self.lookup.learn(
                self._proposal,
                committed,
                accepted=cycle.accepted,
                drafted=drafted,
                forwards=forwards,
                cut=cut or cycle.stop == "length",
                scores=scores[0] if self.do_sample else None,
            )
        self._window = None
        cycle.marks["cycle"] = [(self._cycle_start, self._clock.mark())]
