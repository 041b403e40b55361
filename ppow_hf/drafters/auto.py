# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`AutoDrafter`, and the registration of the drafter families with transformers."""

import os

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import CONFIG_NAME

from .configuration_causal_lm import CausalLMDrafterConfig
from .configuration_drafter import DrafterConfig
from .configuration_eagle3 import Eagle3DrafterConfig
from .configuration_lookup import LookupDrafterConfig
from .loading import HUB_ARGUMENTS, load_checked
from .modeling_causal_lm import CausalLMDrafter
from .modeling_drafter import DrafterModel
from .modeling_eagle3 import Eagle3Drafter
from .modeling_lookup import LookupDrafter

DRAFTER_FAMILIES: dict[type[DrafterConfig], type[DrafterModel]] = {
    Eagle3DrafterConfig: Eagle3Drafter,
    CausalLMDrafterConfig: CausalLMDrafter,
    LookupDrafterConfig: LookupDrafter,
}


def register_drafters() -> None:
    """Makes every family known to `AutoConfig` and `AutoModel`. Idempotent."""
    for config_class, model_class in DRAFTER_FAMILIES.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)


class AutoDrafter:
    """
    Loads a drafter of whatever family.

    Example:

    ```python
    >>> from ppow_hf import AutoDrafter

    >>> drafter = AutoDrafter.from_pretrained("org/my-drafter")
    ```
    """

    def __init__(self):
        raise OSError("`AutoDrafter` is not built with `AutoDrafter()`: use `AutoDrafter.from_pretrained(...)`.")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> DrafterModel:
        """
        Loads a drafter from a folder or a Hub repository.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                A saved drafter. A plain causal LM is accepted too and wrapped as a [`CausalLMDrafter`].
            kwargs: As for [`~transformers.PreTrainedModel.from_pretrained`].

        Returns:
            [`DrafterModel`]: The drafter, in evaluation mode.

        Raises:
            OSError: If the folder or repository does not exist or holds no configuration.
            ValueError: If it is not a drafter nor a causal LM, or its weights do not fit.
        """
        register_drafters()
        path = os.fspath(pretrained_model_name_or_path)
        if (os.path.isabs(path) or path.startswith(".")) and not os.path.isdir(path):
            raise OSError(f"There is no folder `{path}`. Pass a saved drafter's folder or a Hub repository id.")
        hub_kwargs = {k: kwargs[k] for k in HUB_ARGUMENTS if k in kwargs}
        if os.path.isdir(path):
            subfolder = hub_kwargs.get("subfolder")
            folder = os.path.join(path, subfolder) if subfolder else path
            if not os.path.isfile(os.path.join(folder, CONFIG_NAME)):
                raise OSError(
                    f"The folder `{folder}` holds no drafter: there is no {CONFIG_NAME} in it. Pass the folder that "
                    "`save_pretrained` or the trainer wrote."
                )
        try:
            config = AutoConfig.from_pretrained(path, **hub_kwargs)
        except OSError as error:
            if os.path.isdir(path):
                raise
            raise OSError(
                f"There is no folder `{path}`, and no such repository on the Hub can be reached. Pass a saved "
                f"drafter's folder or a Hub repository id. The cause: {error}"
            ) from error
        if type(config) in DRAFTER_FAMILIES:
            return DRAFTER_FAMILIES[type(config)].from_pretrained(path, **kwargs)
        if type(config) in AutoModelForCausalLM._model_mapping:
            # Whole models often carry weights that drafting has no use for; missing ones are refused here too.
            model, _ = load_checked(AutoModelForCausalLM.from_pretrained, path, allow_unknown=True, **kwargs)
            return CausalLMDrafter.from_causal_lm(model)
        raise ValueError(
            f"`{path}` is a `{config.model_type}` model: neither a drafter nor a causal language model that could "
            "draft."
        )
