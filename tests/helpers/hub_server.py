"""A model hub on loopback: the write protocol as the unmodified `huggingface_hub` client speaks it.

Repositories, commits and large files live in memory. Faults are put in by the tests: an answer in
place of the right one, a cut connection, slowness.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "t" * 34
LARGE = (".safetensors", ".gguf", ".bin", ".model")
Tree = dict[str, "Entry"]


@dataclass(frozen=True)
class Entry:
    data: bytes
    lfs: str | None

    @property
    def blob_id(self) -> str:
        content = self.data
        if self.lfs is not None:
            content = f"version 1\noid sha256:{self.lfs}\nsize {len(self.data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324  (git's)


@dataclass
class Repository:
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    pulls: list[str] = field(default_factory=list)

    def commit(self, ref: str, tree: Tree) -> str:
        names = json.dumps(sorted((n, e.blob_id) for n, e in tree.items()))
        oid = hashlib.sha1(f"{len(self.log)}{ref}{names}".encode()).hexdigest()  # noqa: S324
        self.trees[oid] = tree
        self.log.append(oid)
        self.refs[ref] = oid
        return oid

    def find(self, revision: str) -> str | None:
        for name in (revision, f"refs/tags/{revision}"):
            if name in self.refs:
                return self.refs[name]
        return revision if revision in self.trees else None


@dataclass
class Fault:
    """In place of the next `times` answers to requests that match.

    Attributes:
        request: regular expression, searched in `METHOD /path`.
        status: what is answered; None cuts the connection.
        times: how often.
        headers: of the answer.
        late: cut or answer only after the request was carried out.
    """

    request: str
    status: int | None = None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    late: bool = False


@dataclass
class Hub:
    """State of the server, for tests to look at."""

    address: str = ""
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    part_bytes: int | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    bytes_per_second: float | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        """What anyone can see."""
        repo = self.repositories[repository]
        return {n: e.data for n, e in repo.trees[repo.refs[revision]].items()}

    def sent(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, line)) for line in self.requests)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _CutError(Exception):
    pass


class _AnswerError(Exception):
    def __init__(self, status: int, value: Any = None, headers: dict[str, str] | None = None):
        self.status, self.value, self.headers = status, value, headers or {}


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", rf"/api/models/{_REPO}", "info"),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<rev>.+)", "info"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<rev>.+)", "preupload"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/store/(?P<oid>\w+)", "put"),
    ("PUT", r"/store/(?P<oid>\w+)/(?P<part>\d+)", "put_part"),
    ("POST", r"/complete/(?P<oid>\w+)", "complete"),
    ("POST", r"/verify", "verify"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<rev>.+)", "commit"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<rev>.+)", "tree"),
    ("POST", rf"/api/models/{_REPO}/paths-info/(?P<rev>.+)", "paths_info"),
    ("GET", rf"/api/models/{_REPO}/refs", "refs"),
    ("POST", rf"/api/models/{_REPO}/tag/(?P<rev>.+)", "tag"),
    ("GET", rf"/api/models/{_REPO}/discussions", "discussions"),
    ("HEAD", rf"/{_REPO}/resolve/(?P<rev>[^/]+|refs%2F.+?)/(?P<path>.+)", "resolve"),
    ("GET", rf"/{_REPO}/resolve/(?P<rev>[^/]+|refs%2F.+?)/(?P<path>.+)", "resolve"),
    ("GET", r"/blobs/(?P<oid>\w+)", "blob"),
    ("HEAD", r"/blobs/(?P<oid>\w+)", "blob"),
]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        line = f"{self.command} {parts.path}"
        try:
            with self.hub.lock:
                self.hub.requests.append(line)
                fault = self._fault(line)
            if fault is not None and not fault.late:
                self.close_connection = True
                self._fail(fault)
            self.body = self._read_body()
            for method, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if method == self.command and match:
                    try:
                        with self.hub.lock:
                            getattr(self, f"_{name}")(**match.groupdict())
                    except _AnswerError:
                        if fault is not None:
                            self._fail(fault)
                        raise
            raise _AnswerError(404, {"error": f"no such route: {line}"})
        except _AnswerError as answer:
            self._reply(answer)
        except _CutError:
            self.close_connection = True
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the client went away

    def _fault(self, line: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times > 0 and re.search(fault.request, line):
                fault.times -= 1
                return fault
        return None

    def _fail(self, fault: Fault) -> None:
        if fault.status is None:
            raise _CutError
        raise _AnswerError(fault.status, {"error": "made to fail"}, fault.headers)

    def _read_body(self) -> bytes:
        left = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            return self._read_chunks()
        blocks = []
        while left:
            block = self.rfile.read(min(left, 1 << 16))
            if not block:
                raise _CutError
            blocks.append(block)
            left -= len(block)
            if self.hub.bytes_per_second and self.command == "PUT":
                time.sleep(len(block) / self.hub.bytes_per_second)
        return b"".join(blocks)

    def _read_chunks(self) -> bytes:
        blocks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def _reply(self, answer: _AnswerError) -> None:
        value = answer.value
        data = value if isinstance(value, bytes) else b"" if value is None else _json(value)
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, text in (headers | answer.headers).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # What follows is one function for each route; each ends by raising its answer.

    def _user(self) -> None:
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        if kind != "Bearer" or token not in self.hub.tokens:
            message = {"X-Error-Message": "Invalid credentials in Authorization header"}
            raise _AnswerError(401, {"error": "Invalid credentials"}, message)

    def _repo(self, name: str, *, write: bool = False) -> Repository:
        repo = self.hub.repositories.get(name)
        if write or (repo is not None and repo.private):
            self._user()
        if repo is None:
            raise _AnswerError(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        return repo

    def _tree_at(self, repo: Repository, revision: str) -> tuple[str, Tree]:
        oid = repo.find(unquote(revision))
        if oid is None:
            raise _AnswerError(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        return oid, repo.trees[oid]

    def _whoami(self) -> None:
        self._user()
        raise _AnswerError(200, {"name": "org", "type": "user", "orgs": []})

    def _validate(self) -> None:
        raise _AnswerError(200, {"warnings": [], "errors": []})

    def _create(self) -> None:
        self._user()
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or 'org'}/{wanted['name']}"
        if not name.startswith("org/"):
            raise _AnswerError(403, {"error": "no right"}, {"X-Error-Message": "no right"})
        url = {"url": f"{self.hub.address}/{name}"}
        if name in self.hub.repositories:
            raise _AnswerError(409, url)
        repo = Repository(private=wanted.get("visibility") == "private")
        repo.commit("main", {".gitattributes": Entry(b"*.safetensors filter=lfs\n", None)})
        self.hub.repositories[name] = repo
        raise _AnswerError(200, url)

    def _info(self, repo: str, rev: str = "main") -> None:
        found = self._repo(repo)
        oid, tree = self._tree_at(found, rev)
        names = [{"rfilename": name} for name in tree]
        value = {"id": repo, "sha": oid, "private": found.private, "siblings": names, "tags": []}
        raise _AnswerError(200, value)

    def _preupload(self, repo: str, rev: str) -> None:
        found = self._repo(repo, write=True)
        _, tree = self._tree_at(found, rev)
        files = []
        for item in json.loads(self.body)["files"]:
            mode = "lfs" if item["path"].endswith(LARGE) else "regular"
            entry = tree.get(item["path"])
            oid = entry and (entry.lfs or entry.blob_id)
            row = {"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            files.append(row)
        raise _AnswerError(200, {"files": files})

    def _batch(self, repo: str) -> None:
        self._repo(repo, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            row: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.stored:
                row["actions"] = self._actions(item["oid"], item["size"])
            objects.append(row)
        raise _AnswerError(200, {"transfer": "basic", "objects": objects})

    def _actions(self, oid: str, size: int) -> dict[str, Any]:
        address, step = self.hub.address, self.hub.part_bytes
        verify = {"href": f"{address}/verify"}
        if step is None or size <= step:
            return {"upload": {"href": f"{address}/store/{oid}"}, "verify": verify}
        count = -(-size // step)
        header = {str(n): f"{address}/store/{oid}/{n}" for n in range(1, count + 1)}
        header["chunk_size"] = str(step)
        return {"upload": {"href": f"{address}/complete/{oid}", "header": header}, "verify": verify}

    def _put(self, oid: str) -> None:
        self._keep(oid, self.body)
        raise _AnswerError(200)

    def _put_part(self, oid: str, part: str) -> None:
        self.hub.parts.setdefault(oid, {})[int(part)] = self.body
        raise _AnswerError(200, None, {"ETag": hashlib.sha256(self.body).hexdigest()})

    def _complete(self, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        told = [part["etag"] for part in json.loads(self.body)["parts"]]
        data = [parts[number] for number in sorted(parts)]
        if told != [hashlib.sha256(part).hexdigest() for part in data]:
            raise _AnswerError(422, {"error": "parts differ"})
        self._keep(oid, b"".join(data))
        raise _AnswerError(200, {})

    def _keep(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise _AnswerError(422, {"error": "sha256 differs"})
        self.hub.stored[oid] = data

    def _verify(self) -> None:
        item = json.loads(self.body)
        data = self.hub.stored.get(item["oid"])
        raise _AnswerError(200 if data is not None and len(data) == item["size"] else 404, {})

    def _commit(self, repo: str, rev: str) -> None:
        found = self._repo(repo, write=True)
        ref = unquote(rev)
        oid, before = self._tree_at(found, ref)
        tree = dict(before)
        for line in self.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit", oid) != oid:
                raise _AnswerError(412, {"error": "a commit has happened since"})
            if key == "file":
                tree[value["path"]] = Entry(base64.b64decode(value["content"]), None)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise _AnswerError(400, {"error": f"{value['oid']} was never uploaded"})
                tree[value["path"]] = Entry(self.hub.stored[value["oid"]], value["oid"])
            elif key == "deletedFile":
                del tree[value["path"]]
        pull_url = None
        if self.query.get("create_pr"):
            number = len(found.pulls) + 1
            ref = f"refs/pr/{number}"
            found.pulls.append(ref)
            pull_url = f"{self.hub.address}/{repo}/discussions/{number}"
        new = found.commit(ref, tree)
        url = f"{self.hub.address}/{repo}/commit/{new}"
        raise _AnswerError(200, {"commitUrl": url, "commitOid": new, "pullRequestUrl": pull_url})

    def _tree(self, repo: str, rev: str) -> None:
        _, tree = self._tree_at(self._repo(repo), rev)
        raise _AnswerError(200, [_row(name, entry) for name, entry in tree.items()])

    def _paths_info(self, repo: str, rev: str) -> None:
        _, tree = self._tree_at(self._repo(repo), rev)
        wanted = parse_qs(self.body.decode()).get("paths", [])
        raise _AnswerError(200, [_row(name, tree[name]) for name in wanted if name in tree])

    def _refs(self, repo: str) -> None:
        rows = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for ref, oid in self._repo(repo).refs.items():
            kind = "tags" if "tags/" in ref else "pullRequests" if "pr/" in ref else "branches"
            full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
            rows[kind].append({"name": ref.split("/")[-1], "ref": full, "targetCommit": oid})
        raise _AnswerError(200, rows)

    def _tag(self, repo: str, rev: str) -> None:
        found = self._repo(repo, write=True)
        oid, _ = self._tree_at(found, rev)
        ref = f"refs/tags/{json.loads(self.body)['tag']}"
        if ref in found.refs:
            raise _AnswerError(409, {"error": "there is such a tag"})
        found.refs[ref] = oid
        raise _AnswerError(200, {})

    def _discussions(self, repo: str) -> None:
        rows = [
            {
                "title": "Merged model",
                "num": number,
                "author": {"name": "org"},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": repo, "type": "model"},
                "isPullRequest": True,
            }
            for number, _ in enumerate(self._repo(repo).pulls, start=1)
        ]
        raise _AnswerError(200, {"count": len(rows), "start": 0, "discussions": rows})

    def _resolve(self, repo: str, rev: str, path: str) -> None:
        oid, tree = self._tree_at(self._repo(repo), rev)
        entry = tree.get(unquote(path))
        if entry is None:
            raise _AnswerError(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry.blob_id}"'}
        if entry.lfs is None:
            self._ranged(entry.data, headers)
        headers["X-Linked-Etag"] = f'"{entry.lfs}"'
        headers["X-Linked-Size"] = str(len(entry.data))
        # As on the real hub another host serves large files, to which no token is sent.
        other = self.hub.address.replace("127.0.0.1", "localhost")
        headers["Location"] = f"{other}/blobs/{entry.lfs}"
        raise _AnswerError(302, None, headers)

    def _blob(self, oid: str) -> None:
        if self.headers.get("Authorization"):
            raise _AnswerError(400, {"error": "a token came to the wrong host"})
        self._ranged(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def _ranged(self, data: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            raise _AnswerError(200, data, headers)
        begin, end = int(match[1]), int(match[2] or len(data) - 1)
        part = data[begin : end + 1]
        headers["Content-Range"] = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}"
        raise _AnswerError(206, part, headers)


def _row(name: str, entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": name, "size": len(entry.data)}
    row["oid"] = entry.blob_id
    if entry.lfs is not None:
        row["lfs"] = {"oid": entry.lfs, "size": len(entry.data), "pointerSize": 134}
    return row


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
