"""`toast export --push`, to a hub on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import toast


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/api/repos/create" in self.path:
            self.answer({"url": f"http://{self.headers['Host']}/me/mine", "name": "me/mine"})
        elif "/preupload/" in self.path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                if (entry := json.loads(line))["key"] == "file":
                    import base64

                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            where = f"http://{self.headers['Host']}/me/mine/commit/0"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": where, "hookOutput": ""})
        else:
            self.answer({})

    def do_GET(self) -> None:
        self.answer({"id": "me/mine", "sha": "0" * 40, "siblings": []})

    def answer(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The address of an endpoint on loopback, and the files that it was given."""
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`online(address)`: that is where the hub is from now on."""
    from huggingface_hub import constants

    def at(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")

    return at


@pytest.mark.usefixtures("quickly")
def test_an_export_is_uploaded(
    here: Path, run: Path, hub: tuple[str, dict[str, bytes]], online: Callable[[str], None]
) -> None:
    endpoint, files = hub
    online(endpoint)
    said = toast("export", "--run", run, "--out", here / "a.safetensors", "--push", "me/mine")
    assert said.code == 0, said.err
    assert "Uploaded: " in said.out and "me/mine" in said.out
    assert files["a.safetensors"] == (here / "a.safetensors").read_bytes()


@pytest.mark.usefixtures("quickly")
def test_a_folder_for_transformers_is_uploaded_whole(
    here: Path, run: Path, hub: tuple[str, dict[str, bytes]], online: Callable[[str], None]
) -> None:
    endpoint, files = hub
    online(endpoint)
    said = toast("export", "--run", run, "--format", "hf", "--out", here / "hf", "--push", "me/mine")
    assert said.code == 0, said.err
    assert files == {path.name: path.read_bytes() for path in (here / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= files.keys()


@pytest.mark.usefixtures("quickly")
def test_an_upload_that_fails_keeps_the_export(here: Path, run: Path, online: Callable[[str], None]) -> None:
    online("http://127.0.0.1:9")
    said = toast("export", "--run", run, "--out", here / "a.safetensors", "--push", "me/mine")
    said.fails(1, error="export.upload-failed")
    assert (here / "a.safetensors").is_file()
