# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What goes wrong when talking to the Hub: which failures pass by themselves, and what a user can do about others."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers.utils import logging

logger = logging.get_logger(__name__)
T = TypeVar("T")

TOKEN_PATTERN = re.compile(r"hf_[A-Za-z0-9]{8,}")
TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}
TRANSIENT_ERRORS = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    httpx2.ProxyError,
    ConnectionError,
    json.JSONDecodeError,  # A gateway's HTML page in place of the Hub's answer.
)
# A longer pause is for the user to decide on.
LONGEST_WAIT_SECONDS = 120.0

_REMEDIES = {
    400: "Correct what the Hub names above and push again.",
    401: "The token was not accepted: create one with write permission at https://huggingface.co/settings/tokens, "
    "then run `hf auth login` or set HF_TOKEN.",
    402: "The Hub asks for a paid plan for this kind of repository: use static Spaces, another namespace or a plan.",
    403: "The token may not write there: use a token with write permission for this namespace, push to a namespace "
    "of your own, or propose the change with `create_pr` (`--create-pr`).",
    404: "Check the spelling of the repository and the revision, and that your token can see them.",
    409: "Somebody else changed the repository meanwhile: run the same push again.",
    412: "Somebody else changed the repository meanwhile: run the same push again.",
    413: "A file is too large for one request: save the weights in smaller shards (`max_shard_size`).",
    429: "The Hub limits the rate of requests: wait a few minutes and run the same push again.",
}
_HUB_DOWN = "The Hub has a problem of its own (https://status.huggingface.co): run the same push again later."
_NO_CONNECTION = (
    "Check the network, a proxy and HF_ENDPOINT, then run the same push again: only what is missing is sent."
)
_OFFLINE = "Unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) to push."


class HubPushError(RuntimeError):
    """
    A push that did not happen.

    Args:
        repo_id (`str`): The repository.
        step (`str`): What was being done, such as `creating the repository`.
        reason (`str`): What went wrong. Must be free of secrets; see `scrub`.
        remedy (`str`): What to do.
        state (`str`, *optional*): How local files and the remote were left.
    """

    def __init__(
        self,
        repo_id: str,
        step: str,
        reason: str,
        remedy: str,
        state: str = "Nothing was changed, neither on the Hub nor locally.",
    ):
        self.repo_id, self.step, self.reason, self.remedy, self.state = repo_id, step, reason, remedy, state
        super().__init__(f"Could not push to `{repo_id}`: {step} failed ({reason}). {remedy} {state}")

    def __reduce__(self):
        return type(self), (self.repo_id, self.step, self.reason, self.remedy, self.state)


def scrub(text: str, *secrets: str | None) -> str:
    """
    Removes tokens from a text.

    Args:
        text (`str`): Any message.
        secrets (`str`, *optional*): Tokens in use; whatever looks like a Hub token is removed besides.

    Returns:
        `str`: The text with `***` in their place.
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return TOKEN_PATTERN.sub("***", text)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, outermost first: upload threads wrap the interesting one."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """HTTP status of the first error of the chain that has one."""
    for link in chain(error):
        if isinstance(link, HfHubHTTPError) and getattr(link, "response", None) is not None:
            return link.response.status_code
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later: 408, 429, 5xx and broken connections."""
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain(error)):
        return False
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    return any(isinstance(link, TRANSIENT_ERRORS) for link in chain(error))


def remedy_for(error: BaseException) -> str:
    """What a user can do about an error of the Hub."""
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain(error)):
        return _OFFLINE
    status = status_of(error)
    if status in _REMEDIES:
        return _REMEDIES[status]
    if status is not None:
        return _HUB_DOWN if status >= 500 else _REMEDIES[400]
    if any(isinstance(link, TRANSIENT_ERRORS) for link in chain(error)):
        return _NO_CONNECTION
    return "Correct the cause and run the same push again: only what is missing is sent."


def describe(error: BaseException, *secrets: str | None) -> str:
    """One line about an error, without secrets."""
    status = status_of(error)
    links = list(chain(error))
    answers = [link for link in links if isinstance(link, HfHubHTTPError)]
    # The Hub's own words are worth more than the URL around them; without an answer, the innermost error says most.
    message = next((a.server_message for a in answers if a.server_message), None) or str((answers or links[-1:])[0])
    text = re.sub(r"\s+", " ", scrub(message, *secrets)).strip() or type(error).__name__
    text = text if len(text) <= 400 else f"{text[:400]}..."
    return f"HTTP {status}: {text}" if status is not None and str(status) not in text else text


def push_error(repo_id: str, step: str, error: BaseException, token: str | None) -> HubPushError:
    """
    The `HubPushError` for any error. Raise it `from safe_cause(error, token)`.

    Args:
        repo_id (`str`): The repository.
        step (`str`): What was being done.
        error (`BaseException`): What was raised.
        token (`str`, *optional*): The token in use, which must not show up.
    """
    return HubPushError(repo_id, step, describe(error, token), remedy_for(error))


def safe_cause(error: BaseException, token: str | None) -> BaseException | None:
    """The error itself, to chain to, or `None` if a traceback of it would show a token."""
    texts = [f"{link}{getattr(link, 'args', '')}" for link in chain(error)]
    return error if all(scrub(text, token) == text for text in texts) else None


def with_retries(
    function: Callable[[], T],
    *,
    max_retries: int,
    retry_wait: float,
    step: str,
    token: str | None = None,
    recover: Callable[[], T | None] | None = None,
) -> T:
    """
    Calls a function, again after failures that pass by themselves.

    Args:
        function (`Callable`): What to do.
        max_retries (`int`): Further attempts after the first.
        retry_wait (`float`): Seconds before the second attempt, doubled each time. The Hub's `Retry-After` has
            precedence.
        step (`str`): What is being done, for the log.
        token (`str`, *optional*): The token in use, kept out of the log.
        recover (`Callable`, *optional*): Asked after every failure that may have happened behind the Hub's back, such
            as a connection that broke after the work was done. What it returns, if not `None`, is the result.

    Returns:
        The function's result.

    Raises:
        Exception: The last failure.
    """
    for attempt in range(max_retries + 1):
        try:
            return function()
        except Exception as error:
            if not is_transient(error):
                raise
            wait = max(retry_wait * 2**attempt, _retry_after(error))
            last = attempt == max_retries or wait > LONGEST_WAIT_SECONDS
            if not last:
                logger.warning(f"{step}: {describe(error, token)}. Trying again in {wait:.1f} s.")
                time.sleep(wait)
            if recover is not None and (result := recover()) is not None:
                return result
            if last:
                raise
    raise AssertionError("unreachable")


def _retry_after(error: BaseException) -> float:
    for link in chain(error):
        response = getattr(link, "response", None)
        if response is not None:
            try:
                return float(response.headers.get("Retry-After", 0.0))
            except ValueError:  # The header may hold a date.
                return 0.0
    return 0.0
