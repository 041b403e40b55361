# Copyright 2026 The ppow-hf authors.
# Licensed under the Apache License, Version 2.0.
"""The Hub's HTTP interface on the loopback interface, as far as the real clients use it, with faults to order."""

import base64
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from .hub_store import Entry, HubError, HubStore, Repo

_REPO = r"(?P<repo_type>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_FILE_REPO = r"(?P<repo_type>datasets/|spaces/)?(?P<repo_id>[^/]+/[^/]+)"
ROUTES: list[tuple[str, re.Pattern, str]] = []


@dataclass
class Fault:
    """
    What goes wrong with the next requests that match.

    Args:
        method (`str`): HTTP method.
        pattern (`re.Pattern`): Searched in the path.
        kind (`str`): `"status"` answers with `status` and does nothing; `"drop"` closes the connection and does
            nothing; `"drop_answer"` does the work and closes the connection; `"truncate"` loses the second half of an
            uploaded or downloaded body.
        times (`int`): How many requests it hits.
        status (`int`): HTTP status of `"status"`.
        headers (`dict`): Further headers of `"status"`.
    """

    method: str
    pattern: re.Pattern
    kind: str = "status"
    times: int = 1
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)


class HubServer(ThreadingHTTPServer):
    """A Hub of one process. `store` holds its state, `requests` the `(method, path, status)` of what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.reset()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def cdn_url(self) -> str:
        """Large files come from another host, as on the Hub: clients must not send their token there."""
        return f"http://localhost:{self.server_address[1]}/cdn"

    def reset(self) -> None:
        self.store = HubStore()
        self.requests: list[tuple[str, str, int]] = []
        # Called with method and path before a request is handled: what others do to the Hub meanwhile.
        self.before: Callable[[str, str], None] = lambda method, path: None
        self.reset_faults()

    def reset_faults(self) -> None:
        self.faults: list[Fault] = []

    def fail(self, method: str, pattern: str, **kwargs) -> Fault:
        """Orders a fault; see [`Fault`]."""
        self.faults.append(Fault(method, re.compile(pattern), **kwargs))
        return self.faults[-1]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.store.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and fault.pattern.search(path):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, method: str, pattern: str) -> list[int]:
        """Statuses of the answers to matching requests, in order; 0 where the connection was closed."""
        return [status for m, path, status in self.requests if m == method and re.search(pattern, path)]

    def start(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def handle_error(self, request, client_address):
        pass  # Clients that hang up are part of the tests.


def route(method: str, pattern: str) -> Callable:
    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(f"^{pattern}$"), function.__name__))
        return function

    return register


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.cut = False
        self.server.before(self.command, parts.path)
        fault = self.server.take_fault(self.command, parts.path)
        if fault is not None and fault.kind == "status":
            return self.answer(fault.status, {"error": "ordered by the test"}, fault.headers)
        if fault is not None and fault.kind == "drop":
            return self.hang_up()
        if fault is not None and fault.kind == "truncate":
            self.body, self.cut = self.body[: len(self.body) // 2], True
        self.silent = fault is not None and fault.kind == "drop_answer"
        for method, pattern, name in ROUTES:
            match = pattern.match(parts.path)
            if method == self.command and match:
                groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                try:
                    return getattr(self, name)(**groups)
                except HubError as error:
                    headers = {"X-Error-Code": error.code} if error.code else {}
                    headers["X-Error-Message"] = error.message
                    return self.answer(error.status, {"error": error.message}, headers)
        self.answer(404, {"error": f"no route {self.command} {parts.path}"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def hang_up(self) -> None:
        self.server.requests.append((self.command, self.path, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status: int, body: dict | list | bytes, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "silent", False):
            return self.hang_up()
        self.server.requests.append((self.command, self.path, status))
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        if not isinstance(body, bytes):
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            if self.cut:
                content, self.close_connection = content[: len(content) // 2], True
            self.wfile.write(content)

    # ---- who and what ----------------------------------------------------------------------------------------------

    @property
    def user(self):
        return self.server.store.user((self.headers.get("Authorization") or "").removeprefix("Bearer ") or None)

    def find(self, repo_type: str | None, repo_id: str) -> Repo:
        kind = (repo_type or "models").strip("/").removesuffix("s")
        return self.server.store.repo(kind, repo_id, self.user)

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        user = self.user
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        self.answer(200, {"type": "user", "name": user.name, "orgs": [{"name": name} for name in user.organizations]})

    @route("POST", "/api/repos/create")
    def create_repo(self):
        wanted = json.loads(self.body)
        user, kind = self.user, wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or getattr(user, 'name', None)}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}"}
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        try:
            self.server.store.create_repo(user, kind, repo_id, private, wanted.get("sdk"))
        except HubError as error:
            if error.status != 409:
                raise
            return self.answer(409, {"error": error.message, **url})
        self.answer(200, url)

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self):
        wanted = json.loads(self.body)
        user = self.user
        repo_id = f"{wanted.get('organization') or getattr(user, 'name', None)}/{wanted['name']}"
        self.server.store.delete_repo(user, wanted.get("type") or "model", repo_id)
        self.answer(200, {})

    @route("GET", f"/api/{_REPO}(/revision/(?P<revision>[^/]+))?")
    def repo_info(self, repo_type, repo_id, revision="main"):
        repo = self.find(repo_type, repo_id)
        commit = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in commit.tree]
        info = {"id": repo_id, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": []}
        self.answer(200, {**info, "sdk": repo.sdk} if repo.sdk else info)

    @route("POST", f"/api/{_REPO}/branch/(?P<branch>[^/]+)")
    def create_branch(self, repo_type, repo_id, branch):
        self.server.store.create_branch(self.user, self.find(repo_type, repo_id), branch)
        self.answer(200, {})

    @route("DELETE", f"/api/{_REPO}/branch/(?P<branch>[^/]+)")
    def delete_branch(self, repo_type, repo_id, branch):
        self.server.store.delete_branch(self.user, self.find(repo_type, repo_id), branch)
        self.answer(200, {})

    @route("GET", f"/api/{_REPO}/discussions")
    def discussions(self, repo_type, repo_id):
        repo = self.find(repo_type, repo_id)
        common = {"status": "open", "isPullRequest": True, "createdAt": "2026-01-01T00:00:00.000Z"}
        about = {"name": repo_id, "type": repo.repo_type}
        found = [{**pr, **common, "author": {"name": pr["author"]}, "repo": about} for pr in repo.pull_requests]
        self.answer(200, {"discussions": found, "count": len(found), "start": 0})

    # ---- reading files ---------------------------------------------------------------------------------------------

    @route("GET", f"/api/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
    def tree(self, repo_type, repo_id, revision, folder=""):
        files = self.find(repo_type, repo_id).resolve(revision).tree
        prefix = f"{folder.strip('/')}/" if folder else ""
        inside = {path: entry for path, entry in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        recursive = self.query.get("recursive", "").lower() == "true"
        rows, seen = [], set()
        for path, entry in sorted(inside.items()):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                parent = prefix + "/".join(parts[:depth])
                if parent not in seen:
                    seen.add(parent)
                    rows.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": parent})
            if recursive or len(parts) == 1:
                rows.append(_row(path, entry))
        self.answer(200, rows)

    @route("POST", f"/api/{_REPO}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, repo_type, repo_id, revision):
        files = self.find(repo_type, repo_id).resolve(revision).tree
        paths = parse_qs(self.body.decode()).get("paths", [])
        self.answer(200, [_row(path, files[path]) for path in paths if path in files])

    @route("HEAD", f"/{_FILE_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    @route("GET", f"/{_FILE_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve_file(self, repo_id, revision, path, repo_type=None):
        commit = self.find(repo_type, repo_id).resolve(revision)
        entry = commit.tree.get(path)
        if entry is None:
            raise HubError(404, "EntryNotFound", f"{path} does not exist")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{entry.blob_id}"', "Accept-Ranges": "bytes"}
        if entry.lfs:
            headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(len(entry.content))}
            headers["Location"] = f"{self.server.cdn_url}/{entry.sha256}"
            self.server.store.put_object(entry.sha256, entry.content)
            return self.answer(302, b"", headers)
        self.send_content(entry.content, headers)

    @route("HEAD", "/cdn/(?P<oid>[0-9a-f]{64})")
    @route("GET", "/cdn/(?P<oid>[0-9a-f]{64})")
    def cdn(self, oid):
        assert "Authorization" not in self.headers, "a token went to the storage host"
        self.send_content(self.server.store.objects[oid], {"ETag": f'"{oid}"'})

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        """The file, or what is missing of it when a client goes on after a broken download."""
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if start is None or int(start[1]) >= len(content):
            return self.answer(200, content, headers)
        part = content[int(start[1]) : int(start[2]) + 1 if start[2] else None]
        span = f"bytes {start[1]}-{int(start[1]) + len(part) - 1}/{len(content)}"
        self.answer(206, part, {**headers, "Content-Range": span})

    # ---- sending files ---------------------------------------------------------------------------------------------

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        match = re.match(r"---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", content, re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else None
        except yaml.YAMLError as error:
            return self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
        if metadata is None:
            return self.answer(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
        if not isinstance(metadata, dict) or not isinstance(metadata.get("license", ""), (str, list)):
            return self.answer(400, {"errors": [{"message": '"license" must be a string'}], "warnings": []})
        self.answer(200, {"errors": [], "warnings": []})

    @route("POST", f"/api/{_REPO}/preupload/(?P<revision>[^/]+)")
    def preupload(self, repo_type, repo_id, revision):
        files = self.find(repo_type, repo_id).resolve(revision).tree
        rows = []
        for file in json.loads(self.body)["files"]:
            entry = files.get(file["path"])
            mode = self.server.store.upload_mode(file["path"], file["size"], base64.b64decode(file["sample"]))
            oid = None if entry is None else entry.sha256 if entry.lfs else entry.blob_id
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": rows})

    @route("POST", f"/{_FILE_REPO}\\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo_id, repo_type=None):
        self.find(repo_type, repo_id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            actions["verify"] = {"href": f"{self.server.url}/lfs-verify"}
            there = wanted["oid"] in self.server.store.objects
            objects.append(wanted if there else {**wanted, "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
    def lfs_put(self, oid):
        self.server.store.put_object(oid, self.body)
        self.answer(200, b"")

    @route("POST", "/lfs-verify")
    def lfs_verify(self):
        wanted = json.loads(self.body)
        self.server.store.check_object(wanted["oid"], wanted["size"])
        self.answer(200, {})

    @route("POST", f"/api/{_REPO}/commit/(?P<revision>[^/]+)")
    def commit(self, repo_type, repo_id, revision):
        header, changes = {}, []
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            elif key == "file":
                changes.append((value["path"], base64.b64decode(value["content"])))
            elif key == "lfsFile":
                changes.append((value["path"], value["oid"], value["size"]))
            elif key == "deletedFile":
                changes.append((value["path"], None))
            else:
                raise HubError(400, None, f"unknown operation {key}")
        repo = self.find(repo_type, repo_id)
        as_pull_request = self.query.get("create_pr") == "1"
        commit, pull_request = self.server.store.commit(self.user, repo, revision, header, changes, as_pull_request)
        prefix = "" if repo.repo_type == "model" else f"{repo.repo_type}s/"
        base = f"{self.server.url}/{prefix}{quote(repo_id)}"
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{base}/commit/{commit.oid}"}
        if pull_request is not None:
            answer["pullRequestUrl"] = f"{base}/discussions/{pull_request['num']}"
        self.answer(200, answer)


def _row(path: str, entry: Entry) -> dict:
    row = {"type": "file", "oid": entry.blob_id, "size": len(entry.content), "path": path}
    if entry.lfs:
        row["lfs"] = {"oid": entry.sha256, "size": len(entry.content), "pointerSize": len(entry.pointer)}
    return row
