# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What was aimed at with the reference drafter, what was measured, and why the rest falls short.

    python trainers/recipes/smollm2/goals.py

Reads the committed figures under `model_cards/` and writes `model_cards/experiments/goals/report.md`. The goals and
the causes are written down here; every number beside them comes from a file.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ppow_hf.evaluation.aggregate import measured_so_far
from ppow_hf.evaluation.methods import is_own_fixed
from ppow_hf.whole_files import write_text_whole

ROOT = Path(__file__).parents[3]
CARDS = ROOT / "model_cards"
DRAFTER = "smollm2-135m-instruct-eagle3"
LOSSLESS = CARDS / DRAFTER / "benchmarks" / "lossless"  # a folder of each check
# Of the paper: its floor and its best speedup over plain decoding, and its acceptance length.
PAPER_SPEEDUP, PAPER_BEST, PAPER_TAU = 3.39, 4.36, 6.29
# Tokens/s of llama.cpp on the same Q4_1 weights and two threads, as the goal was set, on a machine of which plain
# decoding is known as well.
LLAMA_CPP, PLAIN_BESIDE_IT = 140.0, "33 to 40"
# Asked for, and without a figure of the published drafter.
NOT_MEASURED = (
    "Answers of 512 tokens, and how speed and memory grow with the prompt (`python -m ppow_hf.scripts.cost_growth`).",
    "The speed of a PPOW drafter against CST's and their initialisation, to a precision that would tell them apart: "
    "[15 prompts](../ppow-vs-cst/speed/README.md) do not.",
    "Lookup, mixed chains and trees without lookup, prompt lookup of 3 and 5 tokens, and transformers' assistants on "
    "all prompts: [15 prompts](../peers/README.md) have them.",
    "Whether the drafter has flattened: at the end of its training on a GPU no curve was kept.",
    "Decoding on a GPU: trees and windows follow the measured costs there too, and their tests run there, but no "
    "speed has been taken. `torch.compile` and CUDA graphs are no options of ours: `python -m "
    "ppow_hf.scripts.target_ways` asks what compiling the target would bring, and a compiled target is decoded with.",
)


class Goal(NamedTuple):
    """
    Args:
        what (`str`): What is measured.
        goal (`str`): What it should be.
        measured (`str`): What it is, and on how much.
        met (`bool`): Whether that will do.
        cause (`str`): Why it does not.
    """

    what: str
    goal: str
    measured: str
    met: bool
    cause: str = ""


def read(*parts: str) -> dict:
    """A committed results file."""
    return json.loads(CARDS.joinpath(*parts).read_text(encoding="utf-8"))


def greedy(rows: Iterable[dict]) -> list[dict]:
    return [row for row in rows if row["temperature"] == 0]


def speed_goals(results: dict) -> list[Goal]:
    """Of a benchmark's `results.json`."""
    mean = {row["method"]: row for row in greedy(results["summary"])}
    rows = greedy(results["results"])
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    cell = {(row["suite"], row["method"]): row for row in rows}
    fixed = [method for method in mean if is_own_fixed(method)]
    lookup = max((m for m in mean if m.startswith("prompt_lookup")), key=lambda m: mean[m]["speedup"])
    chain, best = mean["cost_aware"], max(mean, key=lambda m: mean[m]["speedup"])
    best_fixed = max(mean[m]["speedup"] for m in fixed)
    ratios = {s: cell[s, "cost_aware"]["speedup"] / max(cell[s, m]["speedup"] for m in fixed) for s in suites}
    rate, plain = (sum(cell[s, m]["tokens_per_second"] for s in suites) / len(suites) for m in (best, "target"))
    over_lookup = mean[best]["speedup"] / mean[lookup]["speedup"]
    provenance = read(DRAFTER, "provenance.json")
    rows, tokens = provenance["train_rows"], provenance["train_response_tokens"] / 1e6
    training = (
        f"The drafter has one layer of {provenance['parameters'] / 1e6:.0f} million parameters, and saw {rows:,} "
        f"responses of {tokens:.1f} million tokens, most of them twice: hours on two CPU cores, and four minutes on a "
        "GPU that were worth more (see the recipe). EAGLE-3's own saw some 530,000 dialogues (arXiv 2503.01840)."
    )
    return [
        Goal("mean speedup, `cost_aware`", "1.5x", f"{chain['speedup']:.2f}x", chain["speedup"] >= 1.5),
        Goal(
            "`cost_aware` over the best fixed window of 2 to 8, mean",
            "1.00",
            f"{chain['speedup'] / best_fixed:.2f}",
            chain["speedup"] >= best_fixed,
        ),
        Goal(
            "the same on each suite, against the best there",
            "0.97",
            ", ".join(f"{suite} {ratio:.2f}" for suite, ratio in ratios.items()),
            min(ratios.values()) >= 0.97,
        ),
        Goal(
            f"mean speedup, the best window (`{best}`)",
            "2.0x",
            f"{mean[best]['speedup']:.2f}x",
            mean[best]["speedup"] >= 2.0,
        ),
        Goal(
            "the same, as in the paper",
            f"{PAPER_SPEEDUP}x, then {PAPER_BEST}x",
            f"{mean[best]['speedup']:.2f}x",
            mean[best]["speedup"] >= PAPER_SPEEDUP,
            "The paper's targets are some sixty times larger: a draft step and the work around it cost next to "
            "nothing beside a verification there. " + training,
        ),
        Goal(
            "the best window over transformers' prompt lookup",
            "1.2",
            f"{over_lookup:.2f} (`{lookup}`)",
            over_lookup >= 1.2,
        ),
        Goal(
            "acceptance length of chains, `cost_aware`",
            "4",
            f"{chain['acceptance_length']:.2f}",
            chain["acceptance_length"] >= 4,
            training + " And the cost-aware window does not maximise it: it stops where the next token costs more "
            "than it is expected to bring.",
        ),
        Goal(
            f"acceptance length with trees, `{best}`",
            f"{PAPER_TAU}",
            f"{mean[best]['acceptance_length']:.2f}",
            mean[best]["acceptance_length"] >= PAPER_TAU,
            "As above. Verification on two cores is not flat, so that trees stay small.",
        ),
        Goal(
            f"tokens per second, `{best}`",
            f"past llama.cpp's plain decoding of the same Q4 weights, {LLAMA_CPP:.0f}",
            f"{rate:.0f}",
            rate >= LLAMA_CPP,
            "llama.cpp multiplies 4-bit weights; this target runs in bfloat16, and reads four times as much memory "
            f"per step. The goal is of a faster machine, too: plain decoding gives {PLAIN_BESIDE_IT} tokens/s there "
            f"and {plain:.0f} here. Prepacked weights (`--prepack`) are worth another 1.2 to 1.3 times.",
        ),
    ]


def sampling_goals(drafter_hash: str) -> list[Goal]:
    """At temperature 1."""
    results = read("experiments", "temperature-1", "results.json")
    mean = {row["method"]: row["speedup"] for row in results["summary"] if row["temperature"] == 1}
    best = max(mean, key=mean.get)
    where = other_conditions(results, drafter_hash)
    return [
        Goal(
            f"mean speedup at temperature 1, `{method}`{where}",
            "1.4x",
            f"{mean[method]:.2f}x",
            mean[method] >= 1.4,
            "A sampled token is often not the likeliest one, and then no drafter knows it.",
        )
        for method in ("cost_aware", best)
    ]


def cycle_goals() -> list[Goal]:
    """Where the time of a cycle goes, as profiled."""
    goals = []
    for window in ("cost_aware", "mixed_tree"):
        profile = read("experiments", "profile", window, "profile.json")
        other = profile["shares"]["other"]
        goals.append(
            Goal(
                f"time of a cycle that is neither drafting nor verification, `{window}`",
                "4%",
                f"{100 * other:.1f}%",
                other < 0.04,
                "Growing a tree and moving the accepted path cost a dozen small operations each.",
            )
        )
        goals.append(
            Goal(
                f"a draft step, `{window}`",
                "0.05 of a target step",
                f"{profile['gamma']:.3f}",
                profile["gamma"] < 0.05,
            )
        )
    return goals


def other_conditions(results: dict, drafter_hash: str) -> str:
    """
    In what a benchmark differs from the one on all prompts, for the line that quotes it.

    Args:
        results (`dict`): Its `results.json`.
        drafter_hash (`str`): Of the published drafter.
    """
    parts = [f"{results['arguments']['limit']} prompts a suite"] if results["arguments"]["limit"] else []
    parts += [] if results["drafter_hash"] == drafter_hash else ["the drafter before this one"]
    return f" ({', '.join(parts)})" if parts else ""


def policy_goals() -> list[Goal]:
    """Of the windows compared on the same texts by the cost model: no timing blurs them."""
    goals = []
    for temperature, how in ((0, "greedy"), (1, "at temperature 1")):
        rows = read("experiments", "window-policies", f"temperature-{temperature}", "results.json")["results"]
        chosen = [row for row in rows if row["policy"] == "cost_aware"]
        mean = next(row for row in chosen if row["suite"] is None)
        low, high = mean["over_baseline_interval"]
        count = mean["num_prompts"]
        goals.append(
            Goal(
                f"`cost_aware` over the best fixed window (`{mean['baseline']}`), {how}, by the cost model on the "
                f"same texts ({count} prompts)",
                "above 1",
                f"{mean['over_baseline']:.3f} [{low:.3f}, {high:.3f}]",
                low > 1,
                "The estimate of acceptance tells tokens apart only in part.",
            )
        )
        shares = {row["suite"]: row["share_of_oracle"] for row in chosen if row["suite"]}
        goals.append(
            Goal(
                f"the same against a chain policy that knows k in advance, {how}",
                "0.95 on each suite",
                ", ".join(f"{suite} {share:.2f}" for suite, share in shares.items()),
                min(shares.values()) >= 0.95,
                "k is not known before it is verified. The estimate is calibrated, but tells tokens of one half apart "
                "from those of nine tenths only in part: windows are longer than what is accepted of them.",
            )
        )
    return goals


def peer_goals(drafter_hash: str) -> list[Goal]:
    """Against transformers' own assisted generation, and prompt lookup of every length."""
    results = read("experiments", "peers", "results.json")
    where = other_conditions(results, drafter_hash)
    mean = {row["method"]: row["speedup"] for row in greedy(results["summary"])}
    best = max(mean, key=mean.get)
    goals = []
    for window, kind, wanted, cause in (
        ("cost_aware", "hf_", 1.0, "Its assistant is a causal LM of three layers, whose steps cost more."),
        (best, "prompt_lookup", 1.2, "A target this small repeats itself."),
    ):
        peer = max((name for name in mean if name.startswith(kind)), key=mean.get)
        goals.append(
            Goal(
                f"`{window}` over the best of "
                + ("transformers' assistants" if kind == "hf_" else "prompt lookup of 3, 5 and 10 tokens")
                + where,
                "above 1" if wanted == 1 else f"{wanted}",
                f"{mean[window] / mean[peer]:.2f} ({mean[window]:.2f}x, `{peer}` {mean[peer]:.2f}x)",
                mean[window] / mean[peer] > wanted,
                cause,
            )
        )
    return goals


def race_goals() -> list[Goal]:
    """Against the package economize, with drafters trained on the same responses for the same time."""
    results = read("experiments", "race", "results.json")
    limit = results["arguments"]["limit"]
    goals = []
    for line in results["race"]:
        if line["suite"] is not None or not line["ours"].startswith("same-time/"):
            continue
        low, high = line["ratio_interval"]
        goals.append(
            Goal(
                f"`{results['arguments']['champion']}` with a drafter trained as long as economize's, over the best "
                f"of economize's methods (`{line['theirs'].removeprefix('economize/')}`), mean ({limit} prompts a "
                "suite)",
                "above 1",
                f"{line['ratio']:.2f} [{low:.2f}, {high:.2f}] ({line['speedup']:.2f}x, {line['peer_speedup']:.2f}x)",
                line["ratio"] > 1,
                "Its drafters and loops are as its authors made them; see the report.",
            )
        )
    return goals


def training_goals() -> list[Goal]:
    """What PPOW is worth."""
    rows = read("experiments", "ppow-vs-cst", "gpu", "results.json")["results"]
    init = next(row for row in rows if row["arm"] == "init" and row["suite"] == "mean")["acceptance_length"]
    lengths = {(row["drafter"], row["suite"]): row["acceptance_length"] for row in rows}
    arms = {
        arm: [row for row in rows if row["arm"] == arm and row["suite"] == "mean"] for arm in ("ppow-exact", "ppow")
    }
    gains = {
        suite: min(lengths[row["drafter"], suite] for row in arms["ppow-exact"]) - length
        for (drafter, suite), length in lengths.items()
        if drafter == "init" and suite != "mean"
    }
    over_cst = [row[f"over_cst-seed{seed}"] for row in arms["ppow-exact"] for seed in (0, 1)]
    gain = sum(difference for difference, _, _ in over_cst) / len(over_cst)
    cst = [lengths[f"cst-seed{seed}", "mean"] for seed in (0, 1)]
    share = gain / (sum(cst) / len(cst))
    return [
        Goal(
            "acceptance length over the supervised initialisation (PPOW's expected reward, windows of 5, two seeds)",
            "above, intervals without zero",
            f"{init:.3f}, then {_over(arms['ppow-exact'])}",
            all(row["difference_low"] > 0 for row in arms["ppow-exact"]),
        ),
        Goal(
            "the same, on every suite",
            "above",
            ", ".join(f"{suite} {least:+.3f}" for suite, least in gains.items()) + " (the lesser of two seeds)",
            min(gains.values()) > 0,
        ),
        Goal(
            "the same, with windows that are sampled (the paper's way)",
            "above, intervals without zero",
            f"{init:.3f}, then {_over(arms['ppow'])}",
            all(row["difference_low"] > 0 for row in arms["ppow"]),
            "A step learns from 1,024 starts and takes a third as many steps as supervised training in the same time, "
            "which learns from every position of its texts; and the gradient of so few starts hardly holds for others "
            "(gradient probe).",
        ),
        Goal(
            "PPOW's expected reward over as much more supervised training, in the mean of two seeds each",
            "+5%",
            f"{100 * share:+.1f}% ({gain:+.3f}; "
            f"{sum(low > 0 for _, low, _ in over_cst)} of {len(over_cst)} intervals without zero)",
            share >= 0.05,
            "Both gain little beside the supervised stage before them. The paper has 6.40 over 6.09 of its own "
            "initialisation in the mean, and 19% over CST on GSM8K, where CST made its drafter worse; here CST gains.",
        ),
    ]


def _over(rows: list[dict]) -> str:
    return " and ".join(
        f"{row['acceptance_length']:.3f} ({row['difference']:+.3f} "
        f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}])"
        for row in rows
    )


def lossless_goals(drafter_hash: str) -> list[Goal]:
    """Of every `lossless.json`."""
    goals = []
    for path in sorted(LOSSLESS.glob("*/lossless.json")):
        check = read(*path.relative_to(CARDS).parts)
        drafter = "" if check["drafter_hash"] == drafter_hash else " (with the drafter before this one)"
        methods = check["arguments"]["methods"][1:]
        rows = [row for row in check["results"] if row["method"] in methods]
        names = ", ".join(f"`{method}`" for method in methods)
        identical, of = (sum(row[name] for row in rows) for name in ("identical", "num_prompts"))
        goals.append(
            Goal(
                f"texts identical to plain `generate`'s in float32, {names}{drafter}",
                "100%",
                f"{identical} of {of} ({of // len(methods)} prompts with each)",
                identical == of,
                "A defect.",
            )
        )
    return goals


def throughput_goals() -> list[Goal]:
    """How fast responses are made and windows verified."""
    data = read("experiments", "data-throughput", "results.json")["results"]
    packed = read("experiments", "packed-verification", "results.json")
    steps = read("experiments", "ppow-throughput", "results.json")["results"]
    inside = [step["share_inside_models"] for step in steps]
    return [
        Goal(
            "speed of `ppow data` over a bare batched `generate` loop",
            "0.90",
            f"{data['ratio']:.2f} (median of {len(data['ratios'])})",
            data["ratio"] >= 0.9,
            "Each batch is written to disk before the next one.",
        ),
        Goal(
            "packed verification over start by start, 8 starts x 8 windows x 10 tokens",
            "3x",
            f"{packed['median_ratio']:.1f}x (median of {len(packed['texts'])} texts)",
            packed["median_ratio"] >= 3,
            "Few tokens of text leave little to share.",
        ),
        Goal(
            "share of a PPOW step inside of models, from 2 starts x 4 windows to 16 x 16",
            "70%",
            f"{100 * min(inside):.0f}% to {100 * max(inside):.0f}% ({sum(share >= 0.7 for share in inside)} of "
            f"{len(inside)} settings above)",
            min(inside) >= 0.7,
            "What is left is mostly losses over the vocabulary, in the larger settings.",
        ),
    ]


def all_goals(results: dict) -> list[Goal]:
    """
    Args:
        results (`dict`): The benchmark's `results.json`.
    """
    return [
        *speed_goals(results),
        *lossless_goals(results["drafter_hash"]),
        *throughput_goals(),
        *cycle_goals(),
        *sampling_goals(results["drafter_hash"]),
        *policy_goals(),
        *peer_goals(results["drafter_hash"]),
        *race_goals(),
        *training_goals(),
    ]


def report(goals: list[Goal], prompts: str) -> str:
    """The Markdown."""
    lines = [
        "# What was aimed at, and what falls short",
        "",
        f"SmolLM2-135M-Instruct in bfloat16 on two CPU cores, temperature 0, 128 new tokens, {prompts} prompts. "
        "Written by `trainers/recipes/smollm2/goals.py` from the committed results.",
        "",
        "| what | goal | measured | met |",
        "|---|---|---|---|",
    ]
    lines += [f"| {g.what} | {g.goal} | {g.measured} | {'yes' if g.met else '**no**'} |" for g in goals]
    lines += ["", "## Why", ""]
    lines += [f"- **{g.what}**: {g.cause}" for g in goals if not g.met and g.cause]
    lines += ["", "## Not measured", "", *(f"- {what}" for what in NOT_MEASURED)]
    return "\n".join(lines) + "\n"


def main(write: Callable[[Path, str], None] = write_text_whole) -> None:
    results = read(DRAFTER, "benchmarks", "results.json")
    path = CARDS / "experiments" / "goals" / "report.md"
    write(path, report(all_goals(results), measured_so_far(results) or "all"))
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
