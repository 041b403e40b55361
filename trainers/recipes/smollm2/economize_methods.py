# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The methods of the race, each as one measured call: ours, transformers' and those of the package economize."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ppow_hf.end_tokens import eos_token_ids_of
from ppow_hf.evaluation.measure import Generation, measure_generation
from ppow_hf.evaluation.methods import Method, check_methods, parse_method
from ppow_hf.evaluation.runner import BenchmarkRunner, padding_token

PEER = "economize"
PEER_TECHNIQUES = ("plain", "lookup", "eagle3", "jump", "eagle3+lookup", "jump+lookup")
_PEER_NAME = re.compile(r"(?P<technique>[a-z0-9+]+)(?::(?P<cycle>[0-9]+)(?:@(?P<confidence>[0-9.]+))?)?")


@dataclass(frozen=True)
class PeerMethod:
    """
    A decoding method of economize.

    Args:
        name (`str`): As in the report, for example `"economize/jump+lookup:10@0.3"`.
        technique (`str`): One of `PEER_TECHNIQUES`. `X+lookup` is economize's hybrid: lookup where it finds a match,
            the drafter elsewhere.
        cycle_length (`int`): Most tokens per cycle, the target's own included; 1 for `plain`.
        min_confidence (`float`, *optional*): The drafter stops below this probability of its favourite token.
    """

    name: str
    technique: str
    cycle_length: int = 1
    min_confidence: float | None = None

    @property
    def drafter(self) -> str | None:
        """The trained technique it needs, `"eagle3"` or `"jump"`."""
        trained = self.technique.removesuffix("+lookup")
        return trained if trained in ("eagle3", "jump") else None


def parse_peer(name: str) -> PeerMethod:
    """
    A [`PeerMethod`] from `TECHNIQUE:CYCLE` or `TECHNIQUE:CYCLE@CONFIDENCE`, or `plain`.

    Raises:
        ValueError: the name is none of these.
    """
    match = _PEER_NAME.fullmatch(name)
    usage = f"{'|'.join(PEER_TECHNIQUES[1:])}:CYCLE[@CONFIDENCE], for example jump+lookup:10@0.3, or plain"
    if match is None or match["technique"] not in PEER_TECHNIQUES:
        raise ValueError(f"Unknown method {name!r} of economize. Pass {usage}.")
    technique, confidence = match["technique"], match["confidence"]
    if technique == "plain":
        if match["cycle"] is not None:
            raise ValueError(f"Method {name!r}: `plain` decodes token by token and has no cycle. Pass {usage}.")
        return PeerMethod(f"{PEER}/plain", technique)
    if match["cycle"] is None or int(match["cycle"]) < 2:
        raise ValueError(f"Method {name!r} needs a cycle of at least 2 tokens. Pass {usage}.")
    try:
        threshold = None if confidence is None else float(confidence)
    except ValueError as error:
        raise ValueError(f"Method {name!r}: {confidence!r} is not a number. Pass {usage}.") from error
    if threshold is not None and (technique == "lookup" or not 0 < threshold < 1):
        raise ValueError(f"Method {name!r}: a confidence is between 0 and 1, and only for a drafter. Pass {usage}.")
    return PeerMethod(f"{PEER}/{name}", technique, int(match["cycle"]), threshold)


def build_peer(target, method: PeerMethod, records: Mapping[str, Mapping[str, Any]], dtype: str = "model"):
    """
    An `economize.EfficientModel` over the target, with the trained weights in place.

    A jump drafter drafts over the most frequent tokens only (economize's `frspec`), as an EAGLE-3 drafter does by
    itself and as in economize's published figures.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target; its weights are shared, not copied.
        method ([`PeerMethod`]): What to decode with.
        records (`dict`): `economize_training.read_record` of every trained technique.
        dtype (`"model"` or `"float32"`): Of the drafter's layers; economize trains them in float32.

    Raises:
        ValueError: a trained technique is missing, or was trained for another target.
    """
    import economize
    from economize.techniques.frspec import FRSpecConfig
    from economize.techniques.hybrid import HybridConfig
    from economize.techniques.lookup import LookupConfig

    if method.technique == "plain":
        return economize.apply(target)
    if method.technique == "lookup":
        return economize.apply(target, LookupConfig())
    if method.drafter not in records:
        raise ValueError(f"Method {method.name!r} needs a trained drafter: pass `--{method.drafter} FOLDER`.")
    record = records[method.drafter]
    checkpoint = economize.read_checkpoint(record["folder"])
    trained_for = checkpoint.meta.get("teacher_fingerprint")
    if trained_for != economize.teacher_fingerprint(target):
        raise ValueError(f"{record['folder']} was trained for a target with other weights.")
    (config,) = checkpoint.configs
    if method.drafter == "eagle3":
        config = dataclasses.replace(config, param_dtype=dtype)
    else:
        ids = tuple(record["draft_token_ids"])
        config = dataclasses.replace(config, copy_dtype=dtype)
        config = FRSpecConfig(drafter=config, vocab_size=len(ids), token_ids=ids)
    if method.technique.endswith("+lookup"):
        config = HybridConfig(fallback=config)
    model = economize.apply(target, config)
    (technique,) = model.techniques.values()
    if method.technique.endswith("+lookup"):
        technique = technique.fallback
    if method.drafter == "jump":
        technique = technique.inner
    technique.load_state_dict(checkpoint.states[method.drafter])
    return model.eval()


@dataclass(frozen=True)
class Entrant:
    """
    One line of the race.

    Args:
        name (`str`): In records and report, `DRAFTER/METHOD` for ours and `economize/METHOD` for economize's.
        method ([`~ppow_hf.evaluation.Method`] or [`PeerMethod`]): What it does.
        model (`Any`, *optional*): Our drafter, or an `economize.EfficientModel`.
    """

    name: str
    method: Method | PeerMethod
    model: Any = field(default=None, compare=False)

    @property
    def is_peer(self) -> bool:
        return isinstance(self.method, PeerMethod)


def entrants_of(
    target,
    drafters: Mapping[str, Any],
    methods: Sequence[str],
    peers: Sequence[str],
    records: Mapping[str, Mapping[str, Any]],
    peer_dtype: str = "model",
) -> list[Entrant]:
    """
    Plain `generate`, prompt lookup, our methods with every drafter, then economize's methods.

    Args:
        drafters (`dict`): Our drafters by the name they have in the report.
        methods (`Sequence[str]`): Our methods that need a drafter, as `ppow bench` names them.
        peers (`Sequence[str]`): Methods of economize, see [`parse_peer`].
        records (`dict`): Trained techniques of economize, see [`build_peer`].

    Raises:
        ValueError: a method is unknown, comes twice, or lacks what it needs.
    """
    entrants = [Entrant(name, parse_method(name)) for name in ("target", "prompt_lookup")]
    for name, drafter in drafters.items():
        if name == PEER or "/" in name:
            raise ValueError(f"A drafter is called {name!r}: choose another name, without a slash.")
        own = [parse_method(method) for method in methods]
        check_methods(own, target, drafter, None)
        drafter.bind_target(target)
        entrants += [Entrant(f"{name}/{method.name}", method, drafter) for method in own]
    parsed = [parse_peer(peer) for peer in peers]
    entrants += [Entrant(method.name, method, build_peer(target, method, records, peer_dtype)) for method in parsed]
    names = [entrant.name for entrant in entrants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Methods given twice: {', '.join(twice)}.")
    return entrants


def measure_peer(
    model, method: PeerMethod, input_ids: torch.LongTensor, max_new_tokens: int, stop: Sequence[int]
) -> Generation:
    """
    Decode one prompt greedily with economize and measure it, in the terms of our own traces: the prompt's pass
    commits the first token and is no verification.

    Args:
        model (`economize.EfficientModel`): From [`build_peer`].
        input_ids (`torch.LongTensor` of shape `[1, P]`): The prompt.
        max_new_tokens (`int`): Most tokens to generate.
        stop (`Sequence[int]`): Tokens that end the text.
    """
    import economize

    decoding = economize.DecodeConfig(cycle_length=method.cycle_length, min_confidence=method.min_confidence)
    start = time.perf_counter()
    result = model.decode(input_ids, max_new_tokens, decoding=decoding, stop=list(stop))
    tokens = result.tokens.tolist()  # waits for the device
    seconds = time.perf_counter() - start
    generation = Generation(tokens=tokens, seconds=seconds)
    if method.technique != "plain":
        generation.verifications = result.cost.count("exact") - 1
        generation.committed = len(tokens) - 1
        generation.drafted = sum(drafted for drafted, _ in result.acceptance)
        generation.accepted = generation.committed - generation.verifications
    return generation


class RaceRunner(BenchmarkRunner):
    """The benchmark's runner (interleaved, rotating, resumable) over [`Entrant`]s instead of methods."""

    def __init__(
        self,
        target,
        tokenizer,
        entrants: list[Entrant],
        max_new_tokens: int,
        seed: int,
        log,
        progress: bool = True,
        retries: int = 0,
    ):
        super().__init__(target, tokenizer, None, None, entrants, max_new_tokens, seed, log, progress, retries)
        self.stop = sorted(eos_token_ids_of(target.generation_config))

    def _note_costs(self, sitting: int) -> None:
        """None: a race predicts no speedup."""

    def _generate(self, entrant: Entrant, ids, temperature, example, turn, max_new_tokens=None) -> Generation:
        length = max_new_tokens or self.max_new_tokens
        if entrant.is_peer:
            return measure_peer(entrant.model, entrant.method, ids, length, self.stop)
        return measure_generation(
            entrant.method,
            self.target,
            entrant.model,
            None,
            ids,
            max_new_tokens=length,
            temperature=temperature,
            pad_token_id=padding_token(self.tokenizer),
        )
