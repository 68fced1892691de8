"""`nanokimi serve`, asked by the `openai` package's own client and by hostile ones, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, TINY_GPT, TINY_KIMI
from test_api import python_in

from nanokimi import cli
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.generation.engine import Engine
from nanokimi.generation.sampling import Sampling
from nanokimi.generation.text import TextSettings, complete
from nanokimi.model.build import build_model
from nanokimi.serve.requests import understand

openai = pytest.importorskip("openai", reason="the openai package is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed: nanokimi[serve]")
CONTEXT = 32


class Server:
    """The application in a thread, with two models of bytes."""

    def __init__(self, **settings: Any) -> None:
        from nanokimi.serve.app import build_app
        from nanokimi.serve.worker import Served, Worker

        self.models = {
            name: build_model(replace(config, vocab_size=256, initializer_range=0.3), 0).eval()
            for name, config in (("nanokimi", TINY_KIMI), ("nanogpt", TINY_GPT))
        }
        served = {n: Served(n, Engine(m), ByteTokenizer(), 1) for n, m in self.models.items()}
        self.worker = Worker(settings.pop("at_once", 8), settings.pop("waiting", 8))
        app = build_app(
            served, self.worker, **{"most_tokens": 10**6, "key": None, "loopback": True, **settings}
        )
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.socket]))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def client(self, key: str = "none") -> Any:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=PATIENCE
        )

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data) if data.startswith(b"{") else {"text": data.decode()}

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def expected(server: Server, model: str, prompt: str, seed: int, tokens: int, **choice: Any) -> str:
    settings = TextSettings(max_new_tokens=tokens, seed=seed, sampling=Sampling(**choice))
    return complete(server.models[model], ByteTokenizer(), prompt, settings)[0].text


def test_the_client_lists_the_models(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["nanokimi", "nanogpt"]
    assert server.client().models.retrieve("nanogpt").owned_by == "nanokimi"


@pytest.mark.parametrize("model", ["nanokimi", "nanogpt"])
def test_the_client_gets_the_engines_text(server: Server, model: str) -> None:
    found = server.client().completions.create(
        model=model, prompt="Once", max_tokens=50, seed=3, temperature=0.9, top_p=0.9
    )
    assert found.choices[0].text == expected(server, model, "Once", 3, 50, temperature=0.9, top_p=0.9)
    assert found.choices[0].finish_reason == "length" and found.object == "text_completion"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (4, 50, 54)
    assert found.usage.cache_bytes > 0


def test_the_example_of_the_documents_runs(server: Server) -> None:
    (example,) = python_in("docs/writing.md")
    exec(example.replace("8000", str(server.port)).replace('model="x"', 'model="nanogpt"'), {})


def test_the_client_streams(server: Server) -> None:
    asked: dict[str, Any] = dict(model="nanogpt", prompt=["a", "bc"], n=2, max_tokens=20, seed=1, echo=True)
    asked["extra_body"] = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1}
    whole = server.client().completions.create(**asked)
    texts, ends, last = ["", "", "", ""], {}, None
    options = {"include_usage": True}
    for chunk in server.client().completions.create(**asked, stream=True, stream_options=options):
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices] and len(set(texts)) == 4
    assert ends == dict.fromkeys(range(4), "length") and last is not None
    assert last.usage.completion_tokens == 80 and last.usage.prompt_tokens == 3
    choice = dict(temperature=1.0, top_p=1.0, top_k=20, min_p=0.01, repetition_penalty=1.1)
    assert texts[3] == "bc" + expected(server, "nanogpt", "bc", 2, 20, **choice)


def test_a_stop_string_ends_a_text(server: Server) -> None:
    text = expected(server, "nanokimi", "x", 3, 40, temperature=1.0)
    stop = text[9:11]
    found = server.client().completions.create(
        model="nanokimi", prompt="x", max_tokens=40, seed=3, stop=["never this", stop]
    )
    assert found.choices[0].text == text[: text.find(stop)] and found.choices[0].finish_reason == "stop"


GOOD = {"model": "nanogpt", "prompt": "a"}
HOSTILE: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "gpt-5"}, 404, "there is nanokimi, nanogpt, not 'gpt-5'"),
    ({"model": None}, 404, "not no model"),
    ({"prompt": None}, 400, "prompt is not a text"),
    ({"prompt": ""}, 400, "the prompt is empty"),
    ({"prompt": []}, 400, "prompt has 0 texts"),
    ({"prompt": ["a"] * 65}, 400, "prompt has 65 texts"),
    ({"prompt": [1, 256]}, 400, "token ids from 0 to 255"),
    ({"prompt": [True]}, 400, "prompt is not a text"),
    ({"prompt": "\ud800"}, 400, "half a character"),
    ({"prompt": "a" * 33}, 400, "the prompt has 33 tokens, and the model reads 32"),
    ({"max_tokens": 10**7}, 400, "it must be 0 to 1000000"),
    ({"max_tokens": -1}, 400, "max_tokens is -1"),
    ({"max_tokens": 1.5}, 400, "max_tokens is not a whole number"),
    ({"max_tokens": True}, 400, "max_tokens is not a whole number"),
    ({"n": 65}, 400, "n is 65"),
    ({"n": 33, "prompt": ["a", "b"]}, 400, "asks for 66 texts"),
    ({"temperature": -1}, 400, "temperature is -1"),
    ({"temperature": float("nan")}, 400, "temperature is nan"),
    ({"temperature": 10**400}, 400, "too large"),
    ({"temperature": 1e-300}, 400, "logits overflow"),
    ({"top_p": 0}, 400, "top_p is 0"),
    ({"top_k": 0}, 400, "top_k is 0"),
    ({"seed": 2**70}, 400, "seed is too large"),
    ({"stop": [""]}, 400, "stop is not a text"),
    ({"stop": {"a": 1}}, 400, "stop is not a text"),
    ({"logprobs": 5}, 400, "logprobs is not supported here"),
    ({"presence_penalty": 1}, 400, "presence_penalty is not supported here"),
    ({"best_of": 4}, 400, "best_of is not supported here"),
    ({"stream": "yes"}, 400, "stream is not true or false"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options has no effect without stream"),
    ({"sto\x00p\n": 1}, 400, "there is no field 'sto?p '"),
]


@pytest.mark.parametrize(("change", "status", "message"), HOSTILE)
def test_hostile_fields_are_answered_by_one_line(
    server: Server, change: dict[str, Any], status: int, message: str
) -> None:
    found, content = server.ask("POST", "/v1/completions", json.dumps({**GOOD, **change}).encode())
    assert found == status and message in content["error"]["message"], content
    assert "\n" not in content["error"]["message"] and "Traceback" not in json.dumps(content)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("POST", "/v1/completions", b"not json", {}, 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"[" * 200_000, {}, 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"[1]", {}, 400, "not a JSON object"),
        ("POST", "/v1/completions", b"\xff", {}, 400, "the body is not JSON"),
        ("POST", "/v1/completions", b'{"n": ' + b"9" * 5000 + b"}", {}, 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"x" * 1_100_000, {}, 413, "more than 1048576 bytes"),
        ("POST", "/v1/completions", b"{}", {"Content_Type": "text/plain"}, 415, "not application/json"),
        ("GET", "/v1/completions", None, {}, 405, "use POST /v1/completions"),
        ("POST", "/v1/chat/completions", b"{}", {}, 404, "this is no chat model"),
        ("GET", "/../../etc/passwd", None, {}, 404, "is not served"),
        ("GET", "/v1/models/none", None, {}, 404, "not 'none'"),
    ],
)
def test_hostile_requests_are_answered_by_one_line(
    server: Server,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    message: str,
) -> None:
    found, content = server.ask(method, path, body, **headers)
    assert found == status and message in content["error"]["message"], content


def test_a_request_that_names_no_number_of_tokens_fits_the_servers_limit() -> None:
    served = {"model": "nanogpt", "prompt": "a"}
    assert understand(served, ByteTokenizer(), CONTEXT, 4).requests[0].max_new_tokens == 4
    assert understand(served, ByteTokenizer(), CONTEXT, 100).requests[0].max_new_tokens == 16


def test_other_names_for_this_machine_are_refused(server: Server) -> None:
    """A page that makes its own name point to 127.0.0.1 must not reach the models."""
    assert server.ask("GET", "/v1/models", Host="evil.example")[0] == 400
    assert server.ask("GET", "/v1/models", Host=f"localhost:{server.port}")[0] == 200


def test_the_queue_is_limited_and_a_client_may_leave() -> None:
    server = Server(at_once=1, waiting=1, key="secret")
    try:
        assert server.ask("GET", "/v1/models")[0] == 401
        client = server.client("secret")
        endless = dict(model="nanogpt", prompt="a", max_tokens=10**6, stream=True)
        streams = [client.completions.create(**endless) for _ in range(2)]
        next(iter(streams[0]))
        with pytest.raises(openai.RateLimitError, match="2 requests are waiting: try again later"):
            client.completions.create(model="nanogpt", prompt="a")
        for stream in streams:
            stream.close()
        deadline = time.monotonic() + PATIENCE
        while server.worker.present and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (
            client.completions.create(model="nanogpt", prompt="a", max_tokens=3).usage.completion_tokens == 3
        )
    finally:
        server.close()


def test_an_error_while_writing_reaches_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    try:
        with monkeypatch.context() as patch:

            def broken(*_: Any) -> int:
                raise KeyError("a secret path")

            patch.setattr(Engine, "step", broken)
            with pytest.raises(openai.InternalServerError, match="unexpected KeyError") as found:
                server.client().completions.create(model="nanogpt", prompt="a")
            assert "secret" not in str(found.value)
        assert server.client().completions.create(model="nanogpt", prompt="a").usage.completion_tokens == 16
    finally:
        server.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "missing is not a folder"),
        (["missing", "--port", "70000"], "--port is 70000: it must be 0 to 65535"),
        (["missing", "--at_once", "0"], "--at_once is 0"),
        (["missing", "--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = [] if "--port" in words else ["--port", "0"]
    assert cli.main(["serve", *words, *port]) == 2
    assert message in capsys.readouterr().err


def test_other_machines_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", str(tmp_path / "none"), "--host", "0.0.0.0", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "warning: 0.0.0.0 can be reached from other machines, by anyone (set NANOKIMI_API_KEY" in said
