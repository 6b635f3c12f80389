"""The server, with the client of OpenAI: answers, streams, limits, clients that leave, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.cli.conftest import Said, toast, toast_from_the_shell
from tests.forks import Command, begin
from tests.language import instructions, make_model, write_json

PROMPT = "Say yes, 3."
PREFERRED = {"temperature": 0.8, "top_p": 0.9}
METHODS = ("toast", "lora", "full")


@dataclass
class Server:
    """A server in a process of its own."""

    command: Command
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key="none", max_retries=0, **options)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        return self.send("GET", path)

    def send(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body or None, {"Content-Type": kind, **headers})
        response = connection.getresponse()
        content = json.loads(response.read())
        connection.close()
        return response.status, content

    def stop(self) -> int:
        os.kill(self.command.process.pid or 0, signal.SIGTERM)
        return self.command.end()


def start(folder: Path, *words: str | Path, **environment: str) -> Server:
    """Start a server on a free port and wait until it is ready."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = Server(begin(folder, "serve", *words, "--port", str(port), "--device", "cpu", **environment), port)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert server.command.process.exitcode is None, server.command.err
        with contextlib.suppress(OSError):
            if server.get("/health")[0] == 200:
                return server
        time.sleep(0.05)
    server.command.kill()
    raise TimeoutError(server.command.err)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of the same tiny model, whose weights are large enough that answers depend on every token."""
    folder = tmp_path_factory.mktemp("runs")
    model, data = make_model(folder / "model"), write_json(folder / "data.json", instructions(20))
    with torch.no_grad():
        module = LlamaForCausalLM.from_pretrained(model)
        for weight in module.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        module.save_pretrained(model)
    made = {}
    for method in METHODS:
        made[method] = folder / method
        chosen = ["--backbone", f"llama:{model}", "--dataset", f"alpaca:{data}", "--method", method]
        said = toast("tune", *chosen, "--output-dir", made[method], "training.epochs=1", "training.lr=0.001")
        assert said.code == 0, said.err
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> Iterator[Server]:
    words = [word for run in runs.values() for word in ("--run", str(run))]
    started = start(tmp_path_factory.mktemp("server") / "said", *words, "--max-tokens", "200", "--max-body", "20000")
    yield started
    if started.command.process.exitcode is None:
        started.command.kill()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client()


def generate(run: Path, prompt: str, *options: str) -> str:
    said = toast("generate", prompt, "--run", run, "--device", "cpu", "--json", *options)
    assert said.code == 0, said.err
    return str(json.loads(said.out)["answer"])


def ask(client: openai.OpenAI, model: str = "toast", prompt: str = PROMPT, **settings: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 40, **settings}
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], **settings)


@pytest.mark.parametrize("method", METHODS)
def test_a_greedy_answer_is_that_of_generate(client: openai.OpenAI, runs: dict[str, Path], method: str) -> None:
    texts = set()
    for prompt in (PROMPT, "Name three birds, please.", "Ü?"):
        answer = ask(client, method, prompt).choices[0].message.content
        assert answer == generate(runs[method], prompt, "--max-new-tokens", "40")
        texts.add(answer)
    assert len(texts) == 3 and all(len(text) > 5 for text in texts)


def test_a_seed_gives_the_answer_of_generate_with_it(client: openai.OpenAI, runs: dict[str, Path]) -> None:
    settings = ("--max-new-tokens", "40", "--temperature", "0.8", "--top-p", "0.9", "--seed", "7")
    expected = generate(runs["toast"], PROMPT, *settings)
    answers = [ask(client, seed=7, **PREFERRED).choices[0].message.content for _ in range(2)]
    assert answers == [expected, expected]
    both = ask(client, seed=7, n=2, **PREFERRED)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].message.content == expected != both.choices[1].message.content


def test_a_completion_continues_the_text(client: openai.OpenAI, runs: dict[str, Path]) -> None:
    expected = generate(runs["toast"], "Once upon", "--raw", "--max-new-tokens", "30")
    done = client.completions.create(model="toast", prompt=["Once upon", "Say"], temperature=0, max_tokens=30)
    assert [choice.index for choice in done.choices] == [0, 1]
    assert done.choices[0].text == expected
    assert done.usage is not None and done.usage.prompt_tokens == len("Once upon") + 1 + len("Say") + 1
    ids = client.completions.create(model="toast", prompt=[1, 40, 41, 42], temperature=0, max_tokens=3)
    assert ids.usage is not None and ids.usage.prompt_tokens == 4


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_stream_has_the_same_text_and_ends_with_usage(client: openai.OpenAI, seed: int) -> None:
    whole = ask(client, seed=seed, **PREFERRED)
    stream = ask(client, seed=seed, stream=True, stream_options={"include_usage": True}, **PREFERRED)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 1
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not chunks[-1].choices and chunks[-1].usage == whole.usage


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    free = ask(client, seed=1, **PREFERRED).choices[0]
    assert free.finish_reason == "length"
    middle = len(free.message.content) // 2
    stop = free.message.content[middle : middle + 3]
    for settings in ({"stop": stop}, {"stop": ["never said", stop]}):
        ended = ask(client, seed=1, **PREFERRED, **settings).choices[0]
        assert ended.finish_reason == "stop"
        assert ended.message.content == free.message.content.partition(stop)[0]
    pieces = ask(client, seed=1, stop=stop, stream=True, **PREFERRED)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    assert streamed == free.message.content.partition(stop)[0]


def test_models_are_listed_and_found(server: Server, client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == set(METHODS)
    assert client.models.retrieve("lora").id == "lora"
    code, health = server.get("/health")
    assert code == 200 and health["status"] == "ready" and sorted(health["models"]) == sorted(METHODS)
    assert "full has a backbone of its own" in server.command.err
    assert "lora has a backbone of its own" not in server.command.err


def test_fifty_requests_at_once_get_their_own_answers(server: Server, client: openai.OpenAI) -> None:
    wanted = [
        {"model": model, "prompt": f"Say {word}.", "max_tokens": tokens, **settings}
        for word, tokens in (("yes", 30), ("no, and a good deal more than that", 21), ("a", 40), ("Ü", 7), ("?", 35))
        for model in ("toast", "lora")
        for settings in ({}, {"seed": 5, **PREFERRED}, {"seed": 6, "temperature": 1.2}, {}, {"seed": 9, **PREFERRED})
    ]
    assert len(wanted) == 50

    async def ask_all() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as asker:

            async def ask_one(prompt: str, **settings: Any) -> Any:
                message: Any = {"role": "user", "content": prompt}
                return await asker.chat.completions.create(messages=[message], **{"temperature": 0, **settings})

            return await asyncio.gather(*(ask_one(**one) for one in wanted))

    together = [answer.choices[0].message.content for answer in asyncio.run(ask_all())]
    alone = [ask(client, **one).choices[0].message.content for one in wanted]
    assert together == alone


def post_chat(server: Server, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": "toast", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2, **fields}
    return server.send("POST", "/v1/chat/completions", json.dumps(body).encode())


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gpt-4"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "messages"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 100_000}, 400, "max_tokens"),
        ({"max_completion_tokens": 100_000}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 3}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"n": 0}, 400, "n"),
        ({"n": 1000}, 400, "n"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": ["x"] * 20}, 400, "stop"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"logit_bias": {"5": 3}}, 400, "logit_bias"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"seed": "x"}, 400, "seed"),
    ],
)
def test_a_bad_request_is_refused_with_its_field(
    server: Server, fields: dict[str, Any], status: int, param: str
) -> None:
    code, content = post_chat(server, **fields)
    assert (code, content["error"]["param"]) == (status, param), content
    assert content["error"]["type"] == "invalid_request_error" and content["error"]["message"]


def test_other_bad_requests_have_the_status_of_http(server: Server) -> None:
    path = "/v1/chat/completions"
    assert server.send("POST", path, b"{")[0] == 400
    assert server.send("POST", path, b"[" * 5000)[0] == 400
    assert server.send("POST", path, b"[1]")[0] == 400
    assert server.send("POST", path, b'{"model": "toast"}', "text/plain")[0] == 400
    assert server.send("POST", path, b" " * 20_001)[0] == 413
    assert server.get("/v1/nothing")[0] == 404
    assert server.get(path)[0] == 405
    assert server.send("GET", "/v1/models", Host="evil.example")[0] == 403
    nested = b'{"model": "toast", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    for error in (server.send("POST", path, nested)[1], server.get("/v1/nothing")[1]):
        assert set(error["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(openai.BadRequestError):
        server.client().completions.create(model="toast", prompt=[99_999])


def test_a_body_in_chunks_is_limited_too(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    chunks = (b" " * 1000 for _ in range(30))
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/v1/chat/completions", chunks, headers, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_unknown_fields_are_named(server: Server) -> None:
    raw = server.client().chat.completions.with_raw_response.create(
        model="toast",
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=2,
        user="me",
        presence_penalty=0,
        extra_body={"min_p": 0.1},
    )
    assert raw.headers["x-toast-ignored-fields"] == "min_p"


def wait_until_idle(server: Server, within: float = 30) -> None:
    until = time.monotonic() + within
    while (health := server.get("/health")[1])["running"] or health["waiting"]:
        assert time.monotonic() < until, health
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server: Server, stream: bool) -> None:
    body = {"model": "toast", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "n": 16, "seed": 1}
    data = json.dumps({**body, "stream": stream}).encode()
    before = len(server.command.err)
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        fields = ("Host: localhost", "Content-Type: application/json", f"Content-Length: {len(data)}")
        head = "\r\n".join(("POST /v1/chat/completions HTTP/1.1", *fields, "", ""))
        raw.sendall(head.encode() + data)
        until = time.monotonic() + 30
        while not server.get("/health")[1]["running"]:
            assert time.monotonic() < until
    wait_until_idle(server)
    until = time.monotonic() + 10
    while "end=cut" not in server.command.err[before:]:
        assert time.monotonic() < until, server.command.err[before:]
        time.sleep(0.05)


def test_the_log_has_a_line_a_request_and_no_prompt(server: Server, client: openai.OpenAI) -> None:
    before = len(server.command.err)
    ask(client, prompt="a very secret prompt", max_tokens=3)
    time.sleep(0.3)
    lines = server.command.err[before:].splitlines()
    (line,) = [line for line in lines if "chat/completions" in line]
    assert re.fullmatch(r"POST /v1/chat/completions 200 model=toast prompt=\d+ completion=3 end=length [\d.]+ s", line)
    assert "secret" not in server.command.err


def test_a_full_queue_is_refused_and_a_key_is_required(tmp_path: Path, text_run: Path) -> None:
    words = ("--run", text_run, "--max-batch", "1", "--max-queue", "2")
    server = start(tmp_path / "said", *words, TOAST_API_KEY="secret key")
    try:
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        assert server.get("/health")[0] == 200
        asker = openai.OpenAI(base_url=server.url, api_key="secret key", max_retries=0)
        assert [model.id for model in asker.models.list()] == ["run"]
        with pytest.raises(openai.RateLimitError) as refused:
            ask(asker, "run", n=4)
        assert refused.value.response.headers["retry-after"] == "1"
        assert len(ask(asker, "run", n=3).choices) == 3
        assert len(ask(asker, "run", n=3).choices) == 3
        assert "secret key" not in server.command.err
    finally:
        assert server.stop() == 0


def test_sigterm_finishes_answers_within_the_grace_period(tmp_path: Path, text_run: Path) -> None:
    server = start(tmp_path / "said", "--run", text_run, "--grace", "60")
    stream = ask(server.client(), "run", stream=True, max_tokens=150, seed=1, temperature=1.5)
    next(iter(stream))
    os.kill(server.command.process.pid or 0, signal.SIGTERM)
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert server.command.end() == 0
    assert server.command.err.splitlines()[-1] == "Stopped."
    with pytest.raises(openai.APIConnectionError):
        ask(server.client(), "run")


def test_sigterm_cuts_answers_after_the_grace_period(tmp_path: Path, text_run: Path) -> None:
    server = start(tmp_path / "said", "--run", text_run, "--grace", "0")
    failures: list[Exception] = []

    def wait_for_answer() -> None:
        try:
            ask(server.client(), "run", n=16, max_tokens=200, seed=1, temperature=1.5)
        except openai.APIError as error:
            failures.append(error)

    asking = threading.Thread(target=wait_for_answer)
    asking.start()
    until = time.monotonic() + 30
    while not server.get("/health")[1]["running"]:
        assert time.monotonic() < until
    assert server.stop() == 0
    asking.join()
    assert isinstance(failures[0], openai.InternalServerError) and failures[0].status_code == 503


def test_what_cannot_be_served_ends_the_command(tmp_path: Path, linear_run: Path, text_run: Path) -> None:
    toast("serve", "--run", tmp_path / "none", "--port", "0").fails(2, error="adapter.missing")
    toast("serve", "--run", linear_run, "--port", "0").fails(2, error="task.not-a-language-model")
    toast("serve", "--run", text_run, "--run", text_run, "--port", "0").fails(2, error="serve.duplicate-run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        toast("serve", "--run", text_run, "--port", port).fails(2, error="serve.address-unavailable")
    toast("serve", "--run", text_run, "--api-key", " ").fails(2, error="cli.invalid-value")


def test_without_the_libraries_one_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('no', name='fastapi')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    said: Said = toast_from_the_shell("serve", "--run", tmp_path, PYTHONPATH=path)
    said.fails(1, "The server needs the library 'fastapi'.", "uvicorn>=")
