"""A small stand-in for the Hugging Face Hub on localhost: what loading, saving and pushing models needs of its API.

Written against huggingface_hub 2.4. Without Xet (set `HF_HUB_DISABLE_XET=1`): large files go through git LFS. Set
`HF_ENDPOINT` to [`HubStandIn.endpoint`] before huggingface_hub is imported. An unknown route answers 501.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".png", ".gguf", ".flashpack")


@dataclass(frozen=True)
class Request:
    """A request that the stand-in has answered."""

    method: str
    path: str
    """Unquoted, without query."""
    token: str | None
    """The bearer token that was sent."""
    status: int
    repo_id: str | None = None
    file: str | None = None
    """The path in the repository, if a file was asked for."""


@dataclass(frozen=True)
class Blob:
    """One file's content; `path` is where the stand-in keeps it."""

    path: Path
    sha256: str
    git_oid: str
    size: int


@dataclass
class Repo:
    """A repository: commits are whole file listings, refs are branches and tags."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], revision: str) -> str:
        """Make `files` the new content of a branch."""
        listing = "".join(f"{name} {blob.sha256}\n" for name, blob in sorted(files.items()))
        parent = self.refs.get(revision, "")
        sha = hashlib.sha1(f"{parent}\n{len(self.commits)}\n{listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[revision] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        return revision if revision in self.commits else self.refs.get(revision)


class HubStandIn:
    """The server, as a context manager.

    Args:
        root: Folder for the files' contents.
        tokens: Tokens that are valid, each with the name of its user. A valid token may read and write everything.
    """

    def __init__(self, root: str | Path, tokens: dict[str, str] | None = None) -> None:
        self.root = Path(root)
        self.tokens = {"hf_x": "org"} if tokens is None else tokens
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, Blob] = {}
        self.requests: list[Request] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._lock = threading.Lock()

    def __enter__(self) -> HubStandIn:
        (self.root / "blobs").mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        """Base URL, for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def downloads(self) -> list[str]:
        """Paths of the repository files whose content was sent, in order."""
        return [r.file for r in self.requests if r.method == "GET" and r.status in (200, 206) and r.file is not None]

    def add_repo(
        self,
        repo_id: str,
        folder: str | Path,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
        ignore: Callable[[str], bool] = lambda name: False,
    ) -> str:
        """Make a folder's files the content of a branch of a repository; both are made if they do not exist.

        Args:
            repo_id: `owner/name`.
            folder: Read once; later changes of it do not matter.
            revision: Branch.
            private: Without a valid token, the repository seems not to exist.
            gated: Everybody sees the repository, but its files only with a valid token.
            ignore: Which files to leave out, by their path in the folder.

        Returns:
            The commit.
        """
        folder = Path(folder)
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        repo = self.repos.setdefault(repo_id, Repo())
        repo.private, repo.gated = private, gated
        return repo.commit({n: self.add_blob(p.read_bytes()) for n, p in files.items() if not ignore(n)}, revision)

    def add_blob(self, content: bytes) -> Blob:
        """Keep a content under its SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.root / "blobs" / sha256
        with self._lock:
            if sha256 not in self.blobs:
                path.write_bytes(content)
                git_oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self.blobs[sha256] = Blob(path, sha256, git_oid, len(content))
            return self.blobs[sha256]

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Contents of a repository's files."""
        repo = self.repos[repo_id]
        return {name: blob.path.read_bytes() for name, blob in repo.commits[repo.refs[revision]].items()}


class _Error(Exception):
    """An answer other than success, as the Hub words it."""

    def __init__(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent apart

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    @property
    def hub(self) -> HubStandIn:
        return self.server.hub  # type: ignore[attr-defined]

    @property
    def token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" else None

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.body = self._read_body()
        self.repo_id: str | None = None
        self.file: str | None = None
        try:
            for method, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    answer(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                    return
            raise _Error(501, None, f"The stand-in does not know {self.command} {path}.")
        except _Error as error:
            self._send(error.status, json.dumps({"error": str(error)}).encode(), error.headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        path = unquote(urlsplit(self.path).path)
        if path != _HARNESSES:
            self.hub.requests.append(Request(self.command, path, self.token, status, self.repo_id, self.file))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # Access --------------------------------------------------------------------------------------------------------

    def _check_token(self, required: bool) -> None:
        if self.token is not None and self.token not in self.hub.tokens:
            raise _Error(401, None, "Invalid credentials in Authorization header")
        if self.token is None and required:
            raise _Error(401, None, "Invalid username or password.")

    def _open(self, repo_id: str, write: bool = False, content: bool = False) -> Repo:
        """The repository, if the sender may know of it."""
        self.repo_id = repo_id
        self._check_token(required=write)
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.token is None):
            # The Hub does not tell those without a token whether a repository exists.
            raise _Error(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and content and self.token is None:
            raise _Error(401, "GatedRepo", f"Access to model {repo_id} is restricted. You must be authenticated.")
        return repo

    @staticmethod
    def _commit_of(repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _harnesses(self) -> None:
        self._send_json({"standardEnvVars": [], "harnesses": {}})

    # Reading -------------------------------------------------------------------------------------------------------

    def _who_am_i(self) -> None:
        self._check_token(required=True)
        assert self.token is not None
        name = self.hub.tokens[self.token]
        self._send_json({"type": "user", "id": name, "name": name, "orgs": []})

    def _model_info(self, repo_id: str, revision: str = "") -> None:
        repo = self._open(repo_id)
        sha = self._commit_of(repo, revision or "main")
        siblings = [{"rfilename": name} for name in sorted(repo.commits[sha])]
        info = {"_id": repo_id, "id": repo_id, "modelId": repo_id, "sha": sha, "siblings": siblings, "tags": []}
        self._send_json({**info, "private": repo.private, "gated": "auto" if repo.gated else False})

    def _tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        repo = self._open(repo_id)
        files = repo.commits[self._commit_of(repo, revision)]
        prefix = f"{folder}/" if folder else ""
        entries = []
        for name, blob in sorted(files.items()):
            if not name.startswith(prefix):
                continue
            entry: dict[str, Any] = {"type": "file", "path": name, "oid": blob.git_oid, "size": blob.size}
            if name.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
            entries.append(entry)
        self._send_json(entries)

    def _file(self, repo_id: str, revision: str, file: str) -> None:
        self.file = file
        repo = self._open(repo_id, content=True)
        sha = self._commit_of(repo, revision)
        blob = repo.commits[sha].get(file)
        if blob is None:
            raise _Error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        etag = blob.sha256 if file.endswith(LFS_SUFFIXES) else blob.git_oid
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            self._send(200, b"", {**headers, "Content-Length": str(blob.size)})
            return
        content = blob.path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._send(200, content, headers)
            return
        start, stop = int(match[1]), min(int(match[2] or blob.size) + 1, blob.size)
        if start >= blob.size:
            raise _Error(416, None, "Range not satisfiable", {"Content-Range": f"bytes */{blob.size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        self._send(206, content[start:stop], headers)

    # Writing -------------------------------------------------------------------------------------------------------

    def _create_repo(self) -> None:
        self._check_token(required=True)
        assert self.token is not None
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or self.hub.tokens[self.token]}/{wanted['name']}"
        answer = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repos:
            self._send_json({**answer, "error": "You already created this model repo"}, status=409)
            return
        repo = self.hub.repos[repo_id] = Repo(private=wanted.get("visibility") == "private")
        repo.commit({".gitattributes": self.hub.add_blob(b"*.safetensors filter=lfs\n")}, "main")
        self._send_json(answer)

    def _validate_yaml(self) -> None:
        self._send_json({"errors": [], "warnings": []})

    def _preupload(self, repo_id: str, revision: str) -> None:
        repo = self._open(repo_id, write=True)
        present = repo.commits[self._commit_of(repo, revision)]
        answers = []
        for wanted in json.loads(self.body)["files"]:
            name = wanted["path"]
            is_lfs = name.endswith(LFS_SUFFIXES)
            answer = {"path": name, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False}
            if name in present:
                answer["oid"] = present[name].sha256 if is_lfs else present[name].git_oid
            answers.append(answer)
        self._send_json({"files": answers})

    def _lfs_batch(self, repo_id: str) -> None:
        self._open(repo_id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                urls = {"upload": f"/lfs/{wanted['oid']}", "verify": f"/{repo_id}.git/info/lfs/objects/verify"}
                answer["actions"] = {name: {"href": self.hub.endpoint + url} for name, url in urls.items()}
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def _lfs_upload(self, oid: str) -> None:
        # Like the Hub's storage: the address is the permission, no token is sent.
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Error(400, None, "The content does not have the SHA-256 that was announced.")
        self.hub.add_blob(self.body)
        self._send_json({})

    def _lfs_verify(self, repo_id: str) -> None:
        self._open(repo_id, write=True)
        wanted = json.loads(self.body)
        self._lfs_blob(wanted["oid"], wanted["size"])
        self._send_json({})

    def _lfs_blob(self, oid: str, size: int) -> Blob:
        blob = self.hub.blobs.get(oid)
        if blob is None or blob.size != size:
            raise _Error(400, None, f"LFS object {oid} of {size} bytes was not uploaded.")
        return blob

    def _commit(self, repo_id: str, revision: str) -> None:
        repo = self._open(repo_id, write=True)
        files = dict(repo.commits[self._commit_of(repo, revision)])
        for item in _read_lines(self.body):
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = self.hub.add_blob(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                files[value["path"]] = self._lfs_blob(value["oid"], value["size"])
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            elif item["key"] != "header":
                raise _Error(501, None, f"The stand-in does not know the operation {item['key']}.")
        sha = repo.commit(files, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{sha}"
        self._send_json({"success": True, "commitOid": sha, "commitUrl": url})


def _read_lines(body: bytes) -> Iterable[dict[str, Any]]:
    return (json.loads(line) for line in body.splitlines() if line.strip())


_HARNESSES = "/api/agent-harnesses"  # asked once a day, for the user agent; not recorded
_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", _HARNESSES, _Handler._harnesses),
    ("GET", r"/api/whoami-v2", _Handler._who_am_i),
    ("POST", r"/api/validate-yaml", _Handler._validate_yaml),
    ("POST", r"/api/repos/create", _Handler._create_repo),
    ("GET", rf"/api/models/{_REPO}", _Handler._model_info),
    ("GET", rf"/api/models/{_REPO}/revision/{_REVISION}", _Handler._model_info),
    ("GET", rf"/api/models/{_REPO}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler._tree),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", rf"/api/models/{_REPO}/commit/{_REVISION}", _Handler._commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/verify", _Handler._lfs_verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler._lfs_upload),
    ("GET HEAD", rf"/{_REPO}/resolve/{_REVISION}/(?P<file>.+)", _Handler._file),
]
