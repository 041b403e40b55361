# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The EAGLE-3 drafter (arXiv 2503.01840): one decoder layer over fused target features and token embeddings.

Column `i` reads the target's features at position `i` and the token at position `i + 1`, and predicts the token at
position `i + 2`. Behind the last verified position the drafter's own state takes the place of the features. Weight
names are those of the public checkpoints.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from .configuration_eagle3 import Eagle3DrafterConfig
from .draft_vocabulary import check_vocabulary_maps, vocabulary_maps
from .drafter_state import DrafterOutput, DrafterState
from .eagle3_layers import Eagle3DecoderLayer, Eagle3ExtraDecoderLayer, ttt_causal_mask
from .eagle3_step import Eagle3Step, single_sequence_step
from .eagle3_training import training_time_test
from .modeling_drafter import DrafterModel
from .packed_windows import PackedState, check_starts, prefix_mask, window_logits
from .tree_columns import as_implementation, tree_mask


class Eagle3Drafter(DrafterModel):
    """
    EAGLE-3 drafter: proposes windows from the target's own hidden states (arXiv 2503.01840).

    Example:

    ```python
    >>> from ppow_hf import AutoDrafter

    >>> drafter = AutoDrafter.from_pretrained("org/my-drafter")
    >>> output = target.generate(**inputs, assistant_model=drafter)
    ```
    """

    config_class = Eagle3DrafterConfig
    prediction_offset = 2
    max_ttt_steps = 8
    prepacks = True
    _no_split_modules = ["Eagle3DecoderLayer", "Eagle3ExtraDecoderLayer"]

    def __init__(self, config: Eagle3DrafterConfig):
        super().__init__(config)
        feature_width = config.target_hidden_size * len(config.aux_layer_ids)
        self.fc = nn.Linear(feature_width, config.hidden_size, bias=False)
        if config.norm_before_fc:
            self.input_norm = LlamaRMSNorm(feature_width, eps=config.rms_norm_eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(
                LlamaRMSNorm(config.target_hidden_size, eps=config.rms_norm_eps) for _ in config.aux_layer_ids
            )
        self.midlayer = Eagle3DecoderLayer(config)
        self.layers = nn.ModuleList(Eagle3ExtraDecoderLayer(config, i) for i in range(1, config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        if not config.shares_target_embedding:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.draft_vocab_size != config.vocab_size:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
            self.register_buffer("t2d", torch.arange(config.vocab_size) < config.draft_vocab_size)
        self._draft_token_ids: torch.Tensor | None = None
        self._set_shared_embedding(None)
        if not self.layers:
            # accelerate looks for every class that is named, and a drafter of one layer has none of the others.
            self._no_split_modules = ["Eagle3DecoderLayer"]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Eagle3Drafter) and hasattr(module, "d2t"):
            # Without a vocabulary of its own the drafter proposes the first `draft_vocab_size` target tokens.
            init.copy_(module.d2t, torch.zeros_like(module.d2t))
            kept = torch.arange(module.config.vocab_size, device=module.t2d.device) < module.config.draft_vocab_size
            init.copy_(module.t2d, kept)

    # ---- tie to the target -----------------------------------------------------------------------------------------

    @property
    def feature_layer_ids(self) -> tuple[int, ...]:
        return tuple(self.config.aux_layer_ids)

    @property
    def draft_token_ids(self) -> torch.Tensor | None:
        if not hasattr(self, "d2t"):
            return None
        if self._draft_token_ids is None or self._draft_token_ids.device != self.d2t.device:
            # Kept for training, too, which cannot save tensors of inference mode for its backward pass.
            with torch.inference_mode(False):
                self._draft_token_ids = self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)
        return self._draft_token_ids

    @classmethod
    def from_target(cls, target: PreTrainedModel, **kwargs) -> "Eagle3Drafter":
        """
        Builds an untrained drafter for a target, started from the target's own weights.

        Args:
            target ([`~transformers.PreTrainedModel`]): A decoder-only causal LM.
            kwargs: As for [`~ppow_hf.drafters.eagle3_from_target`]: `draft_token_ids`, `draft_vocab_size`,
                `initialization`, `seed`, and any field of [`Eagle3DrafterConfig`].
        """
        from .initialization import eagle3_from_target

        return eagle3_from_target(target, **kwargs)

    def set_draft_vocabulary(self, draft_token_ids: torch.Tensor) -> None:
        """
        Chooses the target tokens the drafter can propose. The rows of `lm_head` are taken to be in this order.

        Args:
            draft_token_ids (`torch.Tensor` of shape `(draft_vocab_size,)`, int64): Target ids, strictly ascending.
        """
        if len(draft_token_ids) != self.config.draft_vocab_size:
            raise ValueError(
                f"`draft_token_ids` holds {len(draft_token_ids)} ids, but `draft_vocab_size` is "
                f"{self.config.draft_vocab_size}."
            )
        if not hasattr(self, "d2t"):
            raise ValueError(
                "This drafter proposes every token of the target; it has no vocabulary of its own to set."
            )
        d2t, t2d = vocabulary_maps(draft_token_ids, self.config.vocab_size)
        self.d2t.copy_(d2t)
        self.t2d.copy_(t2d)
        self._draft_token_ids = None

    def bind_target(self, target: PreTrainedModel) -> None:
        # The embedding is held, so its identity cannot be taken over by another target as a freed `id` could.
        bound = self._shared_embedding
        same = bound is not None and target.get_input_embeddings() is bound
        if same and len(bound.weight) == self._bound_vocabulary:
            return
        super().bind_target(target)
        if self.config.shares_target_embedding:
            self._set_shared_embedding(target.get_input_embeddings())
            # Resizing a target's vocabulary keeps the embedding.
            self._bound_vocabulary = len(self._shared_embedding.weight)

    def _set_shared_embedding(self, embedding: nn.Module | None) -> None:
        # Past nn.Module's registry: the target's table is neither a parameter of the drafter nor saved with it.
        object.__setattr__(self, "_shared_embedding", embedding)

    def __getstate__(self) -> dict:
        # Copies and pickles leave the target's table behind: they are bound anew.
        return {**super().__getstate__(), "_shared_embedding": None}

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._draft_token_ids = None  # `d2t` may have changed.

    @property
    def token_table(self) -> nn.Module:
        """The embedding of tokens: the target's, or the drafter's own."""
        if not self.config.shares_target_embedding:
            return self.embed_tokens
        if self._shared_embedding is None:
            raise ValueError("This drafter shares its target's token embedding: call `bind_target(target)` first.")
        return self._shared_embedding

    def get_input_embeddings(self) -> nn.Module | None:
        """The drafter's own embedding; `None` where it shares its target's, which is no part of it."""
        return getattr(self, "embed_tokens", None)

    def _embed(self, token_ids: torch.LongTensor) -> torch.Tensor:
        table = self.token_table
        if not self.config.shares_target_embedding:
            return table(token_ids)
        with torch.no_grad():
            return table(token_ids).to(self.fc.weight.dtype)

    def _check_weights(self, source: str) -> None:
        if hasattr(self, "d2t"):
            try:
                check_vocabulary_maps(self.d2t, self.t2d)
            except ValueError as error:
                raise ValueError(f"`{source}`: {error}") from error

    # ---- one pass over columns -------------------------------------------------------------------------------------

    def project_features(self, features: torch.Tensor) -> torch.Tensor:
        """
        Fuses target features into drafter states.

        Args:
            features (`torch.Tensor` of shape `(batch, length, len(aux_layer_ids) * target_hidden_size)`).

        Returns:
            `torch.Tensor` of shape `(batch, length, hidden_size)`.
        """
        features = features.to(self.fc.weight.dtype)
        if self.config.norm_before_fc:
            features = self.input_norm(features)
        if self.config.fc_norm:
            chunks = features.split(self.config.target_hidden_size, dim=-1)
            features = torch.cat([norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)], dim=-1)
        return self.fc(features)

    def _decode(
        self,
        token_ids: torch.LongTensor,
        hidden_states: torch.Tensor,
        position_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        cache: Cache,
    ) -> torch.Tensor:
        embeds = self._embed(token_ids)
        shared = {
            "position_embeddings": self.rotary_emb(embeds, position_ids),
            "attention_mask": attention_mask,
            "past_key_values": cache,
        }
        hidden_states = self.midlayer(embeds, hidden_states, **shared)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **shared)
        return hidden_states

    def _head(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the state that the next draft step is fed."""
        normed = self.norm(hidden_states)
        return self.lm_head(normed), (normed if self.config.norm_output else hidden_states)

    # ---- decoding and rollouts -------------------------------------------------------------------------------------

    def _short_way(self, state: DrafterState) -> Eagle3Step | None:
        if state.short_way is None:
            state.short_way = (state.batch_size == 1 and single_sequence_step(self)) or False
        return state.short_way or None

    @torch.no_grad()
    def extend(
        self,
        state: DrafterState,
        input_ids: torch.LongTensor,
        features: torch.Tensor | None = None,
        num_accepted: int = 0,
    ) -> torch.Tensor:
        state.drop_draft()
        token_ids = input_ids if state.committed else input_ids[:, 1:]
        if token_ids.shape[1] == 0:
            raise ValueError(
                "`input_ids` must hold at least the prompt and the first generated token at the first call, and one "
                f"token later, got {input_ids.shape[1]}."
            )
        if features is None or features.shape[1] != token_ids.shape[1]:
            raise ValueError(
                f"`features` must cover {token_ids.shape[1]} newly verified positions for {input_ids.shape[1]} "
                f"committed tokens, got {None if features is None else features.shape[1]}."
            )
        hidden_states = self.project_features(features)
        start, length = state.committed, token_ids.shape[1]
        if way := self._short_way(state):
            logits, state.hidden = way.extend(state.cache, token_ids, hidden_states, start)
            state.committed += length
            return logits
        position_ids = torch.arange(start, start + length, device=token_ids.device)[None]
        mask = None
        if length > 1:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=hidden_states,
                attention_mask=None,
                past_key_values=state.cache,
                position_ids=position_ids,
            )
        hidden_states = self._decode(token_ids, hidden_states, position_ids, mask, state.cache)
        state.committed += length
        logits, state.hidden = self._head(hidden_states[:, -1:])
        return logits[:, 0]

    @torch.no_grad()
    def step(self, state: DrafterState, token_ids: torch.LongTensor) -> torch.Tensor:
        position = state.committed + state.drafted
        if way := self._short_way(state):
            logits, state.hidden = way.step(state.cache, token_ids, state.hidden, position)
            state.drafted += 1
            return logits
        position_ids = torch.full((1, 1), position, device=token_ids.device)
        hidden_states = self._decode(token_ids[:, None], state.hidden, position_ids, None, state.cache)
        state.drafted += 1
        logits, state.hidden = self._head(hidden_states)
        return logits[:, 0]

    @torch.no_grad()
    def step_tree(self, state: DrafterState, token_ids: torch.LongTensor, parents: Sequence[int]) -> torch.Tensor:
        mask = tree_mask(state.grow_level(parents), state.committed, token_ids.device)
        if mask is None and (way := self._short_way(state)):
            position = state.committed + state.tree.levels[-1]
            hidden_states = state.hidden[:, parents[0] : parents[0] + 1]
            logits, state.hidden = way.step(state.cache, token_ids, hidden_states, position)
            return logits
        mask = as_implementation(mask, self.config._attn_implementation, self.dtype)
        position_ids = torch.full((1, len(parents)), state.committed + state.tree.levels[-1], device=token_ids.device)
        hidden_states = state.hidden[:, list(parents)]
        hidden_states = self._decode(token_ids[None], hidden_states, position_ids, mask, state.cache)
        logits, state.hidden = self._head(hidden_states)
        return logits[0]

    def check_tree(self) -> None:
        implementation = self.config._attn_implementation
        if implementation not in ("sdpa", "eager"):
            raise ValueError(
                f"This drafter cannot draft a tree: its attention {implementation!r} takes no mask of ours. Load it "
                'with `attn_implementation="sdpa"` or `"eager"`, or leave `tree` out of the window to draft chains.'
            )

    def _check_takes_masks(self, what: str) -> None:
        """Refuses attention that would silently drop the dense masks by which columns are kept from each other."""
        implementation = self.config._attn_implementation or ""
        if "flash" in implementation:
            raise ValueError(
                f"{what} needs a dense attention mask, which `{implementation}` does not take. Load the drafter with "
                '`attn_implementation="sdpa"` or `"eager"`; only decoding chains can use flash attention.'
            )

    def begin_windows(
        self,
        input_ids: torch.LongTensor,
        features: torch.Tensor | None,
        starts: torch.LongTensor,
        group_size: int = 1,
    ) -> tuple[PackedState, torch.Tensor]:
        self._check_takes_masks("Drafting windows side by side")
        starts = check_starts(starts, input_ids, group_size)
        if features is None or features.shape[:2] != input_ids.shape:
            raise ValueError(
                f"`features` must cover the texts {tuple(input_ids.shape)}, got "
                f"{None if features is None else tuple(features.shape[:2])}."
            )
        hidden_states = self.project_features(features[:, :-1])
        columns = hidden_states.shape[1]
        position_ids = torch.arange(columns, device=input_ids.device)[None]
        # Column i carries the token at i + 1, so a text committed up to `start` has `start - 1` columns.
        lengths = (starts - 1).repeat_interleave(group_size, dim=1)
        state = PackedState(mask=prefix_mask(lengths, columns, hidden_states.dtype), positions=lengths)
        mask = ttt_causal_mask(columns, None, hidden_states)
        hidden_states = self._decode(input_ids[:, 1:], hidden_states, position_ids, mask, state.cache)
        rows = torch.arange(len(starts), device=starts.device)[:, None]
        logits, hidden_states = self._head(hidden_states[rows, starts - 2])
        state.hidden = hidden_states.repeat_interleave(group_size, dim=1)
        return state, logits

    def step_windows(self, state: PackedState, token_ids: torch.LongTensor) -> torch.Tensor:
        state.see_own_column()
        hidden_states = self._decode(token_ids, state.hidden, state.positions, state.mask, state.cache)
        state.positions = state.positions + 1
        logits, state.hidden = self._head(hidden_states)
        return logits

    def text_logits(
        self, input_ids: torch.LongTensor, features: torch.Tensor | None
    ) -> Callable[[torch.LongTensor, torch.LongTensor], torch.Tensor]:
        self._check_takes_masks("Drafting at every place of a text")
        hidden_states = self.project_features(features[:, :-1])
        position_ids = torch.arange(hidden_states.shape[1], device=input_ids.device)[None]
        mask = ttt_causal_mask(hidden_states.shape[1], None, hidden_states)
        hidden_states = self._decode(input_ids[:, 1:], hidden_states, position_ids, mask, DynamicCache())
        return lambda rows, columns: self._head(hidden_states[rows, columns])[0]

    # ---- training --------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.LongTensor,
        target_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        ttt_steps: int = 1,
        column_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        starts: torch.LongTensor | None = None,
        window_tokens: torch.LongTensor | None = None,
        score: Callable | None = None,
    ) -> DrafterOutput:
        """
        Training-time test (EAGLE-3, arXiv 2503.01840, section 3.2): all columns of whole sequences, several draft
        steps deep. Step `k` feeds every column the state it produced at step `k - 1` and the token `k` places further
        on; it sees the target-fed columns up to its own and, of the later steps, its own column alone. That is what
        drafting `k` tokens from each position in turn would see.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): Token ids.
            target_features (`torch.Tensor` of shape `(batch, length, len(aux_layer_ids) * target_hidden_size)`):
                The target's features at the same positions.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
                1 for tokens, 0 for padding.
            ttt_steps (`int`, *optional*, defaults to 1): Draft steps, 1 to 8.
            column_mask (`torch.Tensor` of shape `(ttt_steps, batch, length)`, bool, *optional*):
                Columns whose logits are wanted at each step; the others cost no vocabulary projection, and columns
                before the first wanted one are skipped from the second step on.
            output_hidden_states (`bool`, *optional*, defaults to `False`): Return the states of each step.
            starts, window_tokens (`torch.LongTensor`, *optional*):
                Score these windows instead, see [`~ppow_hf.drafters.window_logits`].
            score (`Callable`, *optional*): Called as `score(step, states, head)` with the head's inputs at this step's
                columns; what it returns takes the place of the logits, in `scores`.

        Returns:
            [`DrafterOutput`]: Logits of every step. Column `i` of step `k` predicts the token at `i + 2 + k`.

        Raises:
            ValueError: If `ttt_steps` is not between 1 and 8, or shapes do not agree.
        """
        if window_tokens is not None:
            return DrafterOutput(window_logits(self, input_ids, target_features, starts, window_tokens))
        self._check_takes_masks("Training-time test")
        return training_time_test(
            self, input_ids, target_features, attention_mask, ttt_steps, column_mask, output_hidden_states, score
        )
