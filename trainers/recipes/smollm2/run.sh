#!/usr/bin/env bash
# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
#
# The reference drafter for SmolLM2-135M-Instruct, from nothing to the benchmark. Goes on where it was killed; finished
# stages are skipped.
#
#     PROMPTS="gsm8k_train.jsonl::question code.jsonl sharegpt" EVAL="gsm8k.jsonl humaneval.jsonl mt_bench.jsonl" \
#         trainers/recipes/smollm2/run.sh STAGE...
#
# Stages: data sft second window long rollouts finish bench, which run without an argument, and gpu exact lossless
# assistant peers. The published drafter is of other stages at its end:
#
#     run.sh data sft second window long && GPU=64 run.sh gpu exact && LAST=exact run.sh finish bench
#
# OUT is the output folder, RESPONSES the folders to train on (OUT/responses), DRAFTER the folder that is published,
# LIMIT the benchmark's prompts a suite (all), MINUTES its time (no end): started again, it goes on. METHODS what it
# compares. GPU=64 trains on a GPU, 64 texts a step, and answers eight times as many prompts at once; STAGE_SECONDS is
# the time of every training stage; LAST (rollouts) the stage that is finished. Everything else is in the stages' YAML files.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
OUT=${OUT:-runs/smollm2}
DRAFTER=${DRAFTER:-$OUT/drafter}
options=(${STAGE_SECONDS:+--max_seconds "$STAGE_SECONDS"} ${GPU:+--use_cpu false --per_device_train_batch_size "$GPU"})
METHODS=${METHODS:-target,prompt_lookup,fixed:2,fixed:3,fixed:4,fixed:5,fixed:6,fixed:7,fixed:8,cost_aware,lookup,mixed,tree,mixed_tree}
read -r -a responses <<< "${RESPONSES:-$OUT/responses}"
read -r -a evaluation <<< "${EVAL:?the evaluation files, which are never trained on}"

repeat() { # OPTION VALUE...: the option before every value
    local option=$1
    shift
    for value in "$@"; do printf '%s\n%s\n' "$option" "$value"; done
}

data() {
    [[ -f $OUT/responses/provenance.json || -n ${RESPONSES:-} ]] && return
    local sources exclude
    read -r -a sources <<< "${PROMPTS:?prompt files or datasets: NAME or NAME::COLUMN}"
    mapfile -t sources < <(repeat --prompts "${sources[@]}")
    mapfile -t exclude < <(repeat --exclude "${evaluation[@]}")
    ppow data "${sources[@]}" "${exclude[@]}" --max-turns 2 --batch-size $((${GPU:-6} * 8)) --prepack \
        --output "$OUT/responses"
}

train() { # STAGE DRAFTER [COMMAND]: trains it as STAGE.yaml says
    [[ -f $OUT/$1/training_provenance.json ]] && return
    ppow "${3:-sft}" --config "$here/$1.yaml" ${2:+--drafter "$2"} --responses "${responses[@]}" --output_dir "$OUT/$1" \
        "${options[@]}"
}

sft() { train sft ""; }
second() { train second "$OUT/sft"; }
window() { train window "$OUT/second"; }
long() { train long "$OUT/window"; }
rollouts() { train rollouts "$OUT/long" train; }
gpu() { train gpu "$OUT/long"; }
exact() { train exact "$OUT/gpu"; }

finish() {
    [[ -f $DRAFTER/provenance.json ]] && return
    python "$here/../../finish_drafter.py" --drafter "$OUT/${LAST:-rollouts}" --responses "${responses[@]}" \
        --output_dir "$DRAFTER" --own_window "${WINDOW:-mixed_tree}"
}

bench() {
    [[ -f $DRAFTER/cost_model.json ]] || ppow calibrate --drafter "$DRAFTER"
    local suites
    mapfile -t suites < <(repeat --suite "${evaluation[@]}")
    ppow bench --drafter "$DRAFTER" "${suites[@]}" --method $METHODS --max-new-tokens 128 \
        ${LIMIT:+--limit "$LIMIT"} ${MINUTES:+--max-minutes "$MINUTES"} --check-float32 1 --output "$DRAFTER/benchmarks"
}

lossless() { # in float32, on all prompts; any number of processes may share it, see the script
    local suites
    mapfile -t suites < <(repeat --suite "${evaluation[@]}")
    python -m ppow_hf.scripts.check_lossless --drafter "$DRAFTER" "${suites[@]}" --output "$DRAFTER/benchmarks/lossless"
}

assistant() { train assistant ""; }

peers() { # transformers' own assisted generation, with the causal LM of the stage before
    local suites
    mapfile -t suites < <(repeat --suite "${evaluation[@]}")
    ppow bench --drafter "$DRAFTER" --assistant "$OUT/assistant" "${suites[@]}" --max-new-tokens 128 \
        --method target,prompt_lookup,hf_dynamic,hf_heuristic,hf_constant,heuristic,confidence,divergence,cost_aware \
        ${LIMIT:+--limit "$LIMIT"} ${MINUTES:+--max-minutes "$MINUTES"} --output "$DRAFTER/benchmarks/peers"
}

for stage in "${@:-data sft second window long rollouts finish bench}"; do
    for name in $stage; do "$name"; done
done
