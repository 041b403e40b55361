#!/usr/bin/env bash
# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
#
# A drafter for Gemma 3 270M, from nothing to the benchmark. Goes on where it was killed; finished stages are skipped.
#
#     PROMPTS="gsm8k_train.jsonl::question code.jsonl" EVAL="gsm8k.jsonl humaneval.jsonl mt_bench.jsonl" \
#         trainers/recipes/gemma3_270m/run.sh [data|init|sft|window|finish|bench ...]
#
# Budget (defaults are the small one of the README): LIMIT prompts of each file, NEW_TOKENS per answer, SFT_SECONDS,
# WINDOW_SECONDS, HOLDOUT responses for the calibration with FINISH_TOKENS each, BENCH_LIMIT prompts a suite with
# BENCH_TOKENS each, CHECK_FLOAT32 of them decoded again in float32. OUT is the output folder.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
OUT=${OUT:-runs/gemma}
TARGET=gemma3-270m
HOLDOUT=${HOLDOUT:-32}
METHODS=${METHODS:-target,prompt_lookup,lookup,fixed:3,cost_aware,mixed}
read -r -a evaluation <<< "${EVAL:?the evaluation files, which are never trained on}"

repeat() { # OPTION VALUE...: the option before every value
    local option=$1
    shift
    for value in "$@"; do printf '%s\n%s\n' "$option" "$value"; done
}

data() {
    [[ -f $OUT/responses/provenance.json ]] && return
    local sources exclude
    read -r -a sources <<< "${PROMPTS:?prompt files: FILE or FILE::COLUMN}"
    mapfile -t sources < <(repeat --prompts "${sources[@]}")
    mapfile -t exclude < <(repeat --exclude "${evaluation[@]}")
    # The pretrained model: no chat template, so the first turn only, continued as plain text.
    ppow data --target $TARGET "${sources[@]}" "${exclude[@]}" --limit "${LIMIT:-500}" --max-turns 1 \
        --prepack --max-new-tokens "${NEW_TOKENS:-128}" --output "$OUT/responses"
}

init() {
    [[ -f $OUT/init/config.json ]] && return
    python "$here/initial_drafter.py" --target $TARGET --responses "$OUT/responses" --output_dir "$OUT/init" \
        --holdout "$HOLDOUT"
}

sft() {
    [[ -f $OUT/sft/training_provenance.json ]] && return
    ppow sft --config "$here/sft.yaml" --drafter "$OUT/init" --responses "$OUT/responses" --output_dir "$OUT/sft" \
        --feature_cache_dir "$OUT/features" --max_seconds "${SFT_SECONDS:-1200}" --holdout "$HOLDOUT"
}

window() {
    [[ -f $OUT/window/training_provenance.json ]] && return
    ppow sft --config "$here/window.yaml" --drafter "$OUT/sft" --responses "$OUT/responses" \
        --output_dir "$OUT/window" --feature_cache_dir "$OUT/features" --max_seconds "${WINDOW_SECONDS:-600}" \
        --holdout "$HOLDOUT"
}

finish() {
    [[ -f $OUT/drafter/provenance.json ]] && return
    # Derived from Gemma: the drafter stands under the Gemma Terms of Use.
    python "$here/../../finish_drafter.py" --target $TARGET --drafter "$OUT/window" --responses "$OUT/responses" \
        --output_dir "$OUT/drafter" --own_window mixed --holdout "$HOLDOUT" \
        --max_new_tokens "${FINISH_TOKENS:-64}" --license gemma --target_license gemma --data_license gemma
}

bench() {
    [[ -f $OUT/drafter/cost_model.json ]] || ppow calibrate --target $TARGET --drafter "$OUT/drafter"
    local suites
    mapfile -t suites < <(repeat --suite "${evaluation[@]}")
    ppow bench --target $TARGET --drafter "$OUT/drafter" "${suites[@]}" --method "$METHODS" \
        --limit "${BENCH_LIMIT:-8}" --max-new-tokens "${BENCH_TOKENS:-128}" --check-float32 "${CHECK_FLOAT32:-1}" \
        --output "$OUT/bench"
}

for stage in "${@:-data init sft window finish bench}"; do
    for name in $stage; do "$name"; done
done
