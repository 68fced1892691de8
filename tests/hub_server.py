"""A server on this machine that speaks as much of the Hugging Face Hub's API as `push` and `pull` need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "hf_of_this_test"
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf")


@dataclass
class Repository:
    """A model: whether it is private, its files, and how many commits made them."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


class HubServer(ThreadingHTTPServer):
    """`repositories` is what it holds, `requests` what it was asked, and `fault` how it fails.

    A fault is (a part of a path, a status), with status 0 for a connection that breaks off in the middle of an answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: tuple[str, int] | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent one after the other

    def log_message(self, *_: Any) -> None:
        """Nothing: the test reads `requests`."""

    def answer(self, content: Any = None, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = self.server.fault
        if fault is not None and fault[0] in self.path and fault[1] == 0:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        fault = self.server.fault
        if fault is not None and fault[0] in path and fault[1]:
            return self.answer({"error": "as the test wants it"}, fault[1])
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.startswith("/objects/"):
            self.server.objects[parts[1]] = body
            return self.answer()
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.logged_in()):
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if parts[0] != "api":
            return self.batch(body) if parts[-1] == "batch" else self.resolve(repository, parts)
        if len(parts) > 4 and parts[4] == "preupload":
            return self.answer({"files": [upload_mode(one["path"]) for one in json.loads(body)["files"]]})
        if len(parts) > 4 and parts[4] == "commit":
            return self.commit(name, repository, body)
        if len(parts) > 4 and parts[4] != "revision":
            return self.answer({"error": "not in this server"}, 404)
        return self.describe(name, repository, parts)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def logged_in(self) -> bool:
        return bool(self.headers.get("Authorization") == f"Bearer {TOKEN}")

    def create(self, asked: dict[str, Any]) -> None:
        if not self.logged_in():
            return self.answer({"error": "Unauthorized"}, 401)
        name = f"{asked['organization']}/{asked['name']}"
        self.server.repositories[name] = Repository(private=asked["visibility"] == "private")
        self.answer({"url": f"{self.server.url}/{name}"})

    def describe(self, name: str, repository: Repository, parts: list[str]) -> None:
        if len(parts) > 5 and parts[5] not in ("main", repository.sha):
            return self.answer({"error": "no revision"}, 404, X_Error_Code="RevisionNotFound")
        siblings: list[dict[str, Any]] = []
        for path, content in repository.files.items():
            one: dict[str, Any] = {"rfilename": path}
            if "blobs" in parse_qs(urlsplit(self.path).query):
                one |= {"size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
                if path.endswith(LFS_SUFFIXES):
                    sha256 = hashlib.sha256(content).hexdigest()
                    one["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 100}
            siblings.append(one)
        found = {"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings}
        self.answer({**found, "tags": [], "downloads": 0, "likes": 0})

    def batch(self, body: bytes) -> None:
        objects = json.loads(body)["objects"]
        upload = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}}}
            for one in objects
        ]
        self.answer({"transfer": "basic", "objects": upload})

    def commit(self, name: str, repository: Repository, body: bytes) -> None:
        if not self.logged_in():
            return self.answer({"error": "Unauthorized"}, 401)
        files = {}
        for line in body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        repository.files |= files
        repository.commits += 1
        url = f"{self.server.url}/{name}/commit/{repository.sha}"
        self.answer({"commitUrl": url, "commitOid": repository.sha})

    def resolve(self, repository: Repository, parts: list[str]) -> None:
        content = repository.files.get(parts[-1])
        if content is None or parts[2:4] != ["resolve", repository.sha]:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(content, ETag=etag, X_Repo_Commit=repository.sha)


def upload_mode(path: str) -> dict[str, Any]:
    """How a file is to be sent."""
    mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
