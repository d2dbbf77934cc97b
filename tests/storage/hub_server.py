"""A Hub on loopback: the part of its HTTP interface that pushing and loading a model uses.

Repositories live in memory. Content is addressed as on the Hub: a commit is a set of files, `*.safetensors`
go through LFS and have their sha256 as etag, other files the sha1 of their git blob. Writing needs the
token, reading does not. The client is huggingface_hub itself, told where the Hub is by `Hub.environment`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_test"
LICENSES = ("apache-2.0", "mit", "llama2", "other")  # a few of those that the Hub knows
REPO, REVISION = r"(?P<repo>[^/]+/[^/]+?)", r"(?P<revision>[^/]+)"


@dataclass
class Repo:
    """Commits, oldest first, each as `{path: content}`; branches and tags name one."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]

    def oid(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit id."""
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """The server; a context manager. `max_commits` makes it refuse further commits, as a full quota would."""

    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    max_commits: int = 1000
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """Environment variables that send huggingface_hub here, with its cache and credentials in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo]
        return found.commits[found.refs.get(revision, revision)]


def is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def content_oid(path: str, content: bytes) -> str:
    return sha256(content).hexdigest() if is_lfs(path) else sha1(b"blob %d\0" % len(content) + content).hexdigest()


ROUTES: list[tuple[str, re.Pattern[str], str]] = []


def route(method: str, pattern: str) -> Callable[[Callable], Callable]:
    def add(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function.__name__))
        return function

    return add


class Handler(BaseHTTPRequestHandler):
    """One request; answers are JSON but for files."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def dispatch(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"{self.command} {path}")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in ROUTES:
            match = pattern.fullmatch(path)
            if match and wanted == method:
                # The LFS store has signed addresses in place of a token, and a card may be checked by anyone.
                public = method == "GET" or name in ("put_blob", "validate_yaml")
                if not public and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.error(401, "Invalid username or password.")
                return getattr(self, name)(body, **match.groupdict())
        self.error(404, f"no route for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = dispatch

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def error(self, status: int, message: str, code: str = "") -> None:
        self.reply({"error": message}, status, X_Error_Message=message, X_Error_Code=code)

    def log_message(self, *_: object) -> None:
        """Quiet: what was asked is in `Hub.requests`."""

    def find(self, repo: str, revision: str) -> tuple[Repo, str] | None:
        """The repository and the commit, or None after the error has been sent."""
        if repo not in self.hub.repos:
            return self.error(404, "Repository not found", "RepoNotFound")
        found = self.hub.repos[repo]
        oid = found.oid(revision)
        return (found, oid) if oid else self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # --- writing ------------------------------------------------------------------------------------------

    @route("POST", "/api/repos/create")
    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization'] or 'user'}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            return self.reply({"error": "You already created this model repo", **answer}, 409)
        first = sha1(name.encode()).hexdigest()
        self.hub.repos[name] = Repo(commits={first: {}}, refs={"main": first})
        self.reply(answer)

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, body: bytes) -> None:
        _, header, *_ = json.loads(body)["content"].split("---\n", 2)
        license_id = yaml.safe_load(header).get("license")
        errors = [] if license_id in LICENSES else [{"message": f'"license" must be one of {list(LICENSES)}'}]
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    @route("POST", f"/api/models/{REPO}/preupload/{REVISION}")
    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if not (found := self.find(repo, revision)):
            return
        files = found[0].commits[found[1]]
        answer = []
        for path in [file["path"] for file in json.loads(body)["files"]]:
            oid = content_oid(path, files[path]) if path in files else None
            mode = "lfs" if is_lfs(path) else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answer})

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, body: bytes, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/blobs/{wanted['oid']}"}}
            objects.append(wanted if wanted["oid"] in self.hub.blobs else {**wanted, "actions": upload})
        self.reply({"transfer": "basic", "objects": objects})

    @route("PUT", "/blobs/(?P<oid>[0-9a-f]{64})")
    def put_blob(self, body: bytes, oid: str) -> None:
        if sha256(body).hexdigest() != oid:
            return self.error(400, "content does not have that sha256")
        self.hub.blobs[oid] = body
        self.reply({})

    @route("POST", f"/api/models/{REPO}/commit/{REVISION}")
    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if not (found := self.find(repo, revision)):
            return
        if self.hub.max_commits == 0:
            return self.error(403, "Storage quota exceeded")
        self.hub.max_commits -= 1
        files = dict(found[0].commits[found[1]])
        for line in body.splitlines():
            kind, value = (operation := json.loads(line))["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif kind != "header":
                return self.error(400, f"no operation {kind}")
        oid = sha1(found[1].encode() + body).hexdigest()
        found[0].commits[oid] = files
        found[0].refs[revision] = oid
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    @route("POST", f"/api/models/{REPO}/tag/{REVISION}")
    def tag(self, body: bytes, repo: str, revision: str) -> None:
        if found := self.find(repo, revision):
            found[0].refs[json.loads(body)["tag"]] = found[1]
            self.reply({})

    @route("POST", f"/api/models/{REPO}/branch/(?P<branch>.+)")
    def branch(self, body: bytes, repo: str, branch: str) -> None:
        if found := self.find(repo, json.loads(body).get("startingPoint", "main")):
            found[0].refs[branch] = found[1]
            self.reply({})

    # --- reading ------------------------------------------------------------------------------------------

    @route("GET", f"/api/models/{REPO}(?:/revision/{REVISION})?")
    def info(self, body: bytes, repo: str, revision: str | None) -> None:
        if found := self.find(repo, revision or "main"):
            siblings = [{"rfilename": path} for path in found[0].commits[found[1]]]
            self.reply({"id": repo, "sha": found[1], "private": False, "tags": [], "siblings": siblings})

    @route("GET", f"/api/models/{REPO}/tree/{REVISION}")
    def tree(self, body: bytes, repo: str, revision: str) -> None:
        if not (found := self.find(repo, revision)):
            return
        entries = []
        for path, content in found[0].commits[found[1]].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": content_oid(path, content)}
            if is_lfs(path):
                entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self.reply(entries)

    @route("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        if not (found := self.find(repo, revision)):
            return
        content = found[0].commits[found[1]].get(path)
        if content is None:
            return self.error(404, "Entry not found", "EntryNotFound")
        etag = f'"{content_oid(path, content)}"'
        linked = {"X_Linked_ETag": etag, "X_Linked_Size": str(len(content))} if is_lfs(path) else {}
        self.reply(content, ETag=etag, X_Repo_Commit=found[1], **linked)
