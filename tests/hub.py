"""A hub on this machine: repositories with commits, small files and LFS, as the hub's own client speaks to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"
LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pt2")
"""Files that the hub asks to be stored by LFS."""


@dataclass
class LocalHub:
    """What a hub holds: the files of each repository, the objects of LFS, and the paths that were asked for.

    Attributes:
        files: the bytes of every file, by repository and name.
        objects: LFS objects by their SHA-256, which commits name.
        by_lfs: names of the files that came by LFS.
        asked: every request, as `METHOD path`.
        authorized: whether every request had the token.
    """

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    by_lfs: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    authorized: bool = True


class HubHandler(BaseHTTPRequestHandler):
    """The paths of the hub that uploads and downloads use."""

    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, path = self.read(), urlparse(self.path).path
        if path == "/api/repos/create":
            name = f"{json.loads(body).get('organization') or 'me'}/{json.loads(body)['name']}"
            self.hub.files.setdefault(name, {})
            self.answer({"url": f"{self.hub.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LFS_SUFFIXES) else "regular" for name in wanted}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            self.answer({"transfer": "basic", "objects": [self.describe(each) for each in json.loads(body)["objects"]]})
        elif path.endswith("/verify"):
            self.answer({})
        elif "/commit/" in path:
            self.commit("/".join(path.split("/")[3:5]), body.decode().splitlines())
        else:
            self.answer({}, status=404)

    def describe(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return where an object of LFS is to be uploaded; nothing if it is there already."""
        size, oid = wanted["size"], wanted["oid"]
        if oid in self.hub.objects:
            return {"oid": oid, "size": size}
        upload = {"href": f"{self.hub.address}/objects/{oid}"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{upload['href']}/verify"}}}

    def commit(self, name: str, lines: list[str]) -> None:
        """Store the files of a commit."""
        for line in lines:
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[name][value["path"]] = self.hub.objects[value["oid"]]
                self.hub.by_lfs.add(value["path"])
        where = f"{self.hub.address}/{name}/commit/{COMMIT}"
        self.answer({"success": True, "commitOid": COMMIT, "commitUrl": where, "hookOutput": ""})

    def do_PUT(self) -> None:
        body, oid = self.read(checked=False), self.path.rpartition("/")[2]
        right = hashlib.sha256(body).hexdigest() == oid
        if right:
            self.hub.objects[oid] = body
        self.answer({}, status=200 if right else 400)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.read()
        parts = [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            self.answer_about("/".join(parts[2:4]), tree="tree" in parts)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.send_file("/".join(parts[:2]), "/".join(parts[4:]))
        else:
            self.answer({}, status=404)

    def answer_about(self, name: str, tree: bool) -> None:
        """Answer what a repository is, or which files it has."""
        files = self.hub.files.get(name)
        if files is None:
            self.answer({"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}, status=404)
        elif tree:
            listed = [{"type": "file", "path": path, "size": len(data), "oid": COMMIT} for path, data in files.items()]
            self.answer(listed)
        else:
            self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})

    def send_file(self, name: str, path: str) -> None:
        """Send a file; one of LFS from the place where its object is."""
        data = self.hub.files.get(name, {}).get(path)
        if data is None:
            self.answer({"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}, status=404)
            return
        digest = hashlib.sha256(data).hexdigest()
        self.answer(data, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-Size": str(len(data))})

    def read(self, checked: bool = True) -> bytes:
        """Return the body of a request, and note the request."""
        self.hub.asked.append(f"{self.command} {self.path}")
        if checked and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.hub.authorized = False
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        """Send JSON or bytes."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def serve_hub() -> Iterator[LocalHub]:
    """Serve an empty hub on loopback inside the block."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (HubHandler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
