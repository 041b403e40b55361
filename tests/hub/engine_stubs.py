# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""
For the checks in other engines: our weights under the names both engines give them, and modules with nothing in them
for what an engine imports and never calls here (compiled kernels and grammar libraries, which need a GPU or hundreds
of megabytes). What reads configurations and weights is the engine's own.
"""

import importlib.abc
import importlib.machinery
import sys
import types

import torch


class _Anything(type):
    """A class whose attributes are classes of the same kind, for annotations, decorators and base classes."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


def _class(name):
    return _Anything(
        name,
        (),
        {
            "__init__": lambda self, *args, **kwargs: None,
            "__call__": lambda self, *args, **kwargs: args[0] if args else None,
            "__class_getitem__": classmethod(lambda cls, key: cls),
        },
    )


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _class(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = set(names)

    def find_spec(self, name, path=None, target=None):
        if name in self.names or name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


def stub_missing(*names: str) -> None:
    """Stands in for these modules, but only where they are not installed."""
    sys.meta_path.append(_Finder(names))


def expected_parameters(drafter):
    """Our weights under vLLM's and SGLang's parameter names, the stacked projections included."""
    state = drafter.state_dict()
    found = {"lm_head.weight": state["lm_head.weight"]}
    for name, tensor in state.items():
        if name.startswith(("fc", "norm", "input_norm")):
            found[f"model.{name}"] = tensor
    for index, layer in enumerate([drafter.midlayer, *drafter.layers]):
        prefix = f"model.layers.{index}"
        attention, mlp = layer.self_attn, layer.mlp
        for kind in ("weight", "bias") if attention.q_proj.bias is not None else ("weight",):
            parts = [
                getattr(projection, kind) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            ]
            found[f"{prefix}.self_attn.qkv_proj.{kind}"] = torch.cat(parts)
        found[f"{prefix}.self_attn.o_proj.weight"] = attention.o_proj.weight
        found[f"{prefix}.mlp.gate_up_proj.weight"] = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        found[f"{prefix}.mlp.down_proj.weight"] = mlp.down_proj.weight
        for norm in ("input_layernorm", "post_attention_layernorm", "hidden_norm"):
            if hasattr(layer, norm):
                found[f"{prefix}.{norm}.weight"] = getattr(layer, norm).weight
    return found
