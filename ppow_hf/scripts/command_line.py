# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What `ppow` and the scripts run with `python -m` share: options, loading the models, text and errors in one line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from yaml import YAMLError

TargetOption = Annotated[
    str, typer.Option("--target", help="Target: a Hub id, a folder, or embedded: smollm2-135m-instruct, gemma3-270m.")
]
DrafterOption = Annotated[
    str | None, typer.Option("--drafter", help="Drafter: a Hub id or folder. Default: the reference drafter.")
]
PrepackOption = Annotated[
    bool, typer.Option("--prepack", help="Prepack the target: faster in bfloat16 on a CPU, for a second copy of it.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="Dtype of both models: auto, float32, bfloat16, float16.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where to run: cpu, cuda, ... Default: a GPU if there is one.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed. The same seed gives the same result on one machine.")]


def run(function: Callable[..., None]) -> None:
    """
    Runs a function as a command. Errors a user can act on end in one line and exit status 1; `PPOW_DEBUG=1` shows the
    traceback.

    Args:
        function (`Callable`): Its parameters carry typer's annotations.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """
    Runs commands as [`run`] does one.

    Args:
        app (`typer.Typer`): The commands.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with errors_in_one_line():
        app()


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """
    Ends the program with one line and exit status 1 on errors that a user can act on; `PPOW_DEBUG=1` shows the
    traceback.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError, YAMLError) as error:
        if os.environ.get("PPOW_DEBUG"):
            raise
        print_error(str(error))
        sys.exit(1)


def print_line(console: Console, text: str) -> None:
    """
    Prints text that names what a user gave (a path, a prompt) as it is: `[...]` is no markup in it, `:...:` no emoji,
    and long lines are not broken, so that a path can be copied.

    Args:
        console ([`~rich.console.Console`]): Where to print.
        text (`str`): What to print.
    """
    console.print(Text(text), soft_wrap=True)


def print_error(message: str) -> None:
    """
    Prints an error to standard error, as it is.

    Args:
        message (`str`): What happened, and the remedy.
    """
    line = Text.assemble(("Error:", "bold red"), " ", message)
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)


def load_models(
    console: Console,
    target_name: str,
    drafter_name: str | None,
    dtype: str,
    device: str | None,
    with_drafter: bool = True,
    prepack: bool = False,
):
    """
    Target, tokenizer and drafter, on one device and in one dtype.

    Args:
        console ([`~rich.console.Console`]): Where to say that it takes a while.
        target_name (`str`): As for [`load_target`].
        drafter_name (`str`, *optional*): A Hub id or folder; the reference drafter by default.
        dtype (`str`): As for [`load_target`].
        device (`str`, *optional*): As for [`load_target`]; the machine's accelerator by default.
        with_drafter (`bool`, *optional*, defaults to `True`): Without, no drafter is loaded, nor need one exist.
        prepack (`bool`, *optional*, defaults to `False`): Prepack the target.

    Returns:
        `tuple`: The target, its tokenizer, and the drafter, bound to the target, or `None`.
    """
    from transformers.utils import logging

    from ppow_hf import load_target, prepack_weights
    from ppow_hf.quickstart import reference_drafter_path

    logging.disable_progress_bar()
    what = "the target and the drafter" if with_drafter else "the target"
    with console.status(f"Loading {what}..."):
        target, tokenizer = load_target(target_name, dtype=dtype, device=device or "auto")
        if prepack:
            prepack_weights(target)
        if not with_drafter:
            return target, tokenizer, None
        return target, tokenizer, load_drafter(drafter_name or reference_drafter_path(), target)


def load_drafter(source: str | os.PathLike, target):
    """
    The drafter of `--drafter`, in the target's dtype, on its device and bound to it.

    Args:
        source (`str` or `os.PathLike`): A folder or a Hub id.
        target ([`~transformers.PreTrainedModel`]): The target.

    Raises:
        OSError: If no drafter could be read there.
    """
    from ppow_hf import AutoDrafter

    try:
        drafter = AutoDrafter.from_pretrained(source, dtype=target.dtype).to(target.device)
    except OSError as error:
        raise OSError(
            f"`--drafter` is {str(source)!r}, where no drafter could be read: give a folder that "
            "`drafter.save_pretrained` wrote, or a Hub id, which needs the network or a filled Hub cache. The "
            f"cause: {error}"
        ) from error
    drafter.bind_target(target)
    return drafter


def set_seed(seed: int) -> None:
    """Seeds Python, NumPy and PyTorch; transformers is imported only when a command runs."""
    from transformers import set_seed as seed_all

    seed_all(seed)


def parse_numbers(name: str, text: str) -> list[float]:
    """The value of an option such as `0,1`; errors name the option."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`{name}` takes comma-separated numbers such as 0,1, got {text!r}.") from None


def split_names(options: list[str]) -> list[str]:
    """The values of an option that is given several times, or once with commas; a file's name may hold one."""
    names = []
    for option in options:
        names += [option] if os.path.exists(option) else [part.strip() for part in option.split(",") if part.strip()]
    return names


def split_name(option: str, argument: str = "--drafter") -> tuple[str | None, str]:
    """
    Name and path of a drafter from `NAME=PATH`, or no name and the path. A path that exists is a path, whatever its
    name.

    Args:
        option (`str`): What the command was given.
        argument (`str`, *optional*, defaults to `"--drafter"`): As which option, for the error.

    Raises:
        ValueError: If name or path is empty.
    """
    name, equals, path = option.partition("=")
    if not equals or Path(option).exists():
        return None, option
    if not name or not path:
        raise ValueError(f"`{argument}` is {option!r}: give NAME=PATH, where PATH is a folder or a Hub id.")
    return name, path


def split_drafters(options: list[str]) -> tuple[str | None, dict[str, str]]:
    """
    The drafter of a command and the others, from `PATH` and `NAME=PATH`.

    Args:
        options (`list[str]`): What `--drafter` was given, in order.

    Raises:
        ValueError: If two drafters have no name, or the same one.
    """
    own, others = [], {}
    for name, path in map(split_name, options):
        if name is None:
            own.append(path)
        elif name in others:
            raise ValueError(f"`--drafter` names two drafters {name!r}: give each a name of its own.")
        else:
            others[name] = path
    if len(own) > 1:
        raise ValueError(
            f"`--drafter` was given {', '.join(map(repr, own))}: only one can be without a name. Give the others as "
            "NAME=PATH; their windows are the methods METHOD@NAME."
        )
    return (own[0] if own else None), others


def named_folders(options: list[str], argument: str = "--drafter") -> dict[str, str]:
    """
    Drafters to compare, from `NAME=PATH`; a path alone has its last part for a name.

    Args:
        options (`list[str]`): What the command was given, in order.
        argument (`str`, *optional*, defaults to `"--drafter"`): As which option, for the errors.

    Raises:
        ValueError: If two have the same name.
    """
    pairs = [split_name(option, argument) for option in options]
    folders = {name or Path(path).name: path for name, path in pairs}
    if len(folders) < len(options):
        raise ValueError(f"`{argument}` gives two drafters the same name: write them as NAME=PATH.")
    return folders


def parse_count(name: str, text: str) -> int | str:
    """The value of an option such as `3` or `all`; errors name the option."""
    try:
        return text if text == "all" else int(text)
    except ValueError:
        raise ValueError(f"`{name}` takes a whole number or `all`, got {text!r}.") from None


def parse_shares(name: str, options: list[str]) -> dict[float, float]:
    """The values of an option such as `0:0.7` and `1:0.3`, as numbers; errors name the option."""
    shares = {}
    for option in options:
        temperature, colon, share = option.partition(":")
        try:
            shares[float(temperature)] = float(share) if colon else 1.0
        except ValueError:
            raise ValueError(f"`{name}` takes TEMPERATURE:SHARE such as 1:0.3, got {option!r}.") from None
    return shares
