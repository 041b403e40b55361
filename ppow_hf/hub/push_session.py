# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The requests of one push: look, compare, create, commit, and take back what a failure left behind."""

from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from transformers.utils import logging

from .push_errors import HubPushError, describe, is_transient, push_error, safe_cause, status_of, with_retries
from .push_files import FolderFiles, PlannedFile, plan_files

logger = logging.get_logger(__name__)
_REPO_TYPES = {"model": "model", "dataset": "dataset", "space": "Space"}
# How many open pull requests are compared with the folder before another one is opened.
_PULL_REQUESTS_COMPARED = 20


@dataclass
class PushResult:
    """
    What a push did, or would do.

    Args:
        repo_id (`str`): The repository, with its namespace.
        repo_type (`str`): `"model"` or `"space"`.
        revision (`str`): The branch.
        url (`str`): Where to look at it.
        files (`list[PlannedFile]`): All files of the push, the unchanged ones too.
        left_out (`list[tuple[str, str]]`): What stays local, with the reason.
        dry_run (`bool`): Whether nothing was to be sent.
        creates_repo (`bool`): Whether the repository did not exist.
        creates_branch (`bool`): Whether the branch did not exist.
        commit_oid (`str`, *optional*): The new commit; `None` when there was nothing to commit.
        commit_url (`str`, *optional*): Its address.
        pull_request_url (`str`, *optional*): The pull request with these files.
    """

    repo_id: str
    repo_type: str
    revision: str
    url: str
    files: list[PlannedFile]
    left_out: list[tuple[str, str]]
    dry_run: bool = False
    creates_repo: bool = False
    creates_branch: bool = False
    commit_oid: str | None = None
    commit_url: str | None = None
    pull_request_url: str | None = None

    @property
    def to_send(self) -> list[PlannedFile]:
        """The files that differ from the Hub's."""
        return [file for file in self.files if file.status != "unchanged"]

    @property
    def bytes_to_send(self) -> int:
        return sum(file.size for file in self.to_send)


@dataclass
class PushSession:
    """One push: what is known of the remote, and what was made there."""

    api: HfApi
    token: str | None
    repo_id: str
    repo_type: str
    revision: str
    selected: FolderFiles
    retry: dict[str, Any]
    message: str
    private: bool
    create_pr: bool
    sdk: str | None
    repo_is_new: bool = False
    branch_is_new: bool = False
    head: str | None = None
    plan: list[PlannedFile] = field(default_factory=list)
    pull_request_url: str | None = None
    created: list[str] = field(default_factory=list)
    unsure: bool = False

    def call(self, step: str, function, *args, recover=None, **kwargs):
        """A request to the Hub, with retries; whatever goes wrong becomes a `HubPushError`."""
        try:
            return with_retries(lambda: function(*args, **kwargs), step=step, recover=recover, **self.retry)
        except HubPushError:
            raise
        except Exception as error:
            raise push_error(self.repo_id, step, error, self.token) from safe_cause(error, self.token)

    @property
    def where(self) -> dict[str, str]:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    # ---- reading ---------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Finds out what is there and what has to be sent. Changes nothing."""
        if "/" not in self.repo_id:
            user = self.call("finding your namespace", self.api.whoami)
            self.repo_id = f"{user['name']}/{self.repo_id}"
        step = "looking at the repository"
        info = self.call(step, self.info_or_none, self.repo_type)
        if info is None:
            self.check_new(step)
            self.repo_is_new = True
            self.branch_is_new = self.revision != "main"
            self.plan = plan_files(self.selected.files, {})
            return
        if self.private and not info.private:
            raise HubPushError(
                self.repo_id,
                step,
                "the repository exists and is public, `private` was asked for",
                "Make it private in its settings, choose another name, or push without `private` (`--private`).",
            )
        self.read_remote()
        if self.create_pr and any(file.status != "unchanged" for file in self.plan):
            self.pull_request_url = self.call("reading pull requests", self.find_pull_request)

    def info_or_none(self, repo_type: str):
        try:
            return self.api.repo_info(self.repo_id, repo_type=repo_type)
        except RepositoryNotFoundError as error:
            if self.token is not None and error.response.status_code == 401:
                raise  # With a token, a missing repository is a 404: this one says that the token is wrong.
            return None

    def check_new(self, step: str) -> None:
        if self.create_pr:
            raise HubPushError(
                self.repo_id,
                step,
                "there is no such repository",
                "A pull request needs one: push without `create_pr`.",
            )
        for repo_type in (t for t in _REPO_TYPES if t != self.repo_type):
            if self.call(step, self.info_or_none, repo_type) is not None:
                raise HubPushError(
                    self.repo_id,
                    step,
                    f"a {_REPO_TYPES[repo_type]} of this name exists, and no {_REPO_TYPES[self.repo_type]}",
                    "Choose another name, or `space` (`--space`) if you meant the Space. If you want both, create the "
                    f"{_REPO_TYPES[self.repo_type]} first with `hf repo create` and push again.",
                )

    def read_remote(self) -> None:
        """Sets `plan` and `head` from the branch; a branch that does not exist yet will begin as `main`."""
        step, base = "reading the repository", self.revision
        if base != "main":
            self.head = self.call(step, self.head_or_none, base)
        if self.head is None:
            self.branch_is_new, base = base != "main", "main"
            self.head = self.call(step, self.api.repo_info, **self.where, revision=base).sha
        # Of that very commit: what is compared is what the new commit is put on.
        remote = self.call(step, self.tree, self.head)
        self.plan = plan_files(self.selected.files, remote, drop_stale_weights=self.repo_type == "model")

    def head_or_none(self, revision: str) -> str | None:
        """The last commit of a branch, or `None` if there is no such branch and it can be made."""
        try:
            return self.api.repo_info(**self.where, revision=revision).sha
        except RevisionNotFoundError:
            if revision.startswith("refs/"):
                raise
            return None

    def tree(self, revision: str) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(**self.where, revision=revision, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def is_applied(self, revision: str) -> bool:
        plan = plan_files(self.selected.files, self.tree(revision), drop_stale_weights=self.repo_type == "model")
        return all(file.status == "unchanged" for file in plan)

    def find_pull_request(self) -> str | None:
        """An open pull request that holds exactly these files."""
        found = self.api.get_repo_discussions(**self.where, discussion_type="pull_request", discussion_status="open")
        for _, discussion in zip(range(_PULL_REQUESTS_COMPARED), found, strict=False):
            if self.is_applied(f"refs/pr/{discussion.num}"):
                return discussion.url
        return None

    def result(self, dry_run: bool) -> PushResult:
        prefix = "spaces/" if self.repo_type == "space" else ""
        return PushResult(
            repo_id=self.repo_id,
            repo_type=self.repo_type,
            revision=self.revision,
            url=f"{self.api.endpoint}/{prefix}{self.repo_id}",
            files=self.plan,
            left_out=self.selected.left_out,
            dry_run=dry_run,
            creates_repo=self.repo_is_new,
            creates_branch=self.branch_is_new,
            pull_request_url=self.pull_request_url,
        )

    # ---- writing ---------------------------------------------------------------------------------------------------

    def send(self, result: PushResult) -> PushResult:
        """Card check, repository, branch, large files, commit; what was made is taken back if a later step fails."""
        if result.pull_request_url is not None:
            return result
        if "README.md" in self.selected.files:
            content = self.selected.files["README.md"].read_text(encoding="utf-8")
            self.call("checking the card", lambda: ModelCard(content).validate(repo_type=self.repo_type))
        try:
            self.prepare()
            self.commit(result)
        except HubPushError as error:
            state = self.take_back()
            raise HubPushError(error.repo_id, error.step, error.reason, error.remedy, state) from error.__cause__
        return result

    def prepare(self) -> None:
        if self.repo_is_new:
            options = {"private": self.private or None, "space_sdk": self.sdk, "exist_ok": True}
            try:
                self.call("creating the repository", self.api.create_repo, **self.where, **options)
            except HubPushError as error:
                if error.__cause__ is not None and is_transient(error.__cause__):
                    self.created.append("repository")  # It may have been made behind an error.
                raise
            self.created.append("repository")
            self.head = self.call("reading the new repository", self.api.repo_info, **self.where).sha
        if self.branch_is_new:
            step = "creating the branch"
            self.call(step, self.api.create_branch, **self.where, branch=self.revision, exist_ok=True)
            self.created.append("branch")

    def commit(self, result: PushResult) -> None:
        files = {file.path: file for file in self.plan if file.status != "unchanged"}
        if not files:
            return  # A new branch that equals main.
        additions = [
            CommitOperationAdd(path, str(self.selected.files[path]))
            for path, file in files.items()
            if file.status != "deleted"
        ]
        deletions = [CommitOperationDelete(path) for path, file in files.items() if file.status == "deleted"]
        branch = {**self.where, "revision": self.revision, "create_pr": self.create_pr}
        try:
            # huggingface_hub repeats these requests itself.
            self.api.preupload_lfs_files(additions=additions, free_memory=False, **branch)
        except Exception as error:
            step = "uploading the large files"
            raise push_error(self.repo_id, step, error, self.token) from safe_cause(error, self.token)
        info = self.call(
            "committing",
            self.api.create_commit,
            operations=[*additions, *deletions],
            commit_message=self.message,
            # A change by somebody else since the comparison makes the Hub refuse, rather than mix both.
            parent_commit=None if self.create_pr else self.head,
            recover=self.look_for_commit,
            **branch,
        )
        if isinstance(info, CommitInfo):
            result.commit_oid, result.commit_url, result.pull_request_url = info.oid, info.commit_url, info.pr_url
        elif self.create_pr:
            result.pull_request_url = info
        else:
            result.commit_oid, result.commit_url = info.sha, f"{result.url}/commit/{info.sha}"

    def look_for_commit(self):
        """After a lost answer: the commit or pull request, if it was made."""
        try:
            self.unsure = False
            if self.create_pr:
                return self.find_pull_request()
            if self.is_applied(self.revision):
                return self.api.repo_info(**self.where, revision=self.revision)
        except Exception as error:
            self.unsure = True
            logger.warning(f"Could not look for the commit: {describe(error, self.token)}.")
        return None

    def take_back(self) -> str:
        """Removes what this push made, if it is as it was made; returns how things stand."""
        untouched = "Nothing was changed, neither on the Hub nor locally."
        kept = []
        try:
            if "repository" in self.created:
                if self.head is not None and self.api.repo_info(**self.where).sha == self.head:
                    self.api.delete_repo(**self.where, missing_ok=True)
                else:
                    kept.append("repository")
            elif "branch" in self.created:
                if self.api.repo_info(**self.where, revision=self.revision).sha == self.head:
                    self.api.delete_branch(**self.where, branch=self.revision)
                else:
                    kept.append("branch")
        except Exception as failure:
            if status_of(failure) != 404:
                kept = self.created
        if self.unsure:
            return "Your files are as they were; whether the commit arrived is not known: the next push finds out."
        if kept:
            return (
                f"Your files are as they were; the new {' and '.join(kept)} may have stayed on the Hub, without them."
            )
        return untouched
