# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Requests to write Python functions, from the docstrings of the standard library and from MBPP.

    python trainers/recipes/smollm2/code_prompts.py --output runs/prompts/code.jsonl --mbpp mbpp.jsonl --limit 1500

The standard library is read as text, never imported; only the signature and docstring of a function go into a prompt.
MBPP rows with a `task_id` up to 510 are its test and prompt splits and are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_MIN_DOC_CHARS, _MAX_PROMPT_CHARS = 40, 1200
_LAST_HELD_OUT_MBPP_TASK = 510

_REQUESTS = (
    "Write the body of this Python function.\n\n```python\n{code}\n```",
    "Implement the following function in Python:\n\n```python\n{code}\n```",
    "Here is the signature and docstring of a Python function. Give me the complete code.\n\n```python\n{code}\n```",
    "```python\n{code}\n```\n\nFinish this function and explain briefly how it works.",
    "Explain what this Python function is for and show an example of its use.\n\n```python\n{code}\n```",
)


def library_functions(folder: Path) -> Iterator[str]:
    """Signature and docstring of every documented top-level function below `folder`, in a fixed order."""
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # files kept in the library as examples of what does not parse
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            doc = ast.get_docstring(node)
            if doc and len(doc) >= _MIN_DOC_CHARS:
                yield declaration(node, doc)


def declaration(node: ast.FunctionDef, doc: str) -> str:
    """`def name(arguments):` and the docstring, as text."""
    bare = ast.FunctionDef(node.name, node.args, [ast.Pass()], [], node.returns, lineno=0, type_params=[])
    head = ast.unparse(bare).rsplit("\n", 1)[0]
    body = "\n".join(f"    {line}".rstrip() for line in f'"""{doc}\n"""'.splitlines())
    return f"{head}\n{body}"


def mbpp_functions(path: Path) -> Iterator[str]:
    """The task of each MBPP training row as a docstring under its function's signature, its tests as examples."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["task_id"] <= _LAST_HELD_OUT_MBPP_TASK:
            continue
        try:
            functions = [node for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)]
        except SyntaxError:
            continue
        if functions:
            tests = "\n".join(test.strip() for test in row["test_list"][:2])
            yield declaration(functions[-1], f"{row['text'].strip()}\n\n{tests}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="JSONL file to write: one `prompt` a row")
    parser.add_argument("--mbpp", type=Path, help="MBPP as JSONL (`task_id`, `text`, `code`, `test_list`)")
    parser.add_argument("--limit", type=int, help="at most this many prompts, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    functions = list(library_functions(Path(sysconfig.get_paths()["stdlib"])))
    rng.shuffle(functions)
    # MBPP first: a limit cuts the library, which is plentiful.
    functions = (list(mbpp_functions(args.mbpp)) if args.mbpp else []) + functions
    prompts = [rng.choice(_REQUESTS).format(code=code) for code in dict.fromkeys(functions)]
    prompts = [prompt for prompt in prompts if len(prompt) <= _MAX_PROMPT_CHARS][: args.limit]
    rng.shuffle(prompts)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(args.output.name + ".tmp")
    temporary.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    os.replace(temporary, args.output)
    print(f"{len(prompts)} prompts -> {args.output}")


if __name__ == "__main__":
    main()
