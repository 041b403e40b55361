# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A small causal language model as a drafter, under the same window interface as the others."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from .configuration_causal_lm import CausalLMDrafterConfig
from .drafter_state import DrafterOutput, DrafterState
from .learned_positions import learned_positions
from .loading import check_target
from .logits_head import logits_head
from .modeling_drafter import DrafterModel
from .packed_pass import PackedPass, attention_kinds, cannot_pack
from .packed_windows import check_starts, window_logits
from .tree_columns import as_implementation, keep_columns, tree_mask

# Layers that keep a state of the text in place of keys and values, or beside them.
_STATEFUL_LAYERS = frozenset({"conv", "linear_attention", "hybrid", "hybrid_sliding"})


@dataclass
class CausalLMWindows:
    """Windows of a causal-LM drafter, drafted side by side: their pass, and the projection of its states."""

    packed: PackedPass
    head: Callable[[torch.Tensor], torch.Tensor] | None

    @property
    def num_windows(self) -> int:
        """Windows per text."""
        return self.packed.starts.shape[1]


class CausalLMDrafter(DrafterModel):
    """
    Any small causal LM with the target's tokenizer, proposing windows of its own greedy or sampled continuations.

    Example:

    ```python
    >>> from ppow_hf import CausalLMDrafter

    >>> drafter = CausalLMDrafter.from_target(target, num_layers=4)
    >>> output = target.generate(**inputs, assistant_model=drafter)
    ```
    """

    config_class = CausalLMDrafterConfig
    base_model_prefix = "model"
    prediction_offset = 1
    max_ttt_steps = 1

    def __init__(self, config: CausalLMDrafterConfig):
        super().__init__(config)
        if config.causal_lm_config is None:
            raise ValueError(
                "`causal_lm_config` is missing: pass the configuration of the causal LM that drafts. A plain causal "
                "LM is loaded as a drafter by `AutoDrafter.from_pretrained`, or wrapped by "
                "`CausalLMDrafter.from_causal_lm`."
            )
        # "sdpa" is only this wrapper's default; families without it (Gemma 2) must be free to choose for themselves.
        attention = config._attn_implementation if config._attn_implementation != "sdpa" else None
        self.model = AutoModelForCausalLM.from_config(
            config.causal_lm_config, attn_implementation=attention, dtype=config.dtype
        )
        # The inner tie (lm_head = embedding) is part of this model's own state dict.
        inner = getattr(self.model, "_tied_weights_keys", None) or {}
        if self.model.config.get_text_config().tie_word_embeddings:
            self._tied_weights_keys = {f"model.{k}": f"model.{v}" for k, v in dict(inner).items()}
            self.config.tie_word_embeddings = True
        self.post_init()

    @classmethod
    def from_causal_lm(cls, model: PreTrainedModel) -> "CausalLMDrafter":
        """
        Wraps a causal LM.

        Args:
            model ([`~transformers.PreTrainedModel`]): A decoder-only causal LM; used as it is, not copied.

        Raises:
            ValueError: If it is an encoder-decoder, or some of its layers keep a state in place of keys and values.
        """
        check_target(model)
        text_config = model.config.get_text_config()
        kinds = dict.fromkeys(getattr(text_config, "layer_types", None) or ())
        if others := [kind for kind in kinds if kind in _STATEFUL_LAYERS]:
            raise ValueError(
                f"`model` is a `{type(model).__name__}` with layers of the type {', '.join(others)}, whose state "
                "cannot be rolled back after a rejected draft token. Use a model with attention in every layer."
            )
        config = CausalLMDrafterConfig(
            causal_lm_config=copy.deepcopy(model.config),
            vocab_size=text_config.vocab_size,
            bos_token_id=text_config.bos_token_id,
            eos_token_id=text_config.eos_token_id,
            pad_token_id=text_config.pad_token_id,
            dtype=model.dtype,
        )
        # Built on the meta device: the weights are the given model's, nothing needs allocating twice.
        with torch.device("meta"):
            drafter = cls(config)
        drafter.model = model
        return drafter.eval()

    @classmethod
    def from_target(cls, target: PreTrainedModel, num_layers: int) -> "CausalLMDrafter":
        """
        Starts a drafter from the target's own first layers, final norm, embedding and head.

        Args:
            target ([`~transformers.PreTrainedModel`]): The target.
            num_layers (`int`): Number of its layers to keep, counted from the embedding.

        Returns:
            [`CausalLMDrafter`]: A drafter of its own, sharing no tensor with the target.

        Raises:
            ValueError: If `num_layers` is not between 1 and the target's number of layers, or the target's weights
                cannot be told apart by layer.
        """
        check_target(target)
        total = target.config.get_text_config().num_hidden_layers
        if not 1 <= num_layers <= total:
            raise ValueError(f"`num_layers` must be between 1 and the target's {total} layers, got {num_layers}.")
        config = copy.deepcopy(target.config)
        text_config = config.get_text_config()
        text_config.num_hidden_layers = num_layers
        if getattr(text_config, "layer_types", None) is not None:
            text_config.layer_types = text_config.layer_types[:num_layers]
        config._name_or_path = ""
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=target.dtype)
        except ValueError as error:
            raise ValueError(
                f"transformers builds no shorter `{type(target).__name__}` for `num_layers`={num_layers} "
                f"({str(error).splitlines()[0]}). Build the short model yourself and use `from_causal_lm`, or use an "
                "`Eagle3Drafter`."
            ) from error
        # Layers are numbered from the embedding, so names agree; what the shorter model lacks is left out.
        wanted, given = model.state_dict(), target.state_dict()
        missing = wanted.keys() - given.keys()
        if missing:
            raise ValueError(
                f"The target `{type(target).__name__}` keeps its layers under other names than its causal LM class "
                f"(missing {sorted(missing)[:3]}...). Build the short model yourself and use `from_causal_lm`."
            )
        whole = sorted(name for name, value in wanted.items() if given[name].shape != value.shape)
        if whole:
            raise ValueError(
                f"The target `{type(target).__name__}` keeps weights of all its layers in one tensor "
                f"({', '.join(whole[:3])}), of which a model of `num_layers`={num_layers} has less. Build the short "
                "model yourself and use `from_causal_lm`, or use an `Eagle3Drafter`."
            )
        model.load_state_dict({name: given[name] for name in wanted})
        drafter = cls.from_causal_lm(model.to(target.device))
        drafter.config.target_name_or_path = target.config._name_or_path or None
        drafter.config.target_model_type = target.config.get_text_config().model_type
        drafter.config.target_num_hidden_layers = total
        drafter.config.target_hidden_size = target.config.get_text_config().hidden_size
        return drafter

    def get_output_embeddings(self) -> torch.nn.Module | None:
        # Where it is tied to the embedding, FSDP must shard both as one.
        return self.model.get_output_embeddings()

    @property
    def max_positions(self) -> int | None:
        return learned_positions(self.model)

    # ---- decoding and rollouts -------------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(
        self,
        state: DrafterState,
        input_ids: torch.LongTensor,
        features: torch.Tensor | None = None,
        num_accepted: int = 0,
    ) -> torch.Tensor:
        # Columns of accepted draft tokens hold exactly what committing them would compute: they are kept. The last
        # draft token of a window has no column, it was never fed back.
        keep = min(num_accepted, state.drafted)
        state.drop_draft(keep)
        return self._feed(state, input_ids[:, keep:], committed=True)

    @torch.no_grad()
    def step(self, state: DrafterState, token_ids: torch.LongTensor) -> torch.Tensor:
        return self._feed(state, token_ids[:, None], committed=False)

    def _feed(self, state: DrafterState, input_ids: torch.LongTensor, committed: bool) -> torch.Tensor:
        length = input_ids.shape[1]
        start = state.committed + state.drafted
        position_ids = torch.arange(start, start + length, device=input_ids.device)[None]
        output = self.model(
            input_ids,
            position_ids=position_ids.expand(input_ids.shape[0], -1),
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if committed:
            state.committed += length
        else:
            state.drafted += length
        return output.logits[:, -1]

    def check_tree(self) -> None:
        reason = cannot_pack(self.model)
        if reason is not None:
            raise ValueError(
                f"This drafter, a `{type(self.model).__name__}`, cannot draft a tree: {reason}. Load it with "
                '`attn_implementation="sdpa"` or `"eager"`, or leave `tree` out of the window to draft chains.'
            )

    @torch.no_grad()
    def step_tree(self, state: DrafterState, token_ids: torch.LongTensor, parents: Sequence[int]) -> torch.Tensor:
        self.check_tree()
        rows, device = state.grow_level(parents), token_ids.device
        level = state.tree.levels[-1]
        config = self.model.config.get_text_config()
        mask, masks = tree_mask(rows, state.committed, device), {}
        for kind, window in attention_kinds(config).items():
            seen = mask
            if seen is not None and window is not None:
                # A node sees itself and the `window - 1` positions before it, as in transformers.
                positions = [*range(state.committed), *(state.committed + place for place in state.tree.levels)]
                seen = seen & (torch.tensor(positions, device=device) > state.committed + level - window)
            masks[kind] = as_implementation(seen, config._attn_implementation, self.model.dtype)
        logits = self.model(
            token_ids[None],
            # A model with one kind of layer takes one mask; one with several picks its own for each layer. Without a
            # mask the model makes its own.
            attention_mask=None if mask is None else masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=torch.full((1, len(parents)), state.committed + level, device=device),
            past_key_values=state.cache,
            use_cache=True,
        ).logits
        return logits[0]

    def keep_path(self, state: DrafterState, columns: Sequence[int]) -> None:
        keep_columns(state.cache, state.committed, columns)
        state.drafted, state.tree = len(columns), None

    def begin_windows(
        self,
        input_ids: torch.LongTensor,
        features: torch.Tensor | None,
        starts: torch.LongTensor,
        group_size: int = 1,
    ) -> tuple[CausalLMWindows, torch.Tensor]:
        starts = check_starts(starts, input_ids, group_size)
        reason = cannot_pack(self.model)
        if reason is not None:
            raise ValueError(
                f"Windows of `{type(self.model).__name__}` cannot be drafted side by side: {reason}. Load the drafter "
                'with `attn_implementation="sdpa"` or `"eager"`, or draft one window at a time.'
            )
        head = logits_head(self.model, input_ids)
        cache = DynamicCache()
        output = self._states(input_ids, head, past_key_values=cache, use_cache=True)
        packed = PackedPass(
            self.model,
            cache,
            torch.ones_like(input_ids),
            starts.repeat_interleave(group_size, dim=1),
            apart=head is not None,
            keep=True,
        )
        rows = torch.arange(len(starts), device=starts.device)[:, None]
        states = output[rows, starts - 1]
        return CausalLMWindows(packed, head), states if head is None else head(states)

    def step_windows(self, state: CausalLMWindows, token_ids: torch.LongTensor) -> torch.Tensor:
        states = state.packed.feed(token_ids[..., None])[:, :, 0]
        return states if state.head is None else state.head(states)

    def text_logits(
        self, input_ids: torch.LongTensor, features: torch.Tensor | None
    ) -> Callable[[torch.LongTensor, torch.LongTensor], torch.Tensor]:
        head = logits_head(self.model, input_ids)
        states = self._states(input_ids, head, use_cache=False)
        if head is None:
            return lambda rows, columns: states[rows, columns]
        return lambda rows, columns: head(states[rows, columns])

    def _states(self, input_ids: torch.LongTensor, head: Callable | None, **kwargs) -> torch.Tensor:
        """Last hidden states, or logits where the head cannot be applied apart. Texts are padded on the right."""
        if head is None:
            return self.model(input_ids, **kwargs).logits
        return self.model.base_model(input_ids, **kwargs).last_hidden_state

    # ---- training --------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.LongTensor,
        target_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        ttt_steps: int = 1,
        column_mask: torch.Tensor | None = None,
        starts: torch.LongTensor | None = None,
        window_tokens: torch.LongTensor | None = None,
        score: Callable | None = None,
    ) -> DrafterOutput:
        """
        Teacher-forced pass over whole sequences.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): Token ids.
            target_features: Not read by this family.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 for tokens, 0 for padding.
            ttt_steps (`int`, *optional*, defaults to 1): Must be 1: feeding back tokens is all this family does.
            column_mask (`torch.Tensor` of shape `(1, batch, length)`, bool, *optional*): Columns to return.
            starts, window_tokens (`torch.LongTensor`, *optional*):
                Score these windows instead, see [`~ppow_hf.drafters.window_logits`].
            score (`Callable`, *optional*): Called as `score(0, logits, None)`; what it returns takes the place of the
                logits, in `scores`.

        Returns:
            [`DrafterOutput`]: One step of logits. Column `i` predicts the token at `i + 1`.
        """
        if window_tokens is not None:
            return DrafterOutput(window_logits(self, input_ids, None, starts, window_tokens))
        if ttt_steps != 1:
            raise ValueError(f"`ttt_steps` must be 1 for a causal-LM drafter, got {ttt_steps}.")
        logits = self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits
        if column_mask is not None:
            logits = logits[column_mask[0]]
        if score is not None:
            return DrafterOutput(scores=(score(0, logits, None),))
        return DrafterOutput(logits=(logits,))
