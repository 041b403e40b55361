# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Runs the methods on the prompts and keeps the log of it."""

import time
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..drafters.learned_positions import learned_positions
from ..generation import CostModel
from .aggregate import representative, sum_or_none
from .calibration import merge_all
from .contention import OthersShare, disturbed, wait_for_calm
from .environment import decoding_code, describe_environment
from .measure import PHASES, Generation, generation_seed, measure_generation
from .methods import ADAPTIVE_WINDOWS, PLAIN, Method, parse_method
from .precision import content_hash
from .records import RecordLog
from .sittings import cost_models, open_sitting
from .suites import Example, SuiteError

WARMUP_TOKENS = 16
PICTURE_WINDOW = "fixed:8"
# Where others keep the processors busy, waiting for them has an end: so long for one timing, so often without result.
_WAIT_SECONDS, _IN_VAIN = 60.0, 3


class BenchmarkRunner:
    """Runs methods on prompts and keeps the log; everything of it is decided by the arguments of [`run_benchmark`]."""

    def __init__(
        self,
        target,
        tokenizer,
        drafter,
        assistant,
        methods,
        max_new_tokens,
        seed,
        log,
        progress,
        retries=0,
        other_drafters=None,
    ):
        self.target = target
        self.tokenizer = tokenizer
        # By name, the benchmark's own one under None.
        self.drafters = {None: drafter, **(other_drafters or {})}
        self.assistant = assistant
        self.methods: list[Method] = methods
        self.max_new_tokens: int = max_new_tokens
        self.seed: int = seed
        self.log: RecordLog = log
        self.progress: bool = progress
        self.retries: int = retries
        self._in_vain = 0  # waits for calm, one after another, that did not bring any

    def prompts(self) -> list[dict[str, Any]]:
        return [record for record in self.log.records if record["kind"] == "prompt"]

    def run(
        self, examples: Sequence[Example], temperatures: Sequence[float], max_seconds: float | None = None
    ) -> None:
        """Every example at every temperature that is not in the log yet; none begins after `max_seconds`."""
        started = time.monotonic()
        done = {(record["temperature"], record["suite"], record["id"]) for record in self.prompts()}
        jobs = [
            (index, temperature, example) for index, example in enumerate(examples) for temperature in temperatures
        ]
        todo = [
            (index, temperature, example)
            for index, temperature, example in jobs
            if (temperature, example.suite, example.id) not in done
        ]
        if not todo:
            return
        sitting = open_sitting(self.log, describe_environment(self.target.device))
        self._warm_up(todo[0][2], temperatures)
        self._note_costs(sitting)
        bar = tqdm(
            total=len(jobs), initial=len(jobs) - len(todo), desc="benchmark", unit="prompt", disable=not self.progress
        )
        with bar:
            for index, temperature, example in todo:
                # One of every suite at least, so that there is something to report.
                if max_seconds is not None and time.monotonic() - started > max_seconds and self._seen_all(jobs):
                    break
                bar.set_postfix_str(f"{example.suite} {example.id}", refresh=True)
                runs = self.run_example(example, temperature, rotation=index, timed=True)
                plain = runs[PLAIN]
                self.log.append(
                    {
                        "kind": "prompt",
                        "suite": example.suite,
                        "id": example.id,
                        "temperature": temperature,
                        "sitting": sitting,
                        "methods": {name: _record(name, run, plain, temperature) for name, run in runs.items()},
                    }
                )
                bar.update()

    def _seen_all(self, jobs: Sequence[tuple[int, float, Example]]) -> bool:
        seen = {(record["temperature"], record["suite"]) for record in self.prompts()}
        return seen >= {(temperature, example.suite) for _, temperature, example in jobs}

    def _note_costs(self, sitting: int) -> None:
        """Keeps the drafters' measured costs in the log, once for every sitting."""
        for name in dict.fromkeys(method.drafter for method in self.methods if method.kind == "window"):
            if sitting not in cost_models(self.log.records, name):
                costs = cost_fields(CostModel.for_models(self.target, self.drafters[name]))
                whose = {} if name is None else {"drafter": name}
                self.log.append({"kind": "cost_model", "sitting": sitting, **whose, "cost_model": costs})

    def check_float32(self, examples: Sequence[Example], max_seconds: float | None = None) -> list[dict[str, Any]]:
        """
        Greedy text of every method against plain `generate`'s, of every example that was reached in `max_seconds`; the
        models must be held in float32.
        """
        started = time.monotonic()
        # What other code decoded says nothing of this one's texts.
        code = decoding_code()
        records = {
            (r["suite"], r["id"]): r
            for r in self.log.records
            if r["kind"] == "float32" and r.get("decoding_code") == code
        }
        todo = [example for example in examples if (example.suite, example.id) not in records]
        for example in tqdm(todo, desc="float32 check", unit="prompt", disable=not self.progress or not todo):
            if max_seconds is not None and time.monotonic() - started > max_seconds:
                break
            runs = self.run_example(example, 0.0)
            record = {
                "kind": "float32",
                "decoding_code": code,
                "suite": example.suite,
                "id": example.id,
                "lossless": {name: _same_text(run, runs[PLAIN]) for name, run in runs.items()},
            }
            self.log.append(record)
            records[example.suite, example.id] = record
        return [record for example in examples if (record := records.get((example.suite, example.id))) is not None]

    def picture(self, examples: Sequence[Example], temperature: float) -> dict[str, Any] | None:
        """Cycles of one generation for the picture, of an adaptive window and of a fixed one beside it."""
        names = [method.name for method in self.methods]
        adaptive = [name for name in reversed(ADAPTIVE_WINDOWS) if name in names]
        if not adaptive:
            return None
        record = representative([r for r in self.prompts() if r["temperature"] == temperature], adaptive[0])
        runs = record["methods"]
        if PICTURE_WINDOW in names:
            fixed = runs[PICTURE_WINDOW]["cycles"]
        else:
            example = next(e for e in examples if (e.suite, e.id) == (record["suite"], record["id"]))
            fixed = self._picture_cycles(example, temperature)
        keys = ("drafted", "accepted", "committed", "divergence")
        return {
            "suite": record["suite"],
            "id": record["id"],
            "temperature": temperature,
            "adaptive": {
                "method": adaptive[0],
                "cycles": [dict(zip(keys, cycle, strict=True)) for cycle in runs[adaptive[0]]["cycles"]],
            },
            "fixed": {
                "method": PICTURE_WINDOW,
                "cycles": [dict(zip(keys, cycle, strict=True)) for cycle in fixed],
            },
        }

    def _picture_cycles(self, example: Example, temperature: float) -> list[list[Any]]:
        key = {"kind": "picture", "suite": example.suite, "id": example.id, "temperature": temperature}
        for record in self.log.records:
            if record.items() >= key.items():
                return record["cycles"]
        ids = self._encode([{"role": "user", "content": example.turns[0]}])
        run = self._generate(parse_method(PICTURE_WINDOW), ids, temperature, example, 0)
        self.log.append({**key, "cycles": run.cycles})
        return self.log.records[-1]["cycles"]

    def _warm_up(self, example: Example, temperatures: Sequence[float]) -> None:
        ids = self._encode([{"role": "user", "content": example.turns[0]}])
        jobs = [(method, temperature) for temperature in temperatures for method in self.methods]
        for method, temperature in tqdm(jobs, desc="warm-up", unit="method", leave=False, disable=not self.progress):
            self._generate(method, ids, temperature, example, 0, min(WARMUP_TOKENS, self.max_new_tokens))

    def run_example(
        self, example: Example, temperature: float, rotation: int = 0, timed: bool = False
    ) -> dict[str, list[Generation]]:
        """All methods on all turns; one [`Generation`] per turn. The history is plain `generate`'s."""
        generate = self._timed_generate if timed else self._generate
        runs: dict[str, list[Generation]] = {method.name: [] for method in self.methods}
        start = rotation % len(self.methods)
        order = self.methods[start:] + self.methods[:start]
        messages: list[dict[str, str]] = []
        for turn, message in enumerate(example.turns):
            messages.append({"role": "user", "content": message})
            ids = self._encode(messages)
            for method in order:
                runs[method.name].append(generate(method, ids, temperature, example, turn))
            answer = self.tokenizer.decode(runs[PLAIN][-1].tokens, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": answer})
        return runs

    def _timed_generate(self, method, ids, temperature, example, turn) -> Generation:
        """Once, or where others took part of the processors again when they are gone; the least disturbed counts."""
        best = None
        for attempt in range(self.retries + 1):
            with OthersShare() as others:
                generation = self._generate(method, ids, temperature, example, turn)
            generation.others = others.share
            if best is None or (others.share or 0.0) < best.others:
                best = generation
            if not disturbed(others.share) or self._in_vain >= _IN_VAIN:
                break
            if attempt < self.retries:
                self._in_vain = 0 if wait_for_calm(_WAIT_SECONDS) else self._in_vain + 1
        return best

    def _generate(self, method, ids, temperature, example, turn, max_new_tokens=None) -> Generation:
        return measure_generation(
            method,
            self.target,
            self.drafters[method.drafter],
            self.assistant,
            ids,
            max_new_tokens=max_new_tokens or self.max_new_tokens,
            temperature=temperature,
            seed=generation_seed(self.seed, temperature, example.suite, example.id, turn),
            pad_token_id=padding_token(self.tokenizer),
        )

    def _encode(self, messages: list[dict[str, str]]) -> torch.LongTensor:
        return encode_messages(self.tokenizer, messages, self.target.device)


def taking_turns(examples: Sequence[Example]) -> list[Example]:
    """The examples in an order in which the suites take turns: a half-done run has seen all of them alike."""
    suites: dict[str, list[Example]] = {}
    for example in examples:
        suites.setdefault(example.suite, []).append(example)
    return [example for example in chain(*zip_longest(*suites.values())) if example is not None]


def padding_token(tokenizer) -> int | None:
    """The token that `generate` is given to pad with: the end of text where the tokenizer has none of its own."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def encode_messages(tokenizer, messages: list[dict[str, str]], device: torch.device) -> torch.LongTensor:
    """Token ids of a conversation that the assistant is to continue, `(1, length)`."""
    if tokenizer.chat_template is not None:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    else:  # a base model: the bare text of the conversation
        encoded = tokenizer("\n\n".join(message["content"] for message in messages), return_tensors="pt")
    return encoded["input_ids"].to(device)


def check_room(target: PreTrainedModel, tokenizer, examples: Sequence[Example], max_new_tokens: int) -> None:
    """
    Checks that a target whose positions are a learned table, which has an end, can answer every prompt: decoding would
    break off there, perhaps after hours.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        examples (`Sequence[Example]`): The prompts; of conversations the first turn.
        max_new_tokens (`int`): Length of an answer.

    Raises:
        SuiteError: Naming the first prompt without room.
    """
    positions = learned_positions(target)
    for example in examples if positions is not None else ():
        length = encode_messages(tokenizer, [{"role": "user", "content": example.turns[0]}], target.device).shape[1]
        if length + max_new_tokens > positions:
            raise SuiteError(
                f"Prompt {example.id!r} of the suite {example.suite!r} has {length} tokens, and {max_new_tokens} new "
                f"ones (`max_new_tokens`) reach beyond the target's {positions} positions. Ask for fewer new tokens, "
                "or leave the prompt out."
            )


def _record(
    method: str, turns: Sequence[Generation], plain: Sequence[Generation], temperature: float
) -> dict[str, Any]:
    """What is kept of a method on one prompt: sums over its turns, and the first turn's cycles if it may be drawn."""
    verifications = sum_or_none([turn.verifications for turn in turns])
    committed = sum_or_none([turn.committed for turn in turns])
    drafted = sum_or_none([turn.drafted for turn in turns])
    accepted = sum_or_none([turn.accepted for turn in turns])
    return {
        "tokens": sum(len(turn.tokens) for turn in turns),
        "first_turn_tokens": len(turns[0].tokens),
        "text_hash": content_hash([turn.tokens for turn in turns]),
        "seconds": sum(turn.seconds for turn in turns),
        "verifications": verifications,
        "committed": committed,
        "drafted": drafted,
        "accepted": accepted,
        "lossless": _same_text(turns, plain) if temperature == 0 else None,
        "phases": {phase: sum_or_none([turn.phases[phase] for turn in turns]) for phase in PHASES},
        # Of the turn that was disturbed most.
        "others": max((turn.others for turn in turns if turn.others is not None), default=None),
        "cycle_overhead": sum_or_none([turn.cycle_overhead for turn in turns]),
        "cycles": turns[0].cycles if method in (*ADAPTIVE_WINDOWS, PICTURE_WINDOW) else [],
        **{
            name: merge_all(part.to_dict() for part in parts).to_dict() if parts else None
            for name, parts in (
                ("estimate", [turn.estimate for turn in turns if turn.estimate is not None]),
                ("confidence", [turn.confidence for turn in turns if turn.confidence is not None]),
            )
        },
    }


def _same_text(turns: Sequence[Generation], plain: Sequence[Generation]) -> bool:
    # Token by token, which is stricter than the text.
    return all(turn.tokens == base.tokens for turn, base in zip(turns, plain, strict=True))


def cost_fields(cost_model: CostModel) -> dict[str, Any]:
    # Without its key, which describes machine and files.
    return {name: value for name, value in cost_model.to_dict().items() if name != "key"}
