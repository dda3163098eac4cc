"""A model hub on loopback: repositories with real ids, revisions and file names, served to the real hub client."""

import base64
import hashlib
import json
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


class Hub:
    """Serves `root/REPOSITORY/REVISION/FILE`; the REPOSITORY of a dataset is `datasets/OWNER/NAME`.

    requests: every path that was asked for, in order. broken: whether the line breaks before a file's first
    byte. busy: names of files that are answered with 503. gated: repositories whose files are for those
    alone who accepted their terms. A revision goes by its folder's name or its commit.

    What is pushed lies in the revision `main`. tokens: by token, the owners it may write to. commits:
    what each changed, in order. private: repositories made so. down: whether every write fails, with an
    answer that tells all it was sent.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        self.requests: list[str] = []
        self.broken = False
        self.busy: set[str] = set()
        self.gated: set[str] = set()
        self.tokens: dict[str, set[str]] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.private: set[str] = set()
        self.down = False
        self._stored: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_POST(self) -> None:
                if "/paths-info/" in self.path:
                    hub.answer(self, body=True)
                else:
                    hub.write(self)

            def do_PUT(self) -> None:
                hub.write(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def folder(self, repository: str, revision: str) -> Path:
        """Where to put the files of a repository at a revision."""
        path = self.root / repository / revision
        path.mkdir(parents=True, exist_ok=True)
        return path

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        """A file's bytes or headers, a tree's listing, or 404 in the hub's own words."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append(path)
        content: bytes | None = None
        status, code = 404, "EntryNotFound"
        api = re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/(tree|revision|paths-info)/([^/]+)/?(.*))?", path)
        if api:
            repository = f"datasets/{api[2]}" if api[1] == "datasets" else api[2]
            revision, name = api[4] or "main", api[5] or ""
        else:
            repository, _, rest = path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
        folder = self._at(repository, revision.strip("/") or "main")
        if not (self.root / repository).is_dir():
            status, code = 401, "RepoNotFound"  # what the real one says to strangers, since it may be private
        elif folder is None:
            code = "RevisionNotFound"
        elif api and api[3] == "tree":
            if (folder / name).is_dir():
                found = (
                    (folder / name).rglob("*")
                    if "recursive=true" in request.path.lower()
                    else (folder / name).glob("*")
                )
                content = json.dumps([entry(folder, file) for file in sorted(found)]).encode()
        elif api and api[3] == "paths-info":
            asked = json.loads(_body(request))["paths"]
            content = json.dumps([entry(folder, folder / path) for path in asked if (folder / path).exists()]).encode()
        elif api:
            content = json.dumps({"id": api[2], "sha": commit(folder.name), "siblings": []}).encode()
        elif Path(name).name in self.busy:
            status, code = 503, "ServiceUnavailable"
        elif repository in self.gated:
            status, code = 403, "GatedRepo"
        elif (folder / name).is_file():
            content = (folder / name).read_bytes()
        request.send_response(status if content is None else 200)
        if content is None:
            request.send_header("X-Error-Code", code)
            content = b""
        request.send_header("X-Repo-Commit", commit(folder.name if folder else "none"))
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body and self.broken:
            request.close_connection = True
        elif body:
            request.wfile.write(content)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def write(self, request: BaseHTTPRequestHandler) -> None:
        """Take a write, or refuse it as the hub does."""
        sent, path = _body(request), unquote(urlsplit(request.path).path)
        self.requests.append(path)
        if path.startswith("/store/"):  # where large files go: an address that carries its own right to write
            self._stored[path.removeprefix("/store/")] = sent
            status, answer = 200, {}
        else:
            status, answer = self._refusal(request, path, sent) or self._take(path, sent)
        content = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        request.wfile.write(content)

    def _refusal(self, request: BaseHTTPRequestHandler, path: str, sent: bytes) -> tuple[int, dict[str, Any]] | None:
        if self.down:
            return 500, {"error": f"{request.headers.as_string()} {sent[:1000]!r}"}
        if path == "/api/validate-yaml":
            return None
        if path == "/api/repos/create":
            owner = json.loads(sent)["organization"]
        else:
            owner = path.removeprefix("/api/models").strip("/").split("/")[0]
        owners = self.tokens.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if owners is None:
            return 401, {"error": "Invalid username or password."}
        return (
            None
            if owner in owners
            else (403, {"error": f"You don't have the rights to write under the namespace {owner}"})
        )

    def _take(self, path: str, sent: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/validate-yaml":
            text = json.loads(sent)["content"].partition("---\n")[2].partition("---\n")[0]
            good = isinstance(yaml.safe_load(text), dict)
            return (200, {}) if good else (400, {"errors": [{"message": "no metadata"}], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            there = (self.root / name).is_dir()
            self.folder(name, "main")
            if asked.get("visibility") == "private" and not there:
                self.private.add(name)
            return (409 if there else 200), {"url": f"{self.url}/{name}"}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(sent)["objects"]
            actions = [{**each, "actions": {"upload": {"href": f"{self.url}/store/{each['oid']}"}}} for each in objects]
            return 200, {"transfer": "basic", "objects": actions}
        repository, verb, _ = path.removeprefix("/api/models/").rsplit("/", 2)
        if verb == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(sent)["files"]
            ]
            return 200, {"files": files}
        assert verb == "commit", path
        return 200, self._commit(repository, [json.loads(line) for line in sent.splitlines()])

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        changed = []
        for line in lines:
            value = line["value"]
            if line["key"] != "header":
                content = base64.b64decode(value["content"]) if line["key"] == "file" else self._stored[value["oid"]]
                assert line["key"] == "file" or hashlib.sha256(content).hexdigest() == value["oid"]
                target = self.folder(repository, "main") / value["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                changed.append(value["path"])
        self.commits.append((repository, changed))
        return {
            "success": True,
            "commitUrl": f"{self.url}/{repository}/commit/{commit('main')}",
            "commitOid": commit("main"),
        }

    def _at(self, repository: str, revision: str) -> Path | None:
        """The folder of a repository at a revision, by its name or its commit."""
        folders = [each for each in (self.root / repository).glob("*") if each.is_dir()]
        return next((each for each in folders if revision in (each.name, commit(each.name))), None)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """All that was sent, at once or in chunks."""
    if "chunked" not in request.headers.get("Transfer-Encoding", ""):
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    content = b""
    while size := int(request.rfile.readline(), 16):
        content += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return content


def entry(folder: Path, path: Path) -> dict[str, object]:
    """What a tree says of a file or a folder."""
    named = {"path": str(path.relative_to(folder))}
    if path.is_dir():
        return named | {"type": "directory", "oid": "0"}
    return named | {"type": "file", "size": path.stat().st_size, "oid": etag(path)}


def commit(revision: str) -> str:
    """What a revision is pinned by: itself, where it is a commit."""
    return revision if len(revision) == 40 else hashlib.sha1(revision.encode()).hexdigest()


def etag(file: Path) -> str:
    """What names a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
