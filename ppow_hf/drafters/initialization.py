# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""A fresh EAGLE-3 drafter for a target, started from the target's own last layer instead of from noise (ours)."""

import copy
import dataclasses
import logging

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_eagle3 import Eagle3DrafterConfig
from .draft_vocabulary import vocabulary_maps
from .loading import check_target
from .modeling_eagle3 import Eagle3Drafter
from .target_features import check_layer_ids, default_layer_ids

logger = logging.getLogger(__name__)

# Standard deviation of what is added to the halves that start at zero, so that no unit starts exactly dead.
_EMBEDDING_HALF_STD = 0.01
# Where the target norms what attention and MLP put out and the drafter does not, its random weights shrink by this.
_SMALL = 0.1
# x * sigmoid(1.702 x) is GELU to within 0.02 (Hendrycks and Gimpel 2016), and SiLU(1.702 x) / 1.702 is just that.
_GELU_SLOPE = 1.702


def drafter_config_for(target: PreTrainedModel, *, draft_vocab_size: int | None = None, **overrides):
    """
    Sizes, RoPE, vocabulary and identity of an EAGLE-3 drafter for a target.

    Args:
        target ([`~transformers.PreTrainedModel`]): A decoder-only causal LM.
        draft_vocab_size (`int`, *optional*): Size of the draft vocabulary. Defaults to the target's.
        overrides: Any field of [`Eagle3DrafterConfig`].

    Returns:
        [`Eagle3DrafterConfig`].
    """
    check_target(target)
    source = target.config.get_text_config()
    # Where layers differ in their sizes the configuration tells them by layer only: the drafter's is like the last.
    last = source.per_layer_config[-1]
    heads = last.num_attention_heads
    values = {
        "vocab_size": source.vocab_size,
        "draft_vocab_size": draft_vocab_size,
        "hidden_size": source.hidden_size,
        "target_hidden_size": source.hidden_size,
        "intermediate_size": _intermediate_size(last) or 4 * source.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(last, "num_key_value_heads", None) or heads,
        "head_dim": getattr(last, "head_dim", None) or source.hidden_size // heads,
        "max_position_embeddings": getattr(source, "max_position_embeddings", None) or 2048,
        "rms_norm_eps": getattr(source, "rms_norm_eps", None) or 1e-5,
        "rope_parameters": _rope_parameters(source),
        "aux_layer_ids": list(default_layer_ids(source.num_hidden_layers)),
        "bos_token_id": source.bos_token_id,
        "eos_token_id": source.eos_token_id,
        "pad_token_id": source.pad_token_id,
        "target_name_or_path": target.config._name_or_path or None,
        "target_model_type": source.model_type,
        "target_num_hidden_layers": source.num_hidden_layers,
    }
    unknown = sorted(overrides.keys() - {field.name for field in dataclasses.fields(Eagle3DrafterConfig)})
    if unknown:
        raise ValueError(f"Unknown field(s) of Eagle3DrafterConfig: {', '.join(unknown)}.")
    if "num_attention_heads" in overrides:
        values["num_key_value_heads"] = values["head_dim"] = None
    values.update(overrides)
    values["aux_layer_ids"] = list(check_layer_ids(values["aux_layer_ids"], source.num_hidden_layers))
    return Eagle3DrafterConfig(**values)


def _intermediate_size(source) -> int | None:
    """That of the target's last layer, where each has its own."""
    size = getattr(source, "intermediate_size", None)
    return size[-1] if isinstance(size, list | tuple) else size


def _rope_parameters(source) -> dict | None:
    """The target's RoPE parameters for full attention, rotating whole heads as EAGLE-3 does."""
    parameters = copy.deepcopy(getattr(source, "rope_parameters", None)) or None
    if parameters is None:
        return None
    if "rope_type" not in parameters:
        nested = [v for v in parameters.values() if isinstance(v, dict)]
        parameters = parameters.get("full_attention") or (nested[0] if nested else None)
    # Longrope's factors are one per rotated pair: those of partly rotated heads do not fit whole ones.
    partial = (parameters or {}).get("partial_rotary_factor") not in (None, 1, 1.0)
    unfit = ("proportional", "axial", "longrope") if partial else ("proportional", "axial")
    if parameters is None or parameters.get("rope_type") in unfit:
        theta = (parameters or {}).get("rope_theta", 10000.0)
        return {"rope_type": "default", "rope_theta": theta}
    parameters.pop("partial_rotary_factor", None)
    parameters.pop("mrope_section", None)
    return parameters


def eagle3_from_target(
    target: PreTrainedModel,
    *,
    draft_token_ids: torch.Tensor | None = None,
    draft_vocab_size: int | None = None,
    initialization: str = "target",
    seed: int = 0,
    **overrides,
) -> Eagle3Drafter:
    """
    Builds an untrained EAGLE-3 drafter for a target.

    With `initialization="target"` the deepest feature passes `fc` unchanged, norms, attention and MLP are those of the
    target's last layer where shapes allow, and `lm_head` holds the target's rows of the draft vocabulary (ours).

    The drafter's gate is a SiLU whatever the target's is, since the engines that serve drafters compute nothing else.
    A GELU gate is taken over with its slope, which makes it a SiLU but for 0.02; of a target with any other gate the
    MLP is not taken over. With `hidden_act` set to the target's own, it is copied as it is.

    Args:
        target ([`~transformers.PreTrainedModel`]): A decoder-only causal LM.
        draft_token_ids (`torch.Tensor` of shape `(draft_vocab_size,)`, *optional*): Target ids the drafter proposes.
        draft_vocab_size (`int`, *optional*): Its size; without `draft_token_ids` the first ids of the target.
        initialization (`str`, *optional*, defaults to `"target"`): `"target"` or `"random"`.
        seed (`int`, *optional*, defaults to 0): Seed of whatever is random.
        overrides: Any field of [`Eagle3DrafterConfig`], for example `aux_layer_ids` or `intermediate_size`.

    Returns:
        [`Eagle3Drafter`] in float32, on the target's device, tied to it.

    Raises:
        ValueError: If the target cannot have a drafter or an argument does not fit it.
    """
    if initialization not in ("target", "random"):
        raise ValueError(f"`initialization` must be 'target' or 'random', got {initialization!r}.")
    vocab_size = target.config.get_text_config().vocab_size
    if draft_token_ids is not None:
        draft_token_ids = torch.as_tensor(draft_token_ids, dtype=torch.long)
        if draft_vocab_size not in (None, len(draft_token_ids)):
            raise ValueError(
                f"`draft_vocab_size`={draft_vocab_size} contradicts the {len(draft_token_ids)} `draft_token_ids`."
            )
        vocabulary_maps(draft_token_ids, vocab_size)  # Names a bad list before anything is built.
        draft_vocab_size = len(draft_token_ids)
    config = drafter_config_for(target, draft_vocab_size=draft_vocab_size, **overrides)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drafter = Eagle3Drafter(config).float()
    if draft_token_ids is not None and config.draft_vocab_size != vocab_size:
        drafter.set_draft_vocabulary(draft_token_ids)
    if initialization == "target":
        _copy_from_target(drafter, target, seed)
    drafter.to(target.device)
    drafter.bind_target(target)
    return drafter.eval()


@torch.no_grad()
def _copy_from_target(drafter: Eagle3Drafter, target: PreTrainedModel, seed: int) -> None:
    config = drafter.config
    generator = torch.Generator().manual_seed(seed)
    if config.shares_target_embedding:
        width, count = config.target_hidden_size, len(config.aux_layer_ids)
        drafter.fc.weight.normal_(0, _EMBEDDING_HALF_STD, generator=generator)
        drafter.fc.weight[:, (count - 1) * width :] = torch.eye(width)
    layer = _last_layer(target)
    copied = {"lm_head": _copy_rows(drafter.lm_head.weight, _output_rows(target, drafter))}
    if layer is not None:
        attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
        for name in ("q_proj", "k_proj", "v_proj"):
            mine = getattr(drafter.midlayer.self_attn, name).weight
            theirs = getattr(getattr(attention, name, None), "weight", None)
            # Width 2H: the target's projection reads the hidden half, the embedding half starts near zero.
            hidden_half = mine[:, config.hidden_size :]
            copied[name] = _copy_rows(hidden_half, theirs)
            if copied[name]:
                mine[:, : config.hidden_size].normal_(0, _EMBEDDING_HALF_STD, generator=generator)
        # Gemma norms what attention and MLP add to the stream, which the drafter does not: there, its own start small.
        sandwich = hasattr(layer, "pre_feedforward_layernorm")
        slope = _gate_slope(drafter.midlayer.mlp, mlp)
        for module, source, name in (
            (drafter.midlayer.self_attn, attention, "o_proj"),
            (drafter.midlayer.mlp, mlp, "gate_proj"),
            (drafter.midlayer.mlp, mlp, "up_proj"),
            (drafter.midlayer.mlp, mlp, "down_proj"),
        ):
            mine = getattr(module, name).weight
            if sandwich and name in ("o_proj", "down_proj"):
                mine.mul_(_SMALL)
                continue
            theirs = getattr(getattr(source, name, None), "weight", None)
            copied[name] = (source is not mlp or slope is not None) and _copy_rows(mine, theirs)
            if copied[name] and name in ("gate_proj", "down_proj"):
                mine.mul_(slope if name == "gate_proj" else 1 / slope)
        before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        for mine, theirs in (("hidden_norm", "input_layernorm"), ("post_attention_layernorm", before_mlp)):
            copied[mine] = _copy_norm(getattr(drafter.midlayer, mine), getattr(layer, theirs, None))
    copied["norm"] = _copy_norm(drafter.norm, getattr(target.get_decoder(), "norm", None))
    left = [name for name, done in copied.items() if not done]
    if left:
        logger.info(
            "These parts of the drafter start random, the target has none of their shape: %s.", ", ".join(left)
        )


def _gate_slope(mine: nn.Module, theirs: nn.Module | None) -> float | None:
    """How much steeper the drafter's gate has to be to act like the target's, `None` where no slope makes it."""
    act_fn = getattr(theirs, "act_fn", None)
    if act_fn is None:
        return None
    points = torch.linspace(-8, 8, 257)
    for slope in (1.0, _GELU_SLOPE):
        if (mine.act_fn(slope * points) / slope - act_fn(points)).abs().max() < 0.03:
            return slope
    return None


def _last_layer(target: PreTrainedModel) -> nn.Module | None:
    layers = getattr(target.get_decoder(), "layers", None)
    return layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None


def _output_rows(target: PreTrainedModel, drafter: Eagle3Drafter) -> torch.Tensor | None:
    head = target.get_output_embeddings()
    if head is None:
        return None
    rows = drafter.draft_token_ids
    return head.weight if rows is None else head.weight[rows.to(head.weight.device)]


def _copy_rows(mine: torch.Tensor, theirs: torch.Tensor | None) -> bool:
    if theirs is None or theirs.shape != mine.shape:
        return False
    mine.copy_(theirs)
    return True


def _copy_norm(mine: nn.Module, theirs: nn.Module | None) -> bool:
    weight = getattr(theirs, "weight", None)
    if weight is None or weight.shape != mine.weight.shape or getattr(theirs, "bias", None) is not None:
        return False
    # Some families scale by (1 + weight): what their norm does to a vector of ones tells which form it is.
    scale = theirs(torch.ones(1, 1, len(weight), dtype=weight.dtype, device=weight.device)).flatten().float()
    shifted = (scale - weight.float() - 1).abs().max() < (scale - weight.float()).abs().max()
    mine.weight.copy_(weight.float() + float(shifted))
    return True
