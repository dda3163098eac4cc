"""A model hub on loopback: repositories with real ids, revisions and file names, served to the real hub client."""

import hashlib
import json
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves `root/REPOSITORY/REVISION/FILE`; the REPOSITORY of a dataset is `datasets/OWNER/NAME`.

    requests: every path that was asked for, in order. broken: whether the line breaks before a file's first byte. gated:
    repositories whose files are for those alone who accepted their terms. A revision goes by its folder's name or its commit.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        self.requests: list[str] = []
        self.broken = False
        self.gated: set[str] = set()
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
                hub.answer(self, body=True)

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
        sent = request.rfile.read(int(request.headers.get("Content-Length") or 0))
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
                found = (folder / name).rglob("*") if "recursive=true" in request.path.lower() else (folder / name).glob("*")
                content = json.dumps([entry(folder, file) for file in sorted(found)]).encode()
        elif api and api[3] == "paths-info":
            asked = json.loads(sent)["paths"]
            content = json.dumps([entry(folder, folder / path) for path in asked if (folder / path).exists()]).encode()
        elif api:
            content = json.dumps({"id": api[2], "sha": commit(folder.name), "siblings": []}).encode()
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

    def _at(self, repository: str, revision: str) -> Path | None:
        """The folder of a repository at a revision, by its name or its commit."""
        folders = [each for each in (self.root / repository).glob("*") if each.is_dir()]
        return next((each for each in folders if revision in (each.name, commit(each.name))), None)


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
