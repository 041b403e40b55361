# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
Decoding with draft trees: grow a tree, verify it in one target pass, keep the accepted path.

transformers' own assisted loop verifies chains, so trees need one of their own. It begins as that one does, with a
plain prefill, and gives back what `generate` gives back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.generation.streamers import BaseStreamer

from ..drafters.target_features import gather_features
from ..drafters.tree_columns import check_croppable, keep_columns
from ..end_tokens import eos_token_ids_of
from .call_checks import check_call, max_length_of
from .cost_model import CostModel
from .divergence import window_divergence
from .draft_tree import grow_tree
from .drafter_window import window_for
from .lookup_graft import LookupGraft
from .proposals import LookupProposer, Proposal
from .text_end import TextEnd
from .token_outputs import TokenOutputs
from .trace import Clock, Cycle, GenerationTrace
from .tree_adaptation import tree_adaptation_for
from .tree_attention import tree_inputs
from .tree_checks import check_inputs
from .tree_nodes import LOOKED_UP, TEXT, DraftTree
from .tree_record import record_tree
from .tree_verification import Acceptance, TreeVerifier
from .window_loop import DraftSampler

if TYPE_CHECKING:
    from ..drafters import DrafterModel


@torch.no_grad()
def decode_with_trees(
    target: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: DrafterModel,
    streamer: BaseStreamer | None = None,
    synced_gpus: bool = False,
    **model_kwargs: Any,
) -> torch.LongTensor | GenerateDecoderOnlyOutput:
    """
    Decodes one prompt with draft trees.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target, in `generate`.
        input_ids (`torch.LongTensor` of shape `(1, length)`), logits_processor, stopping_criteria, generation_config:
            Prepared by `generate`.
        drafter ([`DrafterModel`]): The drafter.
        streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*): Receives the text as committed.
        synced_gpus (`bool`, *optional*, defaults to `False`): Must be `False`.
        model_kwargs: The target's prepared inputs.

    Returns:
        What `generate` returns: the text, or a `GenerateDecoderOnlyOutput` with `return_dict_in_generate=True`.

    Raises:
        ValueError: If the call asks for something that decoding with trees cannot do.
    """
    if synced_gpus:
        raise ValueError(
            "`synced_gpus=True` cannot be combined with draft trees. Leave `tree` out of the window, or gather the "
            "target's parameters on every process."
        )
    session = TreeDecoding(
        target, input_ids, logits_processor, stopping_criteria, generation_config, drafter, streamer, model_kwargs
    )
    session.prefill(model_kwargs)
    while not session.finished:
        session.cycle()
    if streamer is not None:
        streamer.end()
    return session.output()


class TreeDecoding:
    """
    The state of one call of [`decode_with_trees`], which describes the arguments.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        drafter: DrafterModel,
        streamer: BaseStreamer | None,
        model_kwargs: dict[str, Any],
    ):
        check_call(generation_config, target, input_ids, model_kwargs, logits_processor)
        check_inputs(model_kwargs)
        drafter.bind_target(target)
        window = window_for(drafter, getattr(generation_config, "window", None))
        self.target, self.drafter = target, drafter
        self.input_ids, self.streamer = input_ids, streamer
        self.max_length = max_length_of(generation_config, target)
        self.eos_token_ids = eos_token_ids_of(generation_config)
        self.layer_ids = tuple(drafter.feature_layer_ids)
        self.do_sample = bool(generation_config.do_sample)
        self.sampler = DraftSampler(
            drafter.draft_token_ids,
            vocab_size=drafter.config.vocab_size,
            logits_processor=logits_processor,
            do_sample=self.do_sample,
        )
        self.verifier = TreeVerifier(self.sampler, logits_processor, self.eos_token_ids)
        cost_model = CostModel.for_models(target, drafter) if window.needs_costs else None
        adaptation = tree_adaptation_for(drafter, target, window, cost_model, self.do_sample)
        self.policy, self.estimator = adaptation.policy, adaptation.estimator
        self.siblings, self.divergence = adaptation.siblings, adaptation.divergence
        self.lookup = LookupProposer(adaptation.switch, self.eos_token_ids) if adaptation.switch is not None else None
        self._proposal: Proposal | None = None  # of this cycle, where lookup was asked
        known = drafter.draft_token_ids if self.lookup is not None and self.sampler.mapped else None
        self._columns = {token: i for i, token in enumerate(known.tolist())} if known is not None else None
        self.finished = False

        self._state = drafter.new_state()
        # Remote code may bring a drafter of an older version, which does not say.
        self._max_positions = getattr(drafter, "max_positions", None)
        self._unseen = 0  # tokens of the text that are none of the drafter's
        self._tokens: list[torch.Tensor] = []  # waiting to be given to the drafter
        self._features: list[torch.Tensor] = []
        self._num_accepted = 0
        self._end, self._returned = TextEnd(stopping_criteria, generation_config), TokenOutputs(generation_config)
        wanted = True if generation_config.output_hidden_states else list(self.layer_ids)
        self._extra = {"output_hidden_states": wanted} if wanted else {}

        self.trace = GenerationTrace(
            window=window.to_dict(), cost=cost_model.to_dict() if cost_model is not None else None
        )
        drafter.last_trace = self.trace
        self._clock = Clock(target.device)

    # ---- the target ------------------------------------------------------------------------------------------------

    def prefill(self, model_kwargs: dict[str, Any]) -> None:
        """The target's pass over the prompt, and the first token."""
        target, input_ids = self.target, self.input_ids
        inputs = target.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = 1
        start = self._clock.mark()
        outputs = target(**inputs | self._extra, return_dict=True)
        self.trace.prefill_marks.append((start, self._clock.mark()))
        self._cache = outputs.past_key_values
        check_croppable(self._cache)
        columns = self._cache.get_seq_length()
        mask = model_kwargs.get("attention_mask")
        self._padding = mask.to(target.device) if mask is not None and not bool(mask.all()) else None
        if (positions := inputs.get("position_ids")) is not None:
            self._position = int(positions[..., -1].flatten()[0])
        else:
            self._position = columns - 1 if self._padding is None else int(mask.sum()) - 1
        if self._returned.wants("hidden_states"):
            self._returned.add("hidden_states", [tuple(outputs.hidden_states)])
        self._remember_prompt(outputs.hidden_states, mask)
        acceptance = self.verifier.accept(DraftTree(), outputs.logits[0, -1:], input_ids)
        committed = self._commit(DraftTree(), acceptance, outputs.logits[0, -1:])
        self.trace.prefill_tokens = committed
        self._tokens.append(self.input_ids[:, -committed:].to(self.drafter.device))
        if self.lookup is not None:
            for part in self._tokens:
                self.lookup.index.extend(part[0].tolist())

    def cycle(self) -> None:
        """Drafts a tree, verifies it, commits what was accepted."""
        start = self._clock.mark()
        cycle = Cycle(divergence=self.divergence.value, rate=self.policy.rate, marks={"draft": []})
        self.trace.cycles.append(cycle)
        tree = self._draft(cycle)
        target, columns = self.target, self._cache.get_seq_length()
        parents = [node.parent for node in tree.nodes]
        mask, positions = tree_inputs(parents, self._position + 1, columns, self._padding, target)
        own = self.input_ids.new_tensor([tree.tokens])
        fed = torch.cat([self.input_ids[:, -1:], own], dim=-1) if tree.nodes else self.input_ids[:, -1:]
        verify_start = self._clock.mark()
        outputs = target(
            input_ids=fed.to(target.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **self._extra,
        )
        cycle.marks["verify"] = [(verify_start, self._clock.mark())]
        logits = outputs.logits[0]
        acceptance = self.verifier.accept(tree, logits, self.input_ids)
        committed = self._commit(tree, acceptance, logits)
        # The text's last token and the accepted nodes have been through the target; the last of what was committed has
        # not, unless it is a node's own.
        rows = [0, *(node + 1 for node in acceptance.path)][:committed]
        keep_columns(self._cache, columns, rows)
        self._position += committed
        if self._padding is not None:
            self._padding = torch.cat([self._padding, self._padding.new_ones((1, committed))], dim=-1)
        self._take_in(tree, acceptance, outputs.hidden_states, rows, committed)
        self._learn(cycle, tree, acceptance, committed)
        cycle.marks["cycle"] = [(start, self._clock.mark())]

    # ---- the drafter -----------------------------------------------------------------------------------------------

    def _remember_prompt(self, hidden_states: Any, mask: torch.Tensor | None) -> None:
        """The prompt as the drafter sees it, without padding; given as embeddings, it sees nothing of it."""
        tokens, device = self.input_ids, self.drafter.device
        features = gather_features(hidden_states, self.layer_ids) if self.layer_ids else None
        if features is not None:
            features = features[:, features.shape[1] - tokens.shape[1] :]
        if mask is not None and mask.shape == tokens.shape and self._padding is not None:
            keep = mask[0].bool()
            tokens = tokens[:, keep.to(tokens.device)]
            features = features[:, keep.to(features.device)] if features is not None else None
        self.trace.prompt_length = tokens.shape[1]
        self._unseen = self.input_ids.shape[1] - tokens.shape[1]
        self._tokens.append(tokens.to(device))
        if features is not None:
            self._features.append(features.to(device))

    def _draft(self, cycle: Cycle) -> DraftTree:
        """Gives the drafter what waits for it, and grows a tree."""
        length = self.input_ids.shape[1]
        limit = room = self.max_length - length - 1
        if self._max_positions is not None:
            room = min(limit, self._max_positions + 1 - (length - self._unseen))  # the deepest level is not fed
        depth = min(room, self.policy.tree.max_depth)
        # A feature drafter needs one verified position behind the token it starts from.
        able = not self.layer_ids or sum(part.shape[1] for part in self._features) > 0
        self._proposal, graft = None, None
        if self.lookup is not None and limit > 0:
            proposal = self._proposal = self.lookup.propose(limit, able and room > 0)
            if proposal.source == "lookup":
                cycle.source, cycle.stop = "lookup", self.lookup.stop_reason(proposal, limit)
                return DraftTree.chain(proposal.tokens, proposal.predicted)
            graft = LookupGraft(
                self.lookup.index,
                self.lookup.switch.acceptance,
                sampling=self.do_sample,
                columns=self._columns,
                depth=limit,
                size=self.lookup.switch.size,
                eos_token_ids=self.eos_token_ids,
            )
        if depth < 1 or not able:
            cycle.stop = "length" if room < 1 else "policy"
            return DraftTree()
        tokens = self._tokens[0] if len(self._tokens) == 1 else torch.cat(self._tokens, dim=1)
        features = None
        if self._features:
            features = self._features[0] if len(self._features) == 1 else torch.cat(self._features, dim=1)
        start = self._clock.mark()
        logits = self.drafter.extend(self._state, tokens, features, num_accepted=self._num_accepted)
        cycle.marks["draft"].append((start, self._clock.mark()))
        self._tokens, self._features, self._num_accepted = [], [], 0

        def step(state: Any, token_ids: torch.LongTensor, parents: Sequence[int]) -> torch.Tensor:
            start = self._clock.mark()
            logits = self.drafter.step_tree(state, token_ids, parents)
            cycle.marks["draft"].append((start, self._clock.mark()))
            return logits

        tree = grow_tree(
            self.drafter,
            self._state,
            logits,
            sampler=self.sampler,
            policy=self.policy,
            estimator=self.estimator,
            siblings=self.siblings,
            max_depth=depth,
            context_ids=self.input_ids,
            divergence=self.divergence.total_variation,
            eos_token_ids=self.eos_token_ids,
            graft=graft,
            step=step,
        )
        if tree.stop != "eos" and tree.depth >= room:
            tree.stop = "length"
        return tree

    def _take_in(
        self, tree: DraftTree, acceptance: Acceptance, hidden_states: Any, rows: list[int], committed: int
    ) -> None:
        """Queues what was committed: tokens, and the target's features of the positions it verified."""
        device = self.drafter.device
        if not self._tokens:
            path = acceptance.path[:committed]
            self._num_accepted = min(len(path), committed - 1)
            fed = (tree.nodes[node].column for node in path[: self._num_accepted])
            columns = [column for column in fed if column is not None]
            self.drafter.keep_path(self._state, columns)
        self._tokens.append(self.input_ids[:, -committed:].to(device))
        if self.layer_ids:
            whole = rows == list(range(hidden_states[self.layer_ids[0]].shape[1]))
            features = gather_features(hidden_states, self.layer_ids)
            self._features.append((features if whole else features[:, rows]).to(device))
        if self._returned.wants("hidden_states"):
            states = (tuple(layer[:, row : row + 1] for layer in hidden_states) for row in rows)
            self._returned.add("hidden_states", states)

    # ---- the text --------------------------------------------------------------------------------------------------

    def _commit(self, tree: DraftTree, acceptance: Acceptance, logits: torch.Tensor) -> int:
        """Adds what was accepted to the text, up to where a criterion ends it. Returns how many tokens."""
        before = self.input_ids.shape[1]
        tokens = acceptance.tokens(tree)
        new = self.input_ids.new_tensor([tokens])
        shown = self._returned.scores_with(acceptance.scores)
        self.input_ids, self.finished = self._end.extend(self.input_ids, new, shown, last=tokens[-1])
        committed = self.input_ids.shape[1] - before
        rows = [0, *(node + 1 for node in acceptance.path)][:committed]
        self._returned.add("scores", acceptance.scores[:committed])
        self._returned.add("logits", (logits[row : row + 1].float() for row in rows))
        if self.streamer is not None:
            self.streamer.put(new[:, :committed].cpu())
        return committed

    def output(self) -> torch.LongTensor | GenerateDecoderOnlyOutput:
        """What `generate` returns."""
        return self._returned.result(self.input_ids, self._cache)

    # ---- learning --------------------------------------------------------------------------------------------------

    def _learn(self, cycle: Cycle, tree: DraftTree, acceptance: Acceptance, committed: int) -> None:
        """Records the cycle, and learns from what verification said about it."""
        path = acceptance.path[:committed]
        cut = acceptance.bonus is None or committed < len(acceptance.scores)
        continued = [TEXT, *path][: len(path) + (not cut)]
        # Places along the path where the drafter's first child, at least, stood to be judged.
        places = [place for place, node in enumerate(continued) if tree.drafted_below(node)]
        judged = [continued[place] for place in places]
        record_tree(cycle, tree, path, judged)
        cycle.committed, cycle.bonus = committed, None if len(path) == committed else acceptance.bonus
        if judged:
            variation, kl = window_divergence(
                [tree.draft_scores(node) for node in judged],
                torch.cat([acceptance.scores[place] for place in places]),
                self.sampler,
                kl=self.divergence.metric == "kl",
            )
            self.divergence.update(variation, kl)
            ranks = [tree.nodes[path[place]].rank if place < len(path) else None for place in places]
            if self.do_sample:
                cycle.outcomes = [1.0 - value for value in variation]
            else:
                cycle.outcomes = [1.0 if rank == 0 else 0.0 for rank in ranks]
            for node, rank, outcome in zip(judged, ranks, cycle.outcomes, strict=True):
                self.estimator.update(tree.expansions[node].features, outcome)
                self._learn_siblings(tree, node, rank)
        if cycle.source != "lookup":
            self.policy.update(len(tree.nodes), committed, tree.steps)
        if self._proposal is not None:
            self.lookup.learn(
                self._proposal,
                self.input_ids[0, -committed:].tolist(),
                accepted=len(path),
                drafted=len(tree.nodes),
                forwards=sum(self.lookup.switch.cost_model.level_cost(fed) for fed in tree.steps),
                cut=cut or cycle.stop == "length",
                scores=torch.cat(acceptance.scores) if self.do_sample else None,
            )

    def _learn_siblings(self, tree: DraftTree, node: int, rank: int | None) -> None:
        """Learns of a node's later children, of which the one of this rank was accepted, or none."""
        tried = tree.drafted_below(node)
        if rank == LOOKED_UP and self.do_sample:
            return  # none of the drafter's was tried
        self.siblings.update(tree.expansions[node].shares, rank if rank in range(tried) else None, tried)
