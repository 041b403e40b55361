# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What all drafter families share: the window interface, the tie to a target, saving and loading."""

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_drafter import DrafterConfig
from .drafter_state import DrafterState
from .loading import HUB_ARGUMENTS, check_target, load_checked
from .packed_windows import PackedState
from .prepacking import keep_prepacked, unpack_weights
from .target_features import check_layer_ids

logger = logging.get_logger(__name__)


class DrafterModel(PreTrainedModel):
    """
    Base of all drafters.

    A drafter is a `PreTrainedModel` that proposes windows of draft tokens for one target. Subclasses implement
    `extend` and `step` (decoding and rollouts) and `forward` (training); what they share lives here.
    """

    config_class = DrafterConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    # Column i of the training forward pass predicts the token at position i + prediction_offset + step.
    prediction_offset: int = 1
    # Most training-time-test steps the family can be trained with.
    max_ttt_steps: int = 1
    # Whether it has no model, so that its own proposals are lookup's.
    proposes_by_lookup: bool = False
    # Whether it prepacks its weights for decoding (bfloat16 on a CPU), for the memory of a second copy of them.
    prepacks: bool = False

    def __init__(self, config: DrafterConfig):
        super().__init__(config)
        self.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        # Imported here: drafters know nothing of generation, they only lead to it.
        from ..generation import WindowConfig

        self.generation_config.window = WindowConfig()
        self.last_trace = None
        self.reset_adaptation()

    # ---- what generation and training need to know -----------------------------------------------------------------

    @property
    def feature_layer_ids(self) -> tuple[int, ...]:
        """Indices into the target's `hidden_states` that this drafter reads; empty when it reads none."""
        return ()

    @property
    def draft_token_ids(self) -> torch.Tensor | None:
        """Target id of every draft id, `(draft_vocab_size,)` int64, or `None` when the vocabularies are the same."""
        return None

    @property
    def max_positions(self) -> int | None:
        """Most tokens of a text, draft tokens included, that this drafter can read; `None` where there is no end."""
        return None

    def new_state(self, batch_size: int = 1) -> DrafterState:
        """
        An empty state, with no committed token.

        Args:
            batch_size (`int`, *optional*, defaults to 1): Number of sequences drafted side by side.
        """
        if self.prepacks and not self.training:
            keep_prepacked(self)
        return DrafterState(batch_size=batch_size)

    def train(self, mode: bool = True) -> "DrafterModel":
        """
        As of any module. In training mode weights change, and optimizers that run fused do not say so: what was
        prepacked of them goes.

        Args:
            mode (`bool`, *optional*, defaults to `True`): Training (`True`) or evaluation.
        """
        if mode:
            unpack_weights(self)
        return super().train(mode)

    def extend(
        self,
        state: DrafterState,
        input_ids: torch.LongTensor,
        features: torch.Tensor | None = None,
        num_accepted: int = 0,
    ) -> torch.Tensor:
        """
        Commits tokens and begins a new window.

        The columns of the last window are dropped: what was drafted from the drafter's own state is replaced by what
        the target said, so that errors do not build up.

        Args:
            state (`DrafterState`): Changed in place.
            input_ids (`torch.LongTensor` of shape `(batch, n)`):
                The newly committed tokens. At the first call the whole prompt and the first generated token; later
                the accepted draft tokens and the target's own token behind them.
            features (`torch.Tensor` of shape `(batch, m, len(feature_layer_ids) * target_hidden_size)`, *optional*):
                Target features of the newly verified positions. The last committed token has not been through the
                target yet, so `m = n - 1` at the first call and `m = n` later.
            num_accepted (`int`, *optional*, defaults to 0): Number of accepted draft tokens at the front of
                `input_ids`.

        Returns:
            `torch.Tensor` of shape `(batch, draft_vocab_size)`: logits of the first draft token of the new window.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `extend`.")

    def step(self, state: DrafterState, token_ids: torch.LongTensor) -> torch.Tensor:
        """
        Feeds one draft token and the drafter's own state.

        Args:
            state (`DrafterState`): Changed in place.
            token_ids (`torch.LongTensor` of shape `(batch,)`): Draft tokens, as target ids.

        Returns:
            `torch.Tensor` of shape `(batch, draft_vocab_size)`: logits of the next draft token.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `step`.")

    def step_tree(self, state: DrafterState, token_ids: torch.LongTensor, parents: Sequence[int]) -> torch.Tensor:
        """
        Feeds one level of a draft tree in one pass: every node sees the committed text, its ancestors and itself.

        Args:
            state (`DrafterState`): Changed in place.
            token_ids (`torch.LongTensor` of shape `(nodes,)`): The level's draft tokens, as target ids.
            parents (`Sequence[int]`): Of every node, its parent's place in the level fed before; all 0 in the first
                level, whose parent is the committed text.

        Returns:
            `torch.Tensor` of shape `(nodes, draft_vocab_size)`: logits of the next draft token behind each node.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `step_tree`.")

    def check_tree(self) -> None:
        """
        Refuses to draft trees where this drafter, as it has been loaded, cannot: generation asks before it begins.

        Raises:
            ValueError: Saying why, and what to do instead.
        """

    def keep_path(self, state: DrafterState, columns: Sequence[int]) -> None:
        """
        Turns a drafted tree into the window of one of its paths, before `extend` says how much of it was accepted.

        Args:
            state (`DrafterState`): Changed in place.
            columns (`Sequence[int]`): The path's columns, in the order in which they were fed.
        """
        # Families that commit accepted tokens anew need none of them.

    def begin_windows(
        self,
        input_ids: torch.LongTensor,
        features: torch.Tensor | None,
        starts: torch.LongTensor,
        group_size: int = 1,
    ) -> tuple[PackedState, torch.Tensor]:
        """
        Begins many windows at once, as `extend` begins one: `group_size` of them at each start.

        Differentiable: rollouts call it without gradients, the policy loss with.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): Texts, padded on the right.
            features (`torch.Tensor` of shape `(batch, length, len(feature_layer_ids) * target_hidden_size)`,
                *optional*): The target's features of the texts.
            starts (`torch.LongTensor` of shape `(batch, starts)`): Position of each window's first draft token, at
                least 2; -1 for none.
            group_size (`int`, *optional*, defaults to 1): Windows per start.

        Returns:
            `tuple[PackedState, torch.Tensor]`: The state of `starts * group_size` windows per text, group by group,
            and the logits of their first draft token, `(batch, starts, draft_vocab_size)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `begin_windows`.")

    def step_windows(self, state: PackedState, token_ids: torch.LongTensor) -> torch.Tensor:
        """
        Feeds every window one draft token, as `step` does for one.

        Args:
            state ([`PackedState`]): Changed in place.
            token_ids (`torch.LongTensor` of shape `(batch, windows)`): Draft tokens, as target ids.

        Returns:
            `torch.Tensor` of shape `(batch, windows, draft_vocab_size)`: logits of each window's next draft token.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `step_windows`.")

    def text_logits(
        self, input_ids: torch.LongTensor, features: torch.Tensor | None
    ) -> Callable[[torch.LongTensor, torch.LongTensor], torch.Tensor]:
        """
        The first draft token's logits at every place of whole texts, projected to the vocabulary only where asked.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): Texts, padded on the right.
            features (`torch.Tensor` of shape `(batch, length, len(feature_layer_ids) * target_hidden_size)`,
                *optional*): The target's features of the texts.

        Returns:
            `Callable`: From rows and columns, `(n,)` each, to logits `(n, draft_vocab_size)`. Column `i` predicts the
            token at `i + prediction_offset`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `text_logits`.")

    def bind_target(self, target: PreTrainedModel) -> None:
        """
        Ties the drafter to the target it drafts for, after checking that they fit.

        Cheap and idempotent; generation and the trainers call it. Nothing of the target becomes a parameter of the
        drafter.

        Args:
            target ([`~transformers.PreTrainedModel`]): A decoder-only causal language model.

        Raises:
            ValueError: If the target is an encoder-decoder, or its vocabulary, width or layers are not those the
                drafter was built for.
        """
        check_target(target)
        vocab_size = target.config.get_text_config().vocab_size
        if vocab_size != self.config.vocab_size:
            raise ValueError(
                f"The target has a vocabulary of {vocab_size} tokens, but this drafter was built for "
                f"`vocab_size`={self.config.vocab_size}. {self._vocabulary_remedy(vocab_size)}"
            )
        self._check_recorded_target(target)

    def _vocabulary_remedy(self, vocab_size: int) -> str:
        """What to do about a target whose vocabulary has another size."""
        if self.feature_layer_ids:
            return (
                "It was trained for another target: use that one "
                f"(`{self.config.target_name_or_path}`), or train a drafter with `from_target(target)`."
            )
        return (
            "Models of one tokenizer may pad it to different sizes: if these two share one tokenizer, call "
            f"`resize_token_embeddings({vocab_size})` on the model that drafts and wrap it again with "
            "`CausalLMDrafter.from_causal_lm(model)`. Otherwise use a drafter of the target's tokenizer."
        )

    def _check_recorded_target(self, target: PreTrainedModel) -> None:
        """Refuses a target of another kind or size than the recorded one, and warns about another name."""
        text_config = target.config.get_text_config()
        recorded = self.config.target_num_hidden_layers
        if recorded is not None and recorded != text_config.num_hidden_layers:
            raise ValueError(
                f"This drafter was trained for another target: `{self.config.target_name_or_path}` has {recorded} "
                f"layers, the given target `{target.config._name_or_path}` has {text_config.num_hidden_layers}. "
                "Use the drafter's own target, or train a drafter with `from_target(target)`."
            )
        if self.feature_layer_ids:
            check_layer_ids(self.feature_layer_ids, text_config.num_hidden_layers)
        recorded_type = self.config.target_model_type
        if recorded_type is not None and recorded_type != text_config.model_type:
            raise ValueError(
                f"This drafter was trained for a `{recorded_type}` target (`{self.config.target_name_or_path}`), the "
                f"given target is a `{text_config.model_type}`. Use the drafter's own target, or train a drafter with "
                "`from_target(target)`."
            )
        width = getattr(self.config, "target_hidden_size", None)
        if width is not None and width != text_config.hidden_size:
            raise ValueError(
                f"The target's hidden states are {text_config.hidden_size} wide, but this drafter was built for "
                f"`target_hidden_size`={width}. It was trained for another target: "
                f"`{self.config.target_name_or_path}`. Use that one, or train a drafter with `from_target(target)`."
            )
        # Names alone prove nothing (a local copy, a fine-tuned sibling), and the text stays right whatever drafts it.
        names = [os.path.basename(str(n)).lower() for n in (self.config.target_name_or_path, target.name_or_path) if n]
        if len(set(names)) == 2:
            logger.warning_once(
                f"This drafter was trained for `{self.config.target_name_or_path}` and is used with "
                f"`{target.name_or_path}`. The text stays the target's own, but drafts may be accepted less often."
            )

    def _supports_logits_to_keep(self) -> bool:
        """transformers asks this of assistants that it drafts with itself, which it cannot with this one."""
        raise RuntimeError(
            f"`assistant_model` is a `{type(self).__name__}`, and nothing in transformers knows how to use it: the "
            "hook that `import ppow_hf` puts there was taken out. Call `ppow_hf.install_hook()`, or "
            "`ppow_hf.attach(target)` for one target, or pass `custom_generate=ppow_hf.speculative_generate, "
            "drafter=drafter`."
        )

    def make_candidate_generator(self, target: PreTrainedModel, **kwargs):
        """
        The object that transformers' assisted generation asks for draft tokens.

        Args:
            target ([`~transformers.PreTrainedModel`]): The target, already in `generate`.
            kwargs: `generation_config`, `logits_processor`, `input_ids` and `model_kwargs` of that call.
        """
        # Imported here: drafters know nothing of generation, they only lead to it.
        from ..generation import PPOWCandidateGenerator

        return PPOWCandidateGenerator(drafter=self, target=target, **kwargs)

    def reset_adaptation(self) -> None:
        """Forgets what calls with `WindowConfig(carry_over=True)` have learnt of the texts they wrote."""
        # By target. One that is gone takes along what was learnt of its texts.
        self._adaptation = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict:
        # Copies and pickles begin anew: what calls have learnt hangs on targets of this process.
        return {name: value for name, value in self.__dict__.items() if name != "_adaptation"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.reset_adaptation()

    # ---- saving and loading ----------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """
        Saves weights, configuration and the generation configuration with its window. With `push_to_hub=True` it then
        pushes them as [`DrafterModel.push_to_hub`] does, to `repo_id` or the folder's name.
        """
        push, hub = kwargs.pop("push_to_hub", False), {}
        if push:
            names = ("repo_id", "private", "create_pr", "revision", "commit_message")
            hub = {name: kwargs.pop(name) for name in names if name in kwargs}
            hub |= {"token": kwargs["token"]} if kwargs.get("token") is not None else {}
        super().save_pretrained(save_directory, **kwargs)
        main = kwargs.get("is_main_process", True)
        if main:
            self._plain_generation_config().save_pretrained(save_directory)
        if push and main:
            self.push_to_hub(hub.pop("repo_id", None) or Path(save_directory).absolute().name, **hub)

    def push_to_hub(self, repo_id: str, **kwargs):
        """
        Pushes the drafter with its card and remote code, all in one commit.

        Args:
            repo_id (`str`): Repository, `"name"` or `"organisation/name"`.
            kwargs: As for [`~ppow_hf.hub.push_drafter.push_drafter`]: `private`, `create_pr`, `revision`, `token`,
                `commit_message`, `dry_run` and others.

        Returns:
            [`~ppow_hf.hub.push.PushResult`].
        """
        # Imported here: drafters know nothing of the Hub, they only lead to it.
        from ..hub.push_drafter import push_drafter

        return push_drafter(self, repo_id, **kwargs)

    def _plain_generation_config(self) -> GenerationConfig:
        """A copy of the generation configuration whose window is a plain dict, as JSON wants it."""
        from ..generation import WindowConfig

        values = {k: v for k, v in self.generation_config.to_diff_dict().items() if k != "window"}
        plain = GenerationConfig(**values)
        window = getattr(self.generation_config, "window", None)
        if window is not None:
            plain.window = window if isinstance(window, dict) else WindowConfig.coerce(window).to_dict()
        return plain

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """
        Loads a drafter, refusing what does not fit.

        Same arguments as [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: If weights are missing, unknown or of another shape: a drafter with random weights in it would
                still run, only slower than no drafter at all.
            OSError: If there is no such folder or repository, or a weight file is truncated.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = load_checked(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model._check_weights(str(pretrained_model_name_or_path))
        model._load_generation_config(pretrained_model_name_or_path, kwargs)
        return (model, info) if wants_info else model

    def _check_weights(self, source: str) -> None:
        """Hook for checks across weights of one checkpoint."""

    def _load_generation_config(self, source: str | os.PathLike, kwargs: dict[str, Any]) -> None:
        hub_kwargs = {k: kwargs[k] for k in HUB_ARGUMENTS if k in kwargs}
        default = self.generation_config.window
        try:
            self.generation_config = GenerationConfig.from_pretrained(source, **hub_kwargs)
        except OSError as error:
            if "valid JSON" in str(error):
                raise  # A damaged file: going on would silently lose the window that was saved.
            return  # Older or foreign checkpoints have none; the defaults of __init__ stay.
        from ..generation import WindowConfig

        self.generation_config.window = WindowConfig.coerce(getattr(self.generation_config, "window", None), default)

    @classmethod
    def can_generate(cls) -> bool:
        # A drafter proposes, it does not generate: the target's `generate(assistant_model=drafter)` does.
        return False
