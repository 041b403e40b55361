# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
r"""
Which path of a draft tree is accepted, given the target's logits at all its nodes.

**Greedy**: from the text on, the child that is the target's own choice, as long as there is one.

**Sampling** (multi-candidate rejection sampling; SpecInfer, arXiv 2305.09781, with children drawn without
replacement): at a node let `p` be the target's distribution, `q` the draft distribution, and `x_1 .. x_k` its
children, drawn from `q` one after another without replacement, so `x_i ~ q_i` with `q_1 = q` and `q_{i+1} = q_i`
without `x_i`, renormalised. With `p_1 = p`, child `i` is accepted with probability `min(1, p_i(x_i) / q_i(x_i))`;
after a rejection `p_{i+1} = norm(max(0, p_i - q_i))`; after the last one the token is drawn from `p_{k+1}`.

The token then has the distribution `p`. By induction from the last child: suppose that, given `x_1 .. x_i` and their
rejection, what follows gives a token distributed as `p_{i+1}`. Given `x_1 .. x_{i-1}` and their rejection, `x_i` is
drawn from `q_i`, and the token is `y` with probability `min(p_i(y), q_i(y)) + r * p_{i+1}(y)`, where
`r = 1 - sum_x min(p_i(x), q_i(x))` is the probability that `x_i` is rejected; and
`r * p_{i+1} = max(0, p_i - q_i)`, so this is `p_i(y)`. The number of children may depend on everything but their own
values, which is why [`grow_tree`] settles it before it draws.

A looked-up child comes first: with `q_1` all on it, the same scheme accepts it with probability `p(x_1)`. The
drafter's children behind it are drawn from `q` without `x_1`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessorList

from .draws import draw_in_turn
from .host_rows import favourite, rows_of
from .tree_nodes import LOOKED_UP, TEXT, DraftTree
from .window_loop import DraftSampler


@dataclass
class Acceptance:
    """
    The outcome of one verification.

    Args:
        path (`list[int]`): Accepted nodes, from the text on.
        bonus (`int`, *optional*): The target's own token behind them; `None` where an accepted node ends the text.
        scores (`list[torch.Tensor]`): Processed target logits behind the text and behind every accepted node whose
            continuation was looked at, each `(1, vocab_size)`, float32.
    """

    path: list[int] = field(default_factory=list)
    bonus: int | None = None
    scores: list[torch.Tensor] = field(default_factory=list)

    def tokens(self, tree: DraftTree) -> list[int]:
        """All committed tokens."""
        accepted = [tree.nodes[node].token for node in self.path]
        return accepted if self.bonus is None else [*accepted, self.bonus]


class TreeVerifier:
    """
    Walks draft trees by the target's logits.

    Args:
        sampler ([`DraftSampler`]): How the children were chosen.
        logits_processor ([`~transformers.LogitsProcessorList`]): Processors of this call.
        eos_token_ids (`frozenset[int]`): Tokens that end the text.
    """

    def __init__(self, sampler: DraftSampler, logits_processor: LogitsProcessorList, eos_token_ids: frozenset[int]):
        self.sampler, self.processors, self.eos_token_ids = sampler, logits_processor, eos_token_ids

    def accept(self, tree: DraftTree, logits: torch.Tensor, context_ids: torch.LongTensor) -> Acceptance:
        """
        Args:
            tree ([`DraftTree`]): The tree.
            logits (`torch.Tensor` of shape `(nodes + 1, vocab_size)`): The target's, behind the text and every node.
            context_ids (`torch.LongTensor` of shape `(1, length)`): The text, for the processors.

        Returns:
            [`Acceptance`].
        """
        logits = logits.to(context_ids.device)
        choices = None
        if logits.device.type != "cpu" and not self.sampler.do_sample and not self.processors:
            # All choices with a single transfer to the host; where there is none, only those that are asked for.
            choices = logits.float().argmax(dim=-1).tolist()
        result, node = Acceptance(), TEXT
        while True:
            row = logits[node + 1 : node + 2].float()
            if self.processors:
                own = torch.tensor([[tree.nodes[i].token for i in result.path]], dtype=torch.long)
                row = self.processors(torch.cat([context_ids, own.to(context_ids.device)], dim=-1), row.clone())
            result.scores.append(row)
            children = tree.children.get(node, [])
            if self.sampler.do_sample:
                child, token = self._sample(tree, node, children, row)
            else:
                token = choices[node + 1] if choices is not None else favourite(rows_of(row[0]))
                child = next((i for i in children if tree.nodes[i].token == token), None)
            if child is None:
                result.bonus = token
                return result
            result.path.append(child)
            if token in self.eos_token_ids:
                return result
            node = child

    def _sample(self, tree: DraftTree, node: int, children: list[int], row: torch.Tensor) -> tuple[int | None, int]:
        """The accepted child and its token, or `None` and a token from what the children leave."""
        p = row[0].softmax(dim=-1)
        if children:
            q = self._draft_distribution(tree, node, p)
            draws = torch.rand(len(children), device=p.device, generator=self.sampler.generator).tolist()
            for child, draw in zip(children, draws, strict=True):
                token = tree.nodes[child].token
                certain = tree.nodes[child].rank == LOOKED_UP
                target_probability, draft_probability = float(p[token]), 1.0 if certain else float(q[token])
                residual = p.index_fill(0, row.new_tensor([token], dtype=torch.long), 0.0) if certain else p - q
                residual.clamp_min_(0.0)
                mass = float(residual.sum())
                # Without a residual the distributions are the same, and a rejection could only be a rounding error.
                if draw * draft_probability < target_probability or mass <= 0.0:
                    return child, token
                p = residual / mass
                q[token] = 0.0
                left = float(q.sum())
                if left > 0.0:
                    q = q / left
        return None, int(draw_in_turn(p[None], generator=self.sampler.generator))

    def _draft_distribution(self, tree: DraftTree, node: int, p: torch.Tensor) -> torch.Tensor:
        """What the drafter's children of a node were drawn from, `(vocab_size,)`; nothing where it was not asked."""
        said = tree.expansions.get(node)
        if said is None:
            return torch.zeros_like(p)
        scores = tree.draft_scores(node)
        scores = self.sampler.to_target_vocabulary(scores) if self.sampler.reduced else scores
        q = scores[0].to(p.device).softmax(dim=-1)
        if said.excluded is not None:
            q[said.excluded] = 0.0
            q = q / q.sum().clamp_min(torch.finfo(q.dtype).tiny)
        return q
