# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
A process with the real huggingface_hub and transformers clients, pointed at the local Hub.

They read HF_ENDPOINT once, at import: that is why they live in a process of their own. It runs the functions of this
file on request (JSON lines in, JSON lines out); all it prints goes to a file, where tests look for tokens.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class ClientError(Exception):
    """What an action raised: `kind` is the exception's name, `trace` its traceback with all causes."""

    def __init__(self, kind: str, message: str, trace: str):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.trace = kind, message, trace


class Client:
    """The process, seen from the tests."""

    def __init__(self, endpoint: str, folder: Path, token: str):
        self.home = folder / "home"
        self.output_path = folder / "output.txt"
        offline = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"}
        env = {key: value for key, value in os.environ.items() if key not in offline}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(self.home), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
        env |= {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "info", "HF_HUB_VERBOSITY": "info"}
        answers, write_end = os.pipe()
        self.answers = os.fdopen(answers)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.hub_client", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=self.output_path.open("w"),
            stderr=subprocess.STDOUT,
            pass_fds=[write_end],
            env=env,
            cwd=ROOT,
            text=True,
        )
        os.close(write_end)

    def call(self, action: str, **arguments: Any) -> Any:
        """Runs a function of this file over there."""
        self.process.stdin.write(json.dumps({"action": action, "arguments": arguments}, default=str) + "\n")
        self.process.stdin.flush()
        line = self.answers.readline()
        assert line, f"the client process died:\n{self.output}"
        answer = json.loads(line)
        if "kind" in answer:
            raise ClientError(answer["kind"], answer["message"], answer["trace"])
        return answer["result"]

    @property
    def output(self) -> str:
        """Everything the process has printed."""
        return self.output_path.read_text()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.answers.close()


# ---- actions -------------------------------------------------------------------------------------------------------


def push(folder: str, repo_id: str, **kwargs: Any) -> dict:
    from ppow_hf.hub.push import push_folder

    return _plain(push_folder(folder, repo_id, retry_wait=0.01, **kwargs))


def push_loaded(folder: str, repo_id: str, **kwargs: Any) -> dict:
    """Loads a drafter from a folder and pushes it as `drafter.push_to_hub` does."""
    from ppow_hf import AutoDrafter
    from ppow_hf.hub.push_drafter import push_drafter

    return _plain(push_drafter(AutoDrafter.from_pretrained(folder), repo_id, retry_wait=0.01, **kwargs))


def generate(target: str, drafter: str, input_ids: list[int], **kwargs: Any) -> dict:
    """Tokens and windows of a greedy generation with a drafter from a folder or the Hub."""
    import torch
    from transformers import AutoModelForCausalLM

    from ppow_hf import AutoDrafter

    target_model = AutoModelForCausalLM.from_pretrained(target)
    drafter_model = AutoDrafter.from_pretrained(drafter, **kwargs)
    ids = torch.tensor([input_ids])
    output = target_model.generate(ids, assistant_model=drafter_model, max_new_tokens=24, do_sample=False)
    trace = drafter_model.last_trace
    state = drafter_model.state_dict()
    return {
        "tokens": output[0].tolist(),
        "cycles": [[cycle.drafted, cycle.accepted] for cycle in trace.cycles],
        "window": drafter_model.generation_config.window.to_dict(),
        "sums": {name: tensor.double().sum().item() for name, tensor in state.items()},
    }


def download(repo_id: str, path: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(repo_id, path)


def command(*, arguments: list[str]) -> dict:
    """`ppow push ...`, as a command."""
    import typer
    from typer.testing import CliRunner

    from ppow_hf.hub.commands import push as push_command

    app = typer.Typer()
    app.command()(push_command)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return {"exit_code": result.exit_code, "output": result.output, "error": str(result.exception or "")}


def train_and_push(target: str, drafter: str, output_dir: str, repo_id: str, stage: str = "supervised") -> dict:
    """A trainer's push at the end of (hardly any) training, and of a checkpoint."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    from ppow_hf import AutoDrafter, DrafterSFTConfig, DrafterSFTTrainer, PPOWConfig, PPOWTrainer
    from ppow_hf.hub.push_drafter import push_checkpoint, push_trainer

    rows = Dataset.from_dict({"input_ids": [[5, 6, 7, 8, 9, 10]] * 2, "loss_mask": [[0, 0, 1, 1, 1, 1]] * 2})
    options = {"hub_model_id": repo_id, "max_steps": 1, "report_to": [], "use_cpu": True, "hub_token": "hf_argument"}
    options |= {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"eval_on_start": True, "eval_decode_new_tokens": 6, "eval_window": "fixed:3"}
    if stage == "ppow":
        windows = {"window_size": 2, "num_generations": 4, "num_windows": 1}
        trainer_class, args = PPOWTrainer, PPOWConfig(output_dir, **options, **windows)
    else:
        trainer_class, args = DrafterSFTTrainer, DrafterSFTConfig(output_dir, **options)
    trainer = trainer_class(
        model=AutoDrafter.from_pretrained(drafter),
        target_model=AutoModelForCausalLM.from_pretrained(target),
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
    )
    trainer.train()
    args.hub_token = None
    checkpoint = push_checkpoint(trainer, os.path.join(output_dir, "checkpoint-1"))
    return {"checkpoint": _plain(checkpoint), "end": _plain(push_trainer(trainer, retry_wait=0.01))}


def _plain(result) -> dict:
    from dataclasses import asdict

    return {**asdict(result), "to_send": [file.path for file in result.to_send]}


def _serve(answers) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": globals()[request["action"]](**request["arguments"])}
        except Exception as error:
            answer = {"kind": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[1]), "w") as pipe:
        _serve(pipe)
