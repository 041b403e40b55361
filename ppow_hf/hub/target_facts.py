# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What an exchange needs to know of the target, from a loaded model, a configuration or only a name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..targets import EMBEDDED_TARGETS, load_target


@dataclass
class TargetFacts:
    """
    A target seen from an exchange.

    Args:
        config ([`~transformers.PreTrainedConfig`]): Its text configuration.
        name (`str`, *optional*): Its Hub id, or the last part of its folder.
        architectures (`list[str]`): Model classes, as in its config.json.
        model ([`~transformers.PreTrainedModel`], *optional*): The model, if it is loaded.
        location (`str`, *optional*): Where its weights can be loaded from.
    """

    config: PreTrainedConfig
    name: str | None
    architectures: list[str]
    model: PreTrainedModel | None = None
    location: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether weights can be had, loaded already or not."""
        return self.model is not None or self.location is not None

    def weight(self, kind: str) -> torch.Tensor:
        """
        A weight of the target.

        Args:
            kind (`str`): `"embedding"` for the input embedding, `"head"` for the output embedding; `(vocab, width)`.
        """
        if self.model is None:
            if self.location is None:
                raise ValueError(
                    "`target` is a configuration, but weights of the target are needed: pass the model, its folder or "
                    "its Hub id."
                )
            # Not `load_target`: an exchange has no use for the tokenizer, which may not be there.
            self.model = AutoModelForCausalLM.from_pretrained(self.location, dtype="auto")
        module = self.model.get_input_embeddings() if kind == "embedding" else self.model.get_output_embeddings()
        if module is None:
            raise ValueError(f"The target `{self.name}` has no {kind} weights that could be copied.")
        return module.weight.detach()


def target_facts(target: PreTrainedModel | PreTrainedConfig | str | os.PathLike | None) -> TargetFacts | None:
    """
    Looks a target up.

    Args:
        target (`PreTrainedModel`, `PreTrainedConfig`, `str` or `os.PathLike`, *optional*):
            A model, a configuration, a folder, a Hub id or the name of an embedded target. Of a folder or Hub id only
            the configuration is read until weights are asked for.

    Returns:
        [`TargetFacts`] or `None` if no target was given.

    Raises:
        OSError: If no configuration can be read there.
        TypeError: If it is none of these.
    """
    if target is None:
        return None
    if isinstance(target, (str, os.PathLike)):
        text = os.fspath(target)
        if text.lower() in EMBEDDED_TARGETS:
            return target_facts(load_target(text, device="cpu")[0])
        try:
            config = AutoConfig.from_pretrained(text)
        except (OSError, ValueError) as error:
            raise OSError(
                f"`target` is {text!r}: no model configuration can be read there. Give the target's folder, its Hub "
                f"id (this needs the network or a filled cache) or one of {sorted(EMBEDDED_TARGETS)}. The cause: "
                f"{error}"
            ) from error
        # A path of this machine must not end up in files that are shared.
        name = Path(text).resolve().name if os.path.isdir(text) else text
        return TargetFacts(config.get_text_config(), name, _architectures(config), location=text)
    if isinstance(target, PreTrainedModel):
        config = target.config
        name = target.name_or_path or config._name_or_path or None
        return TargetFacts(config.get_text_config(), _shareable(name), [type(target).__name__], model=target)
    if isinstance(target, PreTrainedConfig):
        return TargetFacts(target.get_text_config(), _shareable(target._name_or_path), _architectures(target))
    raise TypeError(f"`target` must be a model, a configuration, a folder or a Hub id, got a {type(target).__name__}.")


def architectures_of(model_type: str | None) -> list[str]:
    """The causal LM classes of a model type, `[]` if transformers knows none."""
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type or "", [])
    return [found] if isinstance(found, str) else list(found)


def model_type_of(architectures: list[str]) -> str | None:
    """The model type whose causal LM class is the first of `architectures`, `None` if that is not clear."""
    first = set(architectures[:1])
    types = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if first & set(architectures_of(name))]
    if len(types) > 1:  # Several types share a class: the one it is named after.
        types = [name for name in types if architectures[0].lower().startswith(f"{name.replace('_', '')}for")]
    return types[0] if len(types) == 1 else None


def _architectures(config: PreTrainedConfig) -> list[str]:
    return list(config.architectures or architectures_of(config.get_text_config().model_type))


def _shareable(name: str | None) -> str | None:
    return Path(name).name if name and (os.path.isabs(name) or os.path.isdir(name)) else name or None
