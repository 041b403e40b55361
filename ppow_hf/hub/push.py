# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""Pushing a folder to the Hub: one commit or none."""

import os

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .push_errors import HubPushError
from .push_files import card_metadata, check_model_files, check_no_secrets, check_space_files, select_files
from .push_session import PushResult, PushSession

__all__ = ["HubPushError", "PushResult", "push_folder"]


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
    space: bool = False,
    dry_run: bool = False,
    commit_message: str | None = None,
    max_retries: int = 4,
    retry_wait: float = 1.0,
) -> PushResult:
    """
    Sends a drafter's (or Space's) folder to the Hub in one commit.

    Only files that belong there are sent (`select_files`), and only if they differ from what is there. Requests that
    fail with 408, 429, 5xx or a broken connection are repeated; a commit whose answer was lost is looked up before it
    is repeated, so that there is never a second one. After a failure the remote is as it was: a repository or branch
    made by this call is removed again, as long as nobody put anything into it.

    Args:
        folder (`str` or `os.PathLike`): What `save_pretrained` wrote, with card and benchmarks. Never changed.
        repo_id (`str`): `"namespace/name"`, or `"name"` in your own namespace.
        private (`bool`, *optional*, defaults to `False`): Create the repository as a private one. `False` leaves it to
            the namespace's default, which is public for most.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request in place of a commit.
        revision (`str`, *optional*): Branch; made from `main` if there is none. Default: `main`.
        token (`str`, *optional*): Default: the one of `hf auth login` or HF_TOKEN.
        space (`bool`, *optional*, defaults to `False`): The folder is a Space.
        dry_run (`bool`, *optional*, defaults to `False`): Only read from the Hub, and say what would be sent.
        commit_message (`str`, *optional*): First line of the commit.
        max_retries (`int`, *optional*, defaults to 4): Further attempts of a request.
        retry_wait (`float`, *optional*, defaults to 1.0): Seconds before the second attempt, doubled each time.

    Returns:
        `PushResult`: What was sent, and the commit if there is one.

    Raises:
        ValueError: If the folder or an argument is unusable. Nothing was asked of the Hub then.
        HubPushError: If the Hub refuses or cannot be reached.
    """
    check_repo_id(repo_id)
    if create_pr and revision is not None and revision != "main":
        raise ValueError(f"`create_pr` proposes a change to main, got `revision`={revision!r}. Drop one of them.")
    selected = select_files(folder, space=space)
    sdk = check_space_files(folder, selected.files) if space else None
    if not space:
        check_model_files(folder, selected.files)
        card_metadata(selected.files)
    token = resolve_token(token)
    check_no_secrets(selected.files, token)
    if token is None and not dry_run:
        raise HubPushError(
            repo_id, "logging in", "no token", "Run `hf auth login`, set HF_TOKEN or pass `token` (write permission)."
        )
    push = PushSession(
        api=HfApi(token=token if token is not None else False, library_name="ppow-hf"),
        token=token,
        repo_id=repo_id,
        repo_type="space" if space else "model",
        revision=revision or "main",
        selected=selected,
        retry={"max_retries": max_retries, "retry_wait": retry_wait, "token": token},
        message=commit_message or f"Upload {'Space' if space else 'drafter'} with ppow-hf",
        private=private,
        create_pr=create_pr,
        sdk=sdk,
    )
    push.look()
    result = push.result(dry_run)
    if dry_run or (not result.to_send and not push.repo_is_new and not push.branch_is_new):
        return result
    return push.send(result)


def check_repo_id(repo_id: str, name: str = "repo_id") -> None:
    """
    Refuses what cannot be a repository's name.

    Args:
        repo_id (`str`): The name.
        name (`str`, *optional*, defaults to `"repo_id"`): The argument it came as, for the error.

    Raises:
        ValueError: If the Hub has no repositories of that name.
    """
    try:
        validate_repo_id(repo_id)
    except (HFValidationError, TypeError) as error:
        raise ValueError(f"`{name}` must be `name` or `namespace/name`, got {repo_id!r}: {error}") from None


def resolve_token(token: str | None) -> str | None:
    """
    The token to use: the given one, or that of HF_TOKEN or `hf auth login`; `None` if there is none.

    Raises:
        ValueError: If it cannot be a token. It is not shown.
    """
    if not isinstance(token, (str, type(None))) and token is not True:
        raise ValueError("`token` must be a string or None (the one of `hf auth login` or HF_TOKEN).")
    # transformers says `True` for the one that is stored.
    token = ((token if token is not True else None) or get_token() or "").strip() or None
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
        raise ValueError("`token` holds characters that no Hub token has. Copy it again (it is not shown here).")
    return token
