"""A model hub on loopback: repositories with real ids, revisions and file names, served to the real hub client."""

import hashlib
import json
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """Serves `root/REPOSITORY/REVISION/FILE`.

    requests: every path that was asked for, in order. broken: whether the line breaks before a file's first byte.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        self.requests: list[str] = []
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
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
        revision = "none"
        if path.startswith("/api/models/") and "/tree/" in path:
            repository, revision = path.removeprefix("/api/models/").split("/tree/")
            folder = self.root / repository / revision.strip("/")
            if folder.is_dir():
                files = sorted(file for file in folder.rglob("*") if file.is_file())
                rows = [
                    {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": etag(file)}
                    for file in files
                ]
                content = json.dumps(rows).encode()
        elif "/resolve/" in path:
            repository, rest = path.strip("/").split("/resolve/")
            revision, _, name = rest.partition("/")
            file = self.root / repository / revision / name
            content = file.read_bytes() if file.is_file() else None
        commit = revision if len(revision) == 40 else hashlib.sha1(revision.encode()).hexdigest()
        request.send_response(404 if content is None else 200)
        if content is None:
            known = (self.root / repository).is_dir() if "/resolve/" in path or "/tree/" in path else False
            request.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            content = b""
        request.send_header("X-Repo-Commit", commit)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body and self.broken:
            request.close_connection = True
        elif body:
            request.wfile.write(content)


def etag(file: Path) -> str:
    """What names a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
