# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""What the local Hub keeps: users, repositories, commits and content-addressed files. No HTTP here."""

import hashlib
import itertools
import threading
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".npz", ".parquet", ".whl", ".pt")
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
LFS_BYTES = 10 * 1000 * 1000


class HubError(Exception):
    """An answer other than success: HTTP status, the Hub's error code, and words."""

    def __init__(self, status: int, code: str | None, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class User:
    name: str
    organizations: tuple[str, ...] = ()
    can_write: bool = True

    def owns(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in (self.name, *self.organizations)


@dataclass(frozen=True)
class Entry:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself stores for a large file."""
        lines = (
            "version https://git-lfs.github.com/spec/v1",
            f"oid sha256:{self.sha256}",
            f"size {len(self.content)}",
        )
        return "".join(f"{line}\n" for line in lines).encode()

    @property
    def blob_id(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(f"blob {len(stored)}\0".encode() + stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: dict[str, Entry]


@dataclass
class Repo:
    repo_type: str
    repo_id: str
    private: bool
    sdk: str | None = None
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pull_requests: list[dict] = field(default_factory=list)

    def resolve(self, revision: str) -> Commit:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits of a branch, newest first."""
        commits, commit = [], self.resolve(revision)
        while commit is not None:
            commits.append(commit)
            commit = self.commits[commit.parent] if commit.parent else None
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Contents of a branch."""
        return {path: entry.content for path, entry in self.resolve(revision).tree.items()}


class HubStore:
    """All state of the local Hub; one lock around every change."""

    def __init__(self):
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self._counter = itertools.count()

    # ---- reading ---------------------------------------------------------------------------------------------------

    def user(self, token: str | None) -> User | None:
        if token is None:
            return None
        if token not in self.users:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return self.users[token]

    def repo(self, repo_type: str, repo_id: str, user: User | None) -> Repo:
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and not (user and user.owns(repo_id))):
            raise HubError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def upload_mode(self, path: str, size: int, sample: bytes) -> str:
        large = path.endswith(LFS_SUFFIXES) or size >= LFS_BYTES or b"\0" in sample
        return "lfs" if large and size else "regular"

    # ---- writing ---------------------------------------------------------------------------------------------------

    def create_repo(self, user: User | None, repo_type: str, repo_id: str, private: bool, sdk: str | None) -> Repo:
        with self.lock:
            self._check_write(user, repo_id)
            if (repo_type, repo_id) in self.repos:
                raise HubError(409, None, "You already created this model repo")
            if repo_type == "space" and sdk is None:
                raise HubError(400, None, "sdk is required for Spaces")
            repo = self.repos[repo_type, repo_id] = Repo(repo_type, repo_id, private, sdk)
            self._add_commit(repo, "main", None, "initial commit", {".gitattributes": Entry(GIT_ATTRIBUTES, False)})
            return repo

    def delete_repo(self, user: User | None, repo_type: str, repo_id: str) -> None:
        with self.lock:
            self._check_write(user, repo_id)
            if self.repos.pop((repo_type, repo_id), None) is None:
                raise HubError(404, "RepoNotFound", "Repository not found")

    def create_branch(self, user: User | None, repo: Repo, branch: str) -> None:
        with self.lock:
            self._check_write(user, repo.repo_id)
            if branch in repo.refs:
                raise HubError(409, None, f"Reference already exists: {branch}")
            repo.refs[branch] = repo.refs["main"]

    def delete_branch(self, user: User | None, repo: Repo, branch: str) -> None:
        with self.lock:
            self._check_write(user, repo.repo_id)
            if repo.refs.pop(branch, None) is None:
                raise HubError(404, "RevisionNotFound", f"No such branch: {branch}")

    def put_object(self, oid: str, content: bytes) -> None:
        with self.lock:
            self.objects[oid] = content

    def check_object(self, oid: str, size: int) -> None:
        content = self.objects.get(oid)
        if content is None or len(content) != size or hashlib.sha256(content).hexdigest() != oid:
            self.objects.pop(oid, None)
            raise HubError(400, None, f"Uploaded object {oid[:12]} is incomplete or damaged")

    def commit(
        self, user: User | None, repo: Repo, revision: str, header: dict, changes: list[tuple], as_pull_request: bool
    ) -> tuple[Commit, dict | None]:
        """Applies all changes or none. A change is `(path, bytes)`, `(path, oid, size)` or `(path, None)`."""
        with self.lock:
            if user is None or not user.can_write:
                raise HubError(403, None, "Your token has no write permission")
            if not as_pull_request:
                self._check_write(user, repo.repo_id)
            parent = repo.resolve(revision)
            if header.get("parentCommit") not in (None, parent.oid):
                raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
            tree = dict(parent.tree)
            for path, *content in changes:
                if content == [None]:
                    if tree.pop(path, None) is None:
                        raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                elif len(content) == 2:
                    self.check_object(*content)
                    tree[path] = Entry(self.objects[content[0]], lfs=True)
                else:
                    if self.upload_mode(path, len(content[0]), content[0][:512]) == "lfs":
                        raise HubError(400, None, f"Your push was rejected because {path} must be an LFS file")
                    tree[path] = Entry(content[0], lfs=False)
            pull_request, ref = None, revision
            if as_pull_request:
                number = len(repo.pull_requests) + 1
                ref = f"refs/pr/{number}"
                pull_request = {"num": number, "title": header["summary"], "author": user.name}
                repo.pull_requests.append(pull_request)
            return self._add_commit(repo, ref, parent.oid, header["summary"], tree), pull_request

    def _add_commit(self, repo: Repo, ref: str, parent: str | None, title: str, tree: dict[str, Entry]) -> Commit:
        names = "".join(f"{path}\0{entry.blob_id}\n" for path, entry in sorted(tree.items()))
        oid = hashlib.sha1(f"{next(self._counter)} {parent} {title}\n{names}".encode()).hexdigest()
        repo.commits[oid] = Commit(oid, parent, title, tree)
        repo.refs[ref] = oid
        return repo.commits[oid]

    def _check_write(self, user: User | None, repo_id: str) -> None:
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        if not user.can_write or not user.owns(repo_id):
            raise HubError(403, None, f'You don\'t have the rights to write to "{repo_id}"')
