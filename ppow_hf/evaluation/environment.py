# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What a benchmark ran on: hardware and versions, without names of hosts, users or paths."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch


def _hash_of_sources(package: Path) -> str:
    digest = hashlib.sha256()
    for folder in ("drafters", "generation"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


# When it is imported: a run of hours must not state what was edited meanwhile.
_DECODING_CODE = _hash_of_sources(Path(__file__).parents[1])
CPU_DTYPE_FLAGS = ("avx512_bf16", "amx_bf16", "amx_int8", "avx512_fp16", "avx512f", "avx2", "bf16", "asimdhp")
PACKAGES = ("ppow-hf", "torch", "transformers", "datasets", "numpy")


def decoding_code() -> str:
    """
    Short hash of the sources that decode, drafters and generation: between two releases a version number does not tell
    whether texts and times came from the same code.
    """
    return _DECODING_CODE


def describe_environment(device: torch.device) -> dict[str, Any]:
    """
    Returns:
        `dict` with `cpu` (model name), `cpu_cores`, `torch_threads`, `device`, `device_name`, `dtype_support` (whether
        bfloat16 and float16 run on the device, and the CPU's instructions for them), `platform`, `versions`,
        `decoding_code` (see [`decoding_code`]).
    """
    model, flags = _cpu_info()
    support: dict[str, Any] = {"cpu_instructions": [flag for flag in CPU_DTYPE_FLAGS if flag in flags]}
    for name in ("bfloat16", "float16"):
        support[name] = _dtype_runs(getattr(torch, name), device)
    return {
        "cpu": model,
        "cpu_cores": _available_cores(),
        "torch_threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else model,
        "dtype_support": support,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **_versions()},
        "decoding_code": decoding_code(),
    }


def _cpu_info() -> tuple[str, set[str]]:
    model, flags = "", set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and not model:
                    model = value.strip()
                elif key.strip() in ("flags", "Features") and not flags:
                    flags = set(value.split())
    except OSError:  # not Linux
        pass
    return model or platform.processor() or platform.machine(), flags


def _available_cores() -> int:
    # A container may be confined to some of the machine's cores.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _dtype_runs(dtype: torch.dtype, device: torch.device) -> bool:
    try:
        ones = torch.ones(2, 2, dtype=dtype, device=device)
        return bool((ones @ ones).float().sum() == 8)
    except RuntimeError:
        return False


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
