# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Configuration of the EAGLE-3 drafter."""

from huggingface_hub.dataclasses import strict
from transformers.modeling_rope_utils import RopeParameters

from .configuration_drafter import DrafterConfig
from .target_features import default_layer_ids


@strict
class Eagle3DrafterConfig(DrafterConfig):
    r"""
    Configuration of an [`Eagle3Drafter`] (EAGLE-3, arXiv 2503.01840; field names follow the public checkpoints).

    Args:
        hidden_size (`int`, *optional*, defaults to 2048): Width H of the drafter.
        target_hidden_size (`int`, *optional*):
            Width Ht of the target's hidden states. Defaults to `hidden_size`. When the two differ the drafter carries
            an embedding of its own; when they agree it shares the target's, which is never saved twice.
        intermediate_size (`int`, *optional*, defaults to 5504): Width of the MLP.
        num_hidden_layers (`int`, *optional*, defaults to 1): Decoder layers. The first reads embedding and hidden
            state side by side (width 2H), further ones only the hidden state.
        num_attention_heads (`int`, *optional*, defaults to 16): Query heads.
        num_key_value_heads (`int`, *optional*): Key/value heads. Defaults to `num_attention_heads`.
        head_dim (`int`, *optional*): Width of a head, free: defaults to `hidden_size // num_attention_heads`, but
            their product need not be `hidden_size`.
        hidden_act (`str`, *optional*, defaults to `"silu"`): Activation of the gated MLP.
        max_position_embeddings (`int`, *optional*, defaults to 2048): Longest context the drafter was made for.
        rms_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the RMS norms.
        rope_parameters (`RopeParameters`, *optional*): RoPE type and parameters, as in transformers.
        attention_bias (`bool`, *optional*, defaults to `False`): Bias in the query, key and value projections.
        attention_dropout (`float`, *optional*, defaults to 0.0): Dropout of attention weights in training.
        mlp_bias (`bool`, *optional*, defaults to `False`): Bias in the MLP's projections.
        aux_layer_ids (`list[int]`, *optional*):
            Target features that are read. Convention: `k` is `hidden_states[k]`, the residual stream entering layer
            `k` (0 = embeddings). vLLM and speculators use the same convention, SGLang's explicit lists are one lower.
            Defaults to `[2, n // 2, n - 3]` for a target of `n` layers (30 when `target_num_hidden_layers` is not
            given).
        norm_before_residual (`bool`, *optional*, defaults to `False`): The residual of the first layer starts from
            the normed hidden state instead of the raw one.
        norm_before_fc (`bool`, *optional*, defaults to `False`): One RMS norm over all concatenated features.
        fc_norm (`bool`, *optional*, defaults to `False`): One RMS norm per feature (EAGLE-3.1).
        norm_output (`bool`, *optional*, defaults to `False`): The state fed back to the next draft step is the
            normed one (EAGLE-3.1).
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of the random initialisation.

    Example:

    ```python
    >>> from ppow_hf import Eagle3Drafter, Eagle3DrafterConfig

    >>> config = Eagle3DrafterConfig(hidden_size=576, vocab_size=49152, draft_vocab_size=8192)
    >>> drafter = Eagle3Drafter(config)
    ```
    """

    model_type = "ppow_eagle3"
    keys_to_ignore_at_inference = ["past_key_values"]

    hidden_size: int = 2048
    target_hidden_size: int | None = None
    intermediate_size: int = 5504
    num_hidden_layers: int = 1
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_parameters: RopeParameters | dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float | None = 0.0
    mlp_bias: bool = False
    aux_layer_ids: list[int] | tuple[int, ...] | None = None
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.target_hidden_size is None:
            self.target_hidden_size = self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.aux_layer_ids is None:
            self.aux_layer_ids = default_layer_ids(self.target_num_hidden_layers or 30)
        self.aux_layer_ids = list(self.aux_layer_ids)
        super().__post_init__(**kwargs)

    @property
    def shares_target_embedding(self) -> bool:
        """Whether token embeddings come from the target (widths agree) instead of a table of the drafter's own."""
        return self.hidden_size == self.target_hidden_size

    def validate_eagle3(self):
        """Part of `@strict` validation."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                f"`head_dim` must be even and positive, because RoPE rotates pairs, got {self.head_dim}. Without it, "
                f"`hidden_size` ({self.hidden_size}) // `num_attention_heads` ({self.num_attention_heads}) is taken."
            )
        if self.num_hidden_layers < 1:
            raise ValueError(f"`num_hidden_layers` must be at least 1, got {self.num_hidden_layers}.")
        if not self.aux_layer_ids or self.aux_layer_ids != sorted(set(self.aux_layer_ids)):
            raise ValueError(
                f"`aux_layer_ids` must be a non-empty list of strictly ascending layer ids, got {self.aux_layer_ids}."
            )
        if self.norm_before_fc and self.fc_norm:
            raise ValueError("`norm_before_fc` and `fc_norm` exclude each other: choose one of them.")
