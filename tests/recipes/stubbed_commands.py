# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Running a recipe's shell script without its commands' work."""

import os
import subprocess
from pathlib import Path


def run_recipe(script: Path, folder: Path, *stages: str, **variables: str) -> list[str]:
    """Runs the script with commands that only note what they were asked for, and leave what the real ones leave."""
    binaries = folder / "bin"
    binaries.mkdir(exist_ok=True)
    for name in ("ppow", "python"):
        (binaries / name).write_text(
            '#!/usr/bin/env bash\necho "$(basename "$0") $*" >> calls\nwhile (($#)); do\n'
            '[[ $1 == --output || $1 == --output_dir ]] && { mkdir -p "$2"; touch "$2"/{config,provenance}.json '
            '"$2/training_provenance.json"; }\nshift\ndone\n'
        )
        (binaries / name).chmod(0o755)
    (folder / "calls").unlink(missing_ok=True)
    environment = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PROMPTS": "a.jsonl::q b.jsonl",
        "EVAL": "e.jsonl f.jsonl",
        **variables,
    }
    subprocess.run([script, *stages], cwd=folder, env=environment, check=True, timeout=60)
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
