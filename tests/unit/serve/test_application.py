"""The HTTP paths and the engine without a network: before the models are loaded, and when a model fails."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.serving import generate_alone, make_served
from toast_cli.serve.application import build_application
from toast_cli.serve.batch import DecodingBatch
from toast_cli.serve.engine import Engine, EngineStoppedError
from toast_cli.serve.options import ServerOptions, is_loopback
from toast_cli.serve.served_model import ServedModel, name_runs
from toast_cli.utils.errors import ToastError, UsageError

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0}


class Application:
    """The application of an engine, asked without a network. A stream is returned as the list of its events."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.log: list[str] = []
        self.app = build_application(engine, ServerOptions((Path("run"),), **options), self.log.append)

    def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None, **headers: str) -> tuple[int, Any]:
        body = b"" if fields is None else json.dumps(fields).encode()
        named = {"host": "localhost", "content-type": "application/json", **headers}
        scope = {
            **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"},
            **{"method": method, "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http"},
            **{"query_string": b"", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1)},
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        }
        sent: list[dict[str, Any]] = []

        async def run() -> None:
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> dict[str, Any]:
                if not messages:
                    await asyncio.sleep(60)
                return messages.pop(0)

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            await self.app(scope, receive, send)

        asyncio.run(run())
        content = b"".join(message.get("body", b"") for message in sent).decode()
        events = [json.loads(event) for event in content.removesuffix("data: [DONE]\n\n").split("data: ")[1:]]
        return sent[0]["status"], events or json.loads(content)


def start(engine: Engine) -> None:
    loaded = Event()
    engine.start(loaded.set)
    assert loaded.wait(30)


def test_requests_are_refused_until_the_models_are_loaded() -> None:
    allowed = Event()

    def load() -> dict[str, ServedModel]:
        allowed.wait(30)
        return {"run": make_served()}

    engine = Engine(load, 4, 4, print)
    asked, loaded = Application(engine), Event()
    engine.start(loaded.set)
    assert asked.ask("GET", "/health") == (503, {"status": "loading", "running": 0, "waiting": 0, "models": []})
    status, content = asked.ask("POST", "/v1/chat/completions", CHAT)
    assert (status, content["error"]["code"]) == (503, "loading")
    allowed.set()
    assert loaded.wait(30)
    assert asked.ask("GET", "/health")[0] == 200
    assert asked.ask("POST", "/v1/chat/completions", CHAT)[0] == 200
    engine.refuse_new()
    status, content = asked.ask("POST", "/v1/chat/completions", CHAT)
    assert (status, content["error"]["code"]) == (503, "stopping")
    assert asked.ask("GET", "/health")[0] == 503
    engine.stop(10)
    with pytest.raises(EngineStoppedError):
        engine.submit([])


def test_an_error_of_loading_is_kept() -> None:
    def load() -> dict[str, ServedModel]:
        raise ToastError("There is no run.", code="run.none-found")

    engine = Engine(load, 4, 4, print)
    start(engine)
    assert engine.state == "failed" and isinstance(engine.error, ToastError)


@pytest.mark.parametrize("part", ["_step", "join"])
def test_a_model_that_fails_ends_its_answers_and_not_the_server(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    lines: list[str] = []
    served = make_served()
    engine = Engine(lambda: {"run": served}, 4, 4, lines.append)
    start(engine)
    asked = Application(engine)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(DecodingBatch, part, fail)
        status, content = asked.ask("POST", "/v1/chat/completions", CHAT)
        assert (status, content["error"]["code"]) == (500, "generation_failed")
    assert lines == ["Generation failed: RuntimeError: out of memory"]
    status, content = asked.ask("POST", "/v1/completions", {"prompt": [40, 41], "max_tokens": 6, "temperature": 0})
    expected = generate_alone(served, [40, 41], 6)
    assert content["choices"][0]["text"] == served.tokenizer.decode(expected, skip_special_tokens=True)
    assert engine.running == engine.waiting == 0
    engine.stop(10)


def test_a_failure_within_a_stream_is_its_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(lambda: {"run": make_served()}, 4, 4, lambda _: None)
    start(engine)
    asked, stream = Application(engine), {**CHAT, "stream": True}
    status, events = asked.ask("POST", "/v1/chat/completions", stream)
    assert status == 200 and events[-1]["choices"][0]["finish_reason"] == "length"
    monkeypatch.setattr(DecodingBatch, "_step", lambda _: 1 / 0)
    status, events = asked.ask("POST", "/v1/chat/completions", stream)
    assert status == 200 and events[-1]["error"]["code"] == "generation_failed"
    assert re.fullmatch(r"POST /v1/chat/completions 200 model=run .* error=generation_failed .* s", asked.log[-1])
    engine.stop(10)


def test_a_setting_that_transformers_refuses_fails_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    served = make_served()
    engine = Engine(lambda: {"run": served}, 4, 4, print)
    start(engine)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no such setting")

    asked = Application(engine)
    with monkeypatch.context() as broken:
        broken.setattr(served.chat, "plan_decoding", refuse)
        status, content = asked.ask("POST", "/v1/chat/completions", CHAT)
    assert status == 500 and content["error"]["message"] == "Invalid settings: no such setting"
    assert asked.ask("POST", "/v1/chat/completions", CHAT)[0] == 200
    engine.stop(10)


def test_a_run_without_a_format_takes_one_message() -> None:
    served = make_served()
    served.chat.template = None
    engine = Engine(lambda: {"run": served}, 4, 4, print)
    start(engine)
    asked = Application(engine)
    assert asked.ask("POST", "/v1/chat/completions", CHAT)[0] == 200
    status, content = asked.ask("POST", "/v1/chat/completions", {**CHAT, "messages": CHAT["messages"] * 2})
    assert (status, content["error"]["code"]) == (400, "no_chat_format")
    engine.stop(10)


def test_a_key_and_a_host_are_checked_before_anything_else() -> None:
    engine = Engine(dict, 4, 4, print)
    start(engine)
    keyed, open_to_all = Application(engine, api_key="k"), Application(engine)
    assert keyed.ask("GET", "/v1/models")[0] == 401
    assert keyed.ask("GET", "/v1/models", authorization="Bearer other")[0] == 401
    assert keyed.ask("GET", "/v1/models", authorization="Bearer k", host="example.org")[0] == 200
    assert open_to_all.ask("GET", "/v1/models", host="example.org")[0] == 403
    assert open_to_all.ask("GET", "/v1/models", host="[::1]:8000")[0] == 200
    assert Application(engine, host="0.0.0.0").ask("GET", "/v1/models", host="example.org")[0] == 200
    engine.stop(10)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_loopback_is_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_runs_are_named_by_their_folders(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/birds", "b/birds", "c/trees", "d/x.safetensors")]
    assert name_runs(paths) == ["a/birds", "b/birds", "trees", "x"]
    with pytest.raises(UsageError):
        name_runs([paths[0], paths[0]])
    assert name_runs([paths[0]]) == ["birds"]
