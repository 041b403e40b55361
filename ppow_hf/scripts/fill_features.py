# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
The target's hidden states for supervised trainings that share a `feature_cache_dir`, made before the first of them:
none of them then runs the target's layers.

    python -m ppow_hf.scripts.fill_features --config trainers/configs/sft_smollm2_cpu.yaml --output_dir runs/sft

Takes the options of `ppow sft`; what decides about the cache are `feature_cache_dir`, `target`, `responses`,
`holdout`, `data_seed` and `max_length`. `per_device_eval_batch_size` rows at a time; stopped, it goes on. Nothing is
trained.
"""

from ppow_hf.scripts.sft_drafter import DrafterScriptArguments, build_trainer, make_parser
from ppow_hf.trainer import DrafterSFTConfig


def main(script_args: DrafterScriptArguments, training_args: DrafterSFTConfig) -> None:
    trainer, _ = build_trainer(script_args, training_args)
    rows = trainer.fill_feature_cache()
    print(f"{rows} rows added: {trainer.target_pass.cache.path}")


if __name__ == "__main__":
    main(*make_parser().parse_args_and_config())
