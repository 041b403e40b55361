# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""`ppow`: the command line. Each command parses its options and calls one function of the library."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .hub.commands import card, push
from .hub.exchange_commands import export, import_
from .scripts.command_line import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    PrepackOption,
    SeedOption,
    TargetOption,
    load_drafter,
    load_models,
    named_folders,
    parse_count,
    parse_numbers,
    parse_shares,
    print_error,
    print_line,
    run_app,
    set_seed,
    split_drafters,
    split_names,
)
from .targets import DEFAULT_TARGET

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Speculative decoding with drafters trained on the window: same text, faster.",
)
console = Console(highlight=False)


@app.command()
def quickstart(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per prompt.", min=2)] = 128,
    seed: SeedOption = 0,
) -> None:
    """Decode the same prompts plainly and speculatively, and compare speed and text."""
    from ppow_hf.quickstart import run_quickstart

    set_seed(seed)
    models = load_models(console, target, drafter, dtype, device)
    rows = run_quickstart(*models, console, max_new_tokens=max_new_tokens)
    if not all(row.identical for row in rows):
        print_error("The texts differ in float32: this must not happen, please report it.")
        raise typer.Exit(1)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Window: cost_aware, divergence, confidence, heuristic, fixed:K, lookup, mixed, tree, mixed_tree."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="New tokens.", min=2)] = 256,
    temperature: Annotated[float, typer.Option(help="0 for greedy decoding.", min=0.0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.", min=0.0, max=1.0)] = 1.0,
    compare: Annotated[bool, typer.Option("--compare/--no-compare", help="Decode plainly too.")] = True,
    prepack: PrepackOption = False,
    seed: SeedOption = 0,
) -> None:
    """Answer a prompt, with accepted draft tokens in green, and end with the figures."""
    from ppow_hf import WindowConfig
    from ppow_hf.console import MarkedStreamer, chat_inputs, figures_table, timed_generate

    WindowConfig.coerce(window)  # before the models are loaded
    target_model, tokenizer, drafter_model = load_models(console, target, drafter, dtype, device, prepack=prepack)
    inputs = chat_inputs(tokenizer, prompt, target_model.device)
    options = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens}
    if temperature > 0:
        options.update(temperature=temperature, top_p=top_p, top_k=0)
    warm_up = chat_inputs(tokenizer, "Hello!", target_model.device)
    for assistant in (None, drafter_model):
        timed_generate(target_model, tokenizer, warm_up, do_sample=False, max_new_tokens=4, assistant_model=assistant)
    set_seed(seed)
    speculative = timed_generate(
        target_model,
        tokenizer,
        inputs,
        **options,
        assistant_model=drafter_model,
        window=window,
        streamer=MarkedStreamer(tokenizer, console, drafter_model),
    )
    trace = drafter_model.last_trace
    rows = [("speculative", speculative, trace)]
    if compare:
        set_seed(seed)
        rows.insert(0, ("plain", timed_generate(target_model, tokenizer, inputs, **options), None))
    console.print(figures_table(rows, title=f"{trace.verifications} verifications"))
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in trace.seconds.items())
    console.print(f"Speculative time: {shares}.")


@app.command()
def calibrate(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to store the costs in. Default: that given with --drafter, else your cache."),
    ] = None,
    prepack: PrepackOption = False,
    seed: SeedOption = 0,
) -> None:
    """Measure what drafting and verifying cost on this machine, print it, and store it for decoding to find."""
    from ppow_hf import CostModel
    from ppow_hf.targets import cache_dir

    set_seed(seed)
    target_model, _, drafter_model = load_models(console, target, drafter, dtype, device, prepack=prepack)
    with console.status("Measuring..."):
        cost = CostModel.measure(target_model, drafter_model)
    rows = cost.table()
    table = Table(title=f"Costs in plain target steps of {cost.target_step_seconds * 1000:.1f} ms")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    console.print(f"gamma (one draft step): {cost.gamma:.4f}. Overhead per cycle: {cost.overhead:.4f}.")
    # The reference drafter's folder is published as it is: only who names it means to publish these costs with it.
    folder = output or (Path(drafter) if drafter and Path(drafter).is_dir() else cache_dir())
    try:
        print_line(console, f"Stored in {cost.save(folder)}.")
    except OSError as error:
        raise OSError(
            f"The costs could not be stored in `{folder}` ({error}). Name one that can be written with `--output`."
        ) from error


@app.command()
def data(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the finished dataset.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            "-p",
            help="Where prompts come from: JSONL file, dataset, or sharegpt; FILE::COLUMN names one.",
        ),
    ] = None,
    answered: Annotated[
        Path | None,
        typer.Option(
            help="In place of --prompts: JSONL of answers that the target gave before ({prompt, response_ids}), "
            "taken as they are."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split of the datasets among them (Hub repositories, folders of save_to_disk).")
    ] = "train",
    subset: Annotated[
        str | None, typer.Option(help="Configuration of the Hub datasets among them, where they have several.")
    ] = None,
    target: TargetOption = DEFAULT_TARGET,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Evaluation files whose prompts must not be trained on.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many prompts of each source.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="At most this many user turns of a conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    batch_size: Annotated[int, typer.Option(help="Conversations decoded together.", min=1)] = 32,
    temperature: Annotated[
        list[str] | None,
        typer.Option(help="TEMPERATURE:SHARE, several times. Default: --temperature 0:0.7 --temperature 1:0.3."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish/--unfinished", help="--unfinished: a dataset of what a killed run left.")
    ] = True,
    prepack: PrepackOption = False,
    seed: SeedOption = 0,
) -> None:
    """Let the target answer prompts: the data a drafter learns from. Resumes where it was killed."""
    from ppow_hf import load_target, prepack_weights
    from ppow_hf.data import generate_responses, import_responses, load_prompts, select_prompts
    from ppow_hf.targets import inference_dtype

    if (answered is None) == (not prompts):
        raise ValueError("Give either `--prompts`, which the target is to answer, or `--answered` FILE.")
    if answered is not None:
        if unused := [
            f"`{name}`"
            for name, value in (("--limit", limit), ("--max-turns", max_turns), ("--temperature", temperature))
            if value
        ]:
            raise ValueError(f"{', '.join(unused)}: only for `--prompts`; `--answered` takes every answer as it is.")
        _, tokenizer = load_target(target, device="cpu")
        dataset = import_responses(answered, tokenizer, output, exclude=exclude or [])
        print_line(console, f"{len(dataset)} responses in {output}.")
        return
    shares = parse_shares("--temperature", temperature or ["0:0.7", "1:0.3"])
    found = []
    for source in prompts:
        name, _, column = source.partition("::")
        found += load_prompts(
            name,
            column=column or None,
            split=split,
            subset=subset,
            limit=limit,
            max_turns=max_turns,
            argument="--prompts",
        )
    found = select_prompts(found, exclude=exclude or [])
    with console.status("Loading the target..."):
        # Answers are text: `auto` takes the fastest dtype the hardware computes in.
        target_model, tokenizer = load_target(
            target, dtype=inference_dtype(device or "auto") if dtype == "auto" else dtype, device=device or "auto"
        )
        if prepack:
            prepack_weights(target_model)
    dataset = generate_responses(
        target_model,
        tokenizer,
        found,
        output,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperatures=shares,
        seed=seed,
        finish=finish,
    )
    print_line(console, f"{len(dataset)} responses in {output}.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def sft(context: typer.Context) -> None:
    """Supervised stage: train a drafter on the target's responses. `ppow sft --config FILE.yaml`, options override."""
    from ppow_hf.scripts.sft_drafter import main, make_parser

    main(*make_parser().parse_args_and_config(args=context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context) -> None:
    """PPOW stage: train a drafter on speculative windows. `ppow train --config FILE.yaml`, options override."""
    from ppow_hf.scripts.train_ppow import main, make_parser

    main(*make_parser().parse_args_and_config(args=context.args))


@app.command()
def bench(
    target: TargetOption = DEFAULT_TARGET,
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            help="Drafter: a folder or a Hub id. Default: the reference drafter. NAME=PATH adds another, whose "
            "windows are the methods METHOD@NAME; several times."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="gsm8k, humaneval, mt_bench, xsum, wmt14, spec_bench, or a JSONL file; several times or with commas."
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Comma-separated: target, prompt_lookup, hf_dynamic, fixed:5, cost_aware, ...")
    ] = None,
    temperature: Annotated[str, typer.Option(help="Comma-separated temperatures.")] = "0",
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per turn.", min=2)] = 256,
    limit: Annotated[int | None, typer.Option(help="At most this many prompts of each suite.")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Begin no further prompt after this time; started again, it goes on.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of results.json, report.md and the pictures.")] = Path(
        "runs/bench"
    ),
    assistant: Annotated[str | None, typer.Option(help="Causal LM for the hf_* methods.")] = None,
    check_float32: Annotated[
        str,
        typer.Option(help="Prompts per suite decoded again in float32, where the text must be the same, or `all`."),
    ] = "1",
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    prepack: PrepackOption = False,
    retries: Annotated[
        int, typer.Option(help="Time a text so often again while other processes are busy.", min=0)
    ] = 2,
    seed: SeedOption = 0,
) -> None:
    """Benchmark window policies and other assistants against plain decoding, interleaved in one process."""
    from ppow_hf.evaluation import DEFAULT_METHODS, run_benchmark
    from ppow_hf.evaluation.methods import parse_methods

    names = method.split(",") if method else DEFAULT_METHODS
    methods = parse_methods(names)
    kinds = {parsed.kind for parsed in methods}
    own_windows = any(parsed.kind == "window" and parsed.drafter is None for parsed in methods)
    temperatures = parse_numbers("--temperature", temperature)
    checked = parse_count("--check-float32", check_float32)
    if max_minutes is not None and not max_minutes > 0:
        raise ValueError(f"`--max-minutes` must be greater than 0, got {max_minutes:g}.")
    set_seed(seed)
    # A drafter that wraps a causal LM also serves the hf_* methods, unless they are given another.
    own, others = split_drafters(drafter or [])
    drafts = own_windows or ("assistant" in kinds and assistant is None and own is not None)
    target_model, tokenizer, drafter_model = load_models(console, target, own, dtype, device, with_drafter=drafts)
    results = run_benchmark(
        target_model,
        tokenizer,
        drafter_model,
        split_names(suite) if suite else ["gsm8k", "humaneval", "mt_bench"],
        names,
        output,
        temperatures=temperatures,
        max_new_tokens=max_new_tokens,
        limit=limit,
        seed=seed,
        assistant=assistant,
        other_drafters={name: load_drafter(path, target_model) for name, path in others.items()},
        # Only greedy texts can be compared.
        check_float32=checked if 0 in temperatures else 0,
        max_seconds=None if max_minutes is None else 60 * max_minutes,
        prepack=prepack,
        retries=retries,
    )
    print_line(console, f"Report: {output / 'report.md'}")
    wrong = _not_lossless(results)
    if wrong:
        print_error(
            f"In float32 the greedy text differs from plain generate's: {'; '.join(wrong)}. This must not happen, "
            f"please report it. The results are in {output}."
        )
        raise typer.Exit(1)


def _not_lossless(results: dict) -> list[str]:
    """Where a window method of ours changed the text in float32, in words."""
    from ppow_hf.evaluation.methods import parse_method

    return [
        f"{row['method']} on {row['suite']} ({100 * row['lossless_float32']:.0f}% of "
        f"{row['lossless_float32_prompts']} prompts identical)"
        for row in results["results"]
        if parse_method(row["method"]).kind == "window" and row["lossless_float32"] not in (None, 1.0)
    ]


@app.command()
def demo(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: this machine only.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port. Default: the first free one from 7860.", min=1, max=65535)
    ] = None,
    device: DeviceOption = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    seed: SeedOption = 0,
) -> None:
    """Serve the demo page: see the window stretch and shrink."""
    folder = Path(__file__).resolve().parent.parent / "spaces" / "ppow_demo"
    if not (folder / "app.py").is_file():
        raise FileNotFoundError("The demo comes with the repository, not with the package: run this in a checkout.")
    set_seed(seed)
    sys.path.insert(0, str(folder))
    try:
        from ppow_demo.serve import launch
    except ImportError as error:
        raise ImportError(f"The demo needs the extra [demo]: pip install -e '.[demo]' ({error}).") from error
    launch(host=host, port=port, device=device, open_browser=open_browser)


@app.command()
def compare(
    drafter: Annotated[list[str], typer.Option("--drafter", help="NAME=FOLDER of a drafter; several times.")],
    suite: Annotated[
        list[str],
        typer.Option(
            "--suite",
            help="Prompts, as for `ppow data` and not a suite name of `ppow bench`; several times.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the texts, results.json and report.md.")] = Path(
        "runs/compare"
    ),
    baseline: Annotated[str | None, typer.Option(help="Drafter to compare with. Default: the first.")] = None,
    window: Annotated[int, typer.Option(help="Draft tokens per window.", min=1)] = 5,
    temperature: Annotated[float, typer.Option(help="Of the texts and of drafting; 0 is greedy.", min=0.0)] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the texts.", min=2)] = 128,
    target: TargetOption = DEFAULT_TARGET,
    dtype: DtypeOption = "auto",
    device: DeviceOption = None,
    seed: SeedOption = 0,
) -> None:
    """Compare the acceptance length of drafters on the same texts of the target, replayed instead of decoded."""
    from .scripts.compare_drafters import compare_drafters

    drafters = named_folders(drafter)
    set_seed(seed)
    target_model, tokenizer, _ = load_models(console, target, None, dtype, device, with_drafter=False)
    compare_drafters(
        target_model,
        tokenizer,
        drafters,
        suite,
        output,
        window=window,
        temperature=temperature,
        baseline=baseline,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    print_line(console, (output / "report.md").read_text(encoding="utf-8"))


app.command()(card)
app.command()(push)
app.command()(export)
app.command(name="import")(import_)


def main() -> None:
    """Entry point: errors a user can act on end in one line and exit status 1, `PPOW_DEBUG=1` shows the traceback."""
    run_app(app)
