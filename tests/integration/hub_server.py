"""A Hub in miniature: serves model repositories of a directory over loopback.

Only what `hf_hub_download` asks for, the files of a revision, with the headers that name their
commit and content; and what `create_repo` and `upload_folder` send, every file within the commit.
Revisions are directories: `<root>/<owner>/<name>/<revision>/<file>`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
UPLOAD = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<stage>preupload|commit)/(?P<rev>[^/]+)")


class HubServer(ThreadingHTTPServer):
    """The server, and what it was asked for."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root = root
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    """Answers HEAD and GET of a repository's files."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:  # noqa: N802 - the standard library's name
        self.answer(with_body=False)

    def do_GET(self) -> None:  # noqa: N802 - the standard library's name
        self.answer(with_body=True)

    def do_POST(self) -> None:  # noqa: N802 - the standard library's name
        self.server.requests.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match = UPLOAD.fullmatch(self.path)
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            return self.reply(
                {"url": f"{self.server.url}/{wanted['organization']}/{wanted['name']}"}
            )
        if self.path == "/api/validate-yaml":
            return self.reply({"warnings": [], "errors": []})
        if match is None:
            return self.refuse("RepoNotFound")
        if match["stage"] == "preupload":
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply({"files": [{**mode, **f} for f in json.loads(body)["files"]]})
        commit = commit_of(match["rev"])
        self.store(self.server.root / match["repo"] / match["rev"], body)
        url = f"{self.server.url}/{match['repo']}/commit/{commit}"
        return self.reply({"commitUrl": url, "commitOid": commit})

    @staticmethod
    def store(revision: Path, commit: bytes) -> None:
        """Write the files of a commit, which is a line of JSON for each operation."""
        for operation in map(json.loads, commit.splitlines()):
            if operation["key"] == "file":
                path = revision / operation["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(operation["value"]["content"]))

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, *, with_body: bool) -> None:
        self.server.requests.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization"))
        match = FILE.fullmatch(self.path)
        if match is None:
            return self.refuse("RepoNotFound")
        repo = self.server.root / match["repo"]
        revision = repo / self.branch_of(repo, match["revision"])
        if not repo.is_dir():
            return self.refuse("RepoNotFound")
        if not revision.is_dir():
            return self.refuse("RevisionNotFound")
        path = revision / match["name"]
        if not path.is_file():
            return self.refuse("EntryNotFound", commit=commit_of(revision.name))
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit_of(revision.name))
        self.end_headers()
        if with_body:
            self.wfile.write(content)
        return None

    @staticmethod
    def branch_of(repo: Path, revision: str) -> str:
        """The revision's directory, also where it is named by its commit."""
        branches = [path.name for path in repo.iterdir()] if repo.is_dir() else []
        return next((name for name in branches if commit_of(name) == revision), revision)

    def refuse(self, code: str, commit: str | None = None) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{self.path}: {code}")
        if commit is not None:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keep the tests' output quiet."""


def commit_of(revision: str) -> str:
    """A commit's 40 hexadecimal digits for a revision."""
    return hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def serving(root: Path) -> Iterator[HubServer]:
    """Within this context the repositories under `root` are served."""
    server = HubServer(root)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
