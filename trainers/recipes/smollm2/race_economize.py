# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The race against economize: same target, same responses, same training time, decoded in the same process.

    pip install -c constraints.txt economize  # the environment of `make test` has it
    # economize's drafters, 45 minutes each; a killed run goes on where it stopped
    python trainers/recipes/smollm2/race_economize.py train --technique eagle3 --seconds 2700 \
        --learning_rate 1e-3 --ttt_steps 3 --warmup_steps 50 --responses runs/responses --output runs/race/eagle3
    python trainers/recipes/smollm2/race_economize.py train --technique jump --seconds 2700 --warmup_steps 30 \
        --responses runs/responses --output runs/race/jump
    # ours, from nothing, in the same time
    ppow sft --config trainers/configs/sft_smollm2_cpu.yaml --responses runs/responses --output_dir runs/race/sft \
        --max_seconds 2700 --num_train_epochs 100 --feature_cache_dir runs/race/features \
        --eval_strategy no --load_best_model_at_end false
    python trainers/finish_drafter.py --drafter runs/race/sft --responses runs/responses --own_window mixed_tree \
        --output_dir runs/race/same-time
    python trainers/recipes/smollm2/race_economize.py bench --drafter same-time=runs/race/same-time \
        --drafter reference=model_cards/smollm2-135m-instruct-eagle3 \
        --eagle3 runs/race/eagle3 --jump runs/race/jump --suite gsm8k --suite humaneval --suite mt_bench --limit 8

Evaluation prompts are never trained on: `train` reads folders written by `ppow data` only, and refuses one whose
prompts are in a `--exclude` file.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from economize_methods import PEER, RaceRunner, entrants_of, parse_peer
from economize_training import TECHNIQUES, PeerTraining, read_record, train_peer
from race_report import draw_race, render_race, results_of

from ppow_hf import load_target
from ppow_hf.data import load_prompts, split_holdout
from ppow_hf.evaluation import Example, load_suite
from ppow_hf.evaluation.environment import describe_environment
from ppow_hf.evaluation.precision import (
    cast_floating,
    content_hash,
    dtype_name,
    fingerprint,
    public_name,
    settings_hash,
)
from ppow_hf.evaluation.records import RecordLog
from ppow_hf.evaluation.suites import check_distinct, first_of_each_suite
from ppow_hf.hub.card_facts import read_provenance
from ppow_hf.scripts.command_line import load_drafter, named_folders
from ppow_hf.scripts.training_run import load_all_responses
from ppow_hf.targets import DEFAULT_TARGET
from ppow_hf.whole_files import write_json_whole, write_text_whole

METHODS = ("cost_aware", "mixed", "tree", "mixed_tree")
# A cycle of 4 is economize's default; its published figures stop drafting by confidence and use longer cycles.
PEERS = (
    "plain",
    "lookup:10",
    "eagle3:4",
    "eagle3:6@0.3",
    "jump:4",
    "jump:6@0.3",
    "eagle3+lookup:10@0.3",
    "jump+lookup:6@0.3",
    "jump+lookup:10@0.3",
)


def train(args: argparse.Namespace) -> None:
    """Trains one of economize's drafters."""
    settings = PeerTraining(
        technique=args.technique,
        seconds=args.seconds,
        batch_size=args.batch_size,
        max_length=args.max_length,
        draft_vocab_size=args.draft_vocab_size,
        ttt_steps=args.ttt_steps,
        learning_rate=args.learning_rate,
        warmup_steps=args.warmup_steps,
        save_steps=args.save_steps,
        seed=args.seed,
    )
    target, tokenizer = load_target(args.target)
    rows, provenance = load_all_responses(args.responses)
    check_unseen(rows["prompt"], args.exclude)
    if args.holdout:
        rows, _ = split_holdout(rows, args.holdout, seed=args.data_seed)
    facts = {
        "target": target.config._name_or_path,
        "responses": [None if p is None else content_hash(p) for p in provenance],
        "holdout": args.holdout,
    }
    folder = train_peer(target, tokenizer, rows.remove_columns("prompt"), settings, args.output, facts)
    record = read_record(folder)
    print(
        f"{folder}: {record['steps']} steps, {record['response_tokens']:,} response tokens in "
        f"{record['trained_seconds']:.0f} seconds of training"
    )


def check_unseen(prompts: list[Any], excluded: list[str]) -> None:
    """Raises a `ValueError` if a prompt of the files `excluded` is among the prompts to train on."""
    seen = {p if isinstance(p, str) else p[-1]["content"] for p in prompts}
    seen |= {m["content"] for p in prompts if not isinstance(p, str) for m in p if m["role"] == "user"}
    for path in excluded:
        common = [prompt.turns[0] for prompt in load_prompts(path) if prompt.turns[0] in seen]
        if common:
            raise ValueError(
                f"`--exclude {path}`: {len(common)} of its prompts are among the responses to train on, the first is "
                f"{common[0][:60]!r}. Make the responses again with `ppow data --exclude {path}`."
            )


def bench(args: argparse.Namespace) -> None:
    """Runs the race and writes its results."""
    target, tokenizer = load_target(args.target)
    examples = collect(args.suite, args.limit, args.seed)
    folders = named_folders(args.drafter)
    drafters = {name: load_drafter(folder, target) for name, folder in folders.items()}
    records = {name: read_record(getattr(args, name)) for name in TECHNIQUES if getattr(args, name) is not None}
    own = args.method or METHODS
    if args.champion not in own:
        raise ValueError(f"`--champion {args.champion}` is not among the methods {', '.join(own)}.")
    entrants = entrants_of(target, drafters, own, args.peer or PEERS, records, args.peer_dtype)
    arguments = {
        "target": public_name(target),
        "drafter": ", ".join(drafters) or None,
        "assistant": None,
        "suites": list(dict.fromkeys(example.suite for example in examples)),
        "methods": [entrant.name for entrant in entrants],
        "temperatures": [0.0],
        "max_new_tokens": args.max_new_tokens,
        "limit": args.limit,
        "seed": args.seed,
        "dtype": dtype_name(target.dtype),
        "check_float32": args.check_float32,
        "chat_template": tokenizer.chat_template is not None,
        "champion": args.champion,
        "peer_dtype": args.peer_dtype,
    }
    environment = describe_environment(target.device)
    environment["versions"][PEER] = metadata.version(PEER)
    identity = {
        **arguments,
        "machine": [environment["device_name"], environment["cpu"], environment["torch_threads"]],
        "versions": environment["versions"],
        "prompts_hash": content_hash([[example.suite, example.id, example.turns] for example in examples]),
        "hashes": {"target": fingerprint(target)}
        | {entrant.name: fingerprint(_trained(entrant)) for entrant in entrants if entrant.model is not None},
        "settings": {name: settings_hash(drafter) for name, drafter in drafters.items()},
        "decoding_code": environment["decoding_code"],
    }
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    log = RecordLog(output / "records.jsonl", identity)
    runner = RaceRunner(target, tokenizer, entrants, args.max_new_tokens, args.seed, log, retries=args.retries)
    runner.run(examples, [0.0])
    checked = first_of_each_suite(examples, args.check_float32)
    with cast_floating([target, *drafters.values()], torch.float32):
        float32_records = runner.check_float32(checked)
    training = {name: own_training(folder) for name, folder in folders.items()}
    training |= {f"{PEER} {name}": peer_training(record) for name, record in records.items()}
    results = results_of(arguments, environment, runner.prompts(), float32_records, args.champion, training)
    write_json_whole(output / "results.json", results)
    draw_race(results, output / "race.png")
    write_text_whole(output / "report.md", render_race(results, "race.png"))
    print(f"{output}/report.md")


def _trained(entrant) -> torch.nn.Module:
    """What of an entrant was trained: not the target inside of economize's wrapper."""
    return entrant.model.techniques if entrant.is_peer else entrant.model


def collect(suites: list[str], limit: int | None, seed: int) -> list[Example]:
    """The examples of all suites, none twice."""
    examples = [example for suite in suites for example in load_suite(suite, limit, seed)]
    check_distinct(examples)
    return examples


def own_training(folder: str) -> dict[str, Any]:
    """Seconds, steps and rate of one of our drafters, the stages it continues included."""
    facts = read_provenance(folder)
    stages = []
    while facts:
        stages.append(facts)
        facts = facts.get("started_from") or facts.get("continued_from")
    results = [stage["result"] for stage in stages if "result" in stage]
    seconds = [result.get("train_runtime") for result in results]
    steps = [
        round(result["train_runtime"] * result["train_steps_per_second"])
        for result in results
        if "train_steps_per_second" in result
    ]
    rates = [stage["training"].get("learning_rate") for stage in stages if "training" in stage]
    return {
        "of": "ppow-hf",
        "seconds": sum(seconds) if seconds and None not in seconds else None,
        "steps": sum(steps) or None,
        "stages": len(stages),
        # A rate of one stage would not describe the others.
        "learning_rate": rates[0] if len(rates) == 1 else None,
    }


def peer_training(record: dict[str, Any]) -> dict[str, Any]:
    """The same of a drafter of economize."""
    return {
        "of": PEER,
        "version": record["economize"],
        "seconds": record["trained_seconds"],
        "steps": record["steps"],
        "response_tokens": record["response_tokens"],
        "learning_rate": record["optimizer"]["lr"],
    }


def _peer_name(text: str) -> str:
    try:
        parse_peer(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("train", help="train one of economize's drafters for a given time")
    part.add_argument("--technique", choices=TECHNIQUES, required=True)
    part.add_argument("--seconds", type=float, required=True, help="time spent in training steps")
    part.add_argument("--responses", nargs="+", required=True, help="folders written by `ppow data`")
    part.add_argument(
        "--exclude", nargs="*", default=[], help="files of evaluation prompts that must not be trained on"
    )
    part.add_argument("--output", required=True, help="folder of checkpoints and of the drafter")
    part.add_argument("--target", default=DEFAULT_TARGET)
    part.add_argument("--holdout", type=int, default=32, help="responses left out, as in our own training")
    part.add_argument("--data_seed", type=int, default=0, help="which responses: as in our own training")
    part.add_argument("--batch_size", type=int, default=4)
    part.add_argument("--max_length", type=int, default=512)
    part.add_argument("--draft_vocab_size", type=int, default=10240)
    part.add_argument("--ttt_steps", type=int, help="draft steps unrolled for EAGLE-3 (economize's own: 7)")
    part.add_argument("--learning_rate", type=float, help="economize's own: 1e-4 for EAGLE-3, 5e-4 for jump")
    part.add_argument("--warmup_steps", type=int, help="economize's own: 100")
    part.add_argument("--save_steps", type=int, default=50)
    part.add_argument("--seed", type=int, default=0)
    part.set_defaults(run=train)

    part = commands.add_parser("bench", help="decode with everything, interleaved in one process")
    part.add_argument("--suite", action="append", required=True, help="name or JSONL file; several times")
    part.add_argument("--drafter", action="append", default=[], metavar="NAME=FOLDER")
    part.add_argument("--eagle3", help="economize's trained EAGLE-3 drafter")
    part.add_argument("--jump", help="economize's trained jump drafter")
    part.add_argument("--method", action="append", help=f"our methods; several times ({', '.join(METHODS)})")
    part.add_argument(
        "--peer", action="append", type=_peer_name, help=f"economize's methods; several times ({', '.join(PEERS)})"
    )
    part.add_argument("--champion", default="mixed_tree", help="our method in the head to head")
    part.add_argument(
        "--peer_dtype", choices=("model", "float32"), default="model", help="dtype of economize's draft layers"
    )
    part.add_argument("--limit", type=int, help="prompts per suite")
    part.add_argument("--max_new_tokens", type=int, default=128)
    part.add_argument("--retries", type=int, default=2, help="times a text is timed again that others disturbed")
    part.add_argument("--check_float32", type=int, default=1, help="prompts per suite decoded in float32 as well")
    part.add_argument("--target", default=DEFAULT_TARGET)
    part.add_argument("--output", default="runs/race/bench")
    part.add_argument("--seed", type=int, default=0)
    part.set_defaults(run=bench)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if importlib.util.find_spec(PEER) is None:
        sys.exit("The package economize is not installed: `pip install -c constraints.txt economize`.")
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"race_economize.py {args.command}: {error}")


if __name__ == "__main__":
    main()
