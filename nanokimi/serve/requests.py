"""What a client may ask of /v1/completions, checked field by field before anything is computed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nanokimi.config.checks import require_sampling
from nanokimi.data.tokenizers.opening import opening_ids
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.errors import UserError
from nanokimi.generation.engine import Request
from nanokimi.generation.sampling import Sampling

MAX_PROMPTS, MAX_CHOICES, MAX_STOPS, MAX_STOP_CHARS = 64, 64, 16, 200
DEFAULT_TOKENS = 16
"""As OpenAI's completions, if `max_tokens` is not given."""
WITHOUT_EFFECT = {
    "best_of": (1, None),
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
    "logprobs": (None,),
    "presence_penalty": (0, None),
    "suffix": ("", None),
}
"""Fields of OpenAI's that this server does not have, with the values that ask for nothing."""
KNOWN = (
    *("model", "prompt", "max_tokens", "n", "stream", "stream_options", "stop", "seed", "echo", "user"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
)


class Refused(Exception):
    """A request that cannot be served: the HTTP status, and a message that says what to do."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def content(self) -> dict[str, Any]:
        """The body of the answer, in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message = UserError(str(self)).args[0]  # one line, without control characters
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request that can be served."""

    prompts: tuple[str, ...]
    """As text, for `echo`."""
    requests: tuple[Request, ...]
    """`n` for each prompt, in order."""
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    echo: bool


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises Refused."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON: send a JSON object") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is not a JSON object")
    unknown = [key for key in found if key not in KNOWN and key not in WITHOUT_EFFECT]
    if unknown:
        raise Refused(400, f"there is no field '{unknown[0][:80]}'", unknown[0][:80])
    for key, nothing in WITHOUT_EFFECT.items():
        if key in found and found[key] not in nothing:
            raise Refused(400, f"{key} is not supported here: leave it out", key)
    return found


def field(body: dict[str, Any], name: str, kinds: tuple[type, ...], default: Any, what: str) -> Any:
    """A field of the right type; null and a missing one are the default. Raises Refused."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise Refused(400, f"{name} is not {what}", name)
    return value


def whole(body: dict[str, Any], name: str, default: int | None, low: int, high: int) -> Any:
    """A whole number from `low` to `high`. Raises Refused."""
    value = field(body, name, (int,), default, "a whole number")
    if value is not None and not low <= value <= high:
        shown = value if abs(value) < 10**18 else "too large"
        raise Refused(400, f"{name} is {shown}: it must be {low} to {high}", name)
    return value


def sampling_in(body: dict[str, Any]) -> Sampling:
    """The sampling that a request asks for; OpenAI's defaults. Raises Refused."""
    numbers = {"temperature": 1.0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
    try:
        values = {
            name: None if (x := field(body, name, (int, float), default, "a number")) is None else float(x)
            for name, default in numbers.items()
        }
        sampling = Sampling(top_k=whole(body, "top_k", None, 1, 1 << 40), **values)  # type: ignore[arg-type]
        require_sampling(sampling)
    except (UserError, OverflowError) as error:
        raise Refused(400, str(error)) from None
    return sampling


def texts_in(body: dict[str, Any], tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """The prompts: a text, several, token ids, or several lists of them; each as text and as ids. Raises Refused.

    A text begins a document, so it gets the end-of-text that stands before one in training; token ids are left alone.
    """
    prompt = body.get("prompt")
    many = isinstance(prompt, list) and not (prompt and all(type(x) is int for x in prompt))
    prompts: list[Any] = list(prompt or []) if many else [prompt]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise Refused(400, f"prompt has {len(prompts)} texts: send 1 to {MAX_PROMPTS}", "prompt")
    found = []
    for one in prompts:
        if isinstance(one, str):
            try:
                ids = opening_ids(tokenizer, one)
            except UserError as error:
                raise Refused(400, str(error), "prompt") from None
        elif isinstance(one, list) and all(type(x) is int and 0 <= x < tokenizer.vocab_size for x in one):
            ids, one = one, tokenizer.decode(one)
        else:
            raise Refused(
                400,
                f"prompt is not a text, token ids from 0 to {tokenizer.vocab_size - 1}, or a list of these",
                "prompt",
            )
        if not ids:
            raise Refused(400, "the prompt is empty: there is nothing to continue", "prompt")
        found.append((one, ids))
    return found


def stops_in(body: dict[str, Any]) -> tuple[str, ...]:
    """The stop strings. Raises Refused."""
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(one, str) and 0 < len(one) <= MAX_STOP_CHARS for one in stops)
    ):
        raise Refused(
            400,
            f"stop is not a text of 1 to {MAX_STOP_CHARS} characters, or up to {MAX_STOPS} of them",
            "stop",
        )
    return tuple(stops)


def understand(body: dict[str, Any], tokenizer: Tokenizer, context: int, most_tokens: int) -> Asked:
    """The request as the engine takes it. Raises Refused for whatever cannot be served."""
    sampling, stop = sampling_in(body), stops_in(body)
    n = whole(body, "n", 1, 1, MAX_CHOICES)
    tokens = whole(body, "max_tokens", min(DEFAULT_TOKENS, most_tokens), 0, most_tokens)
    seed = whole(body, "seed", None, -(2**63), 2**63 - 1)
    if seed is None:
        import secrets

        seed = secrets.randbelow(2**62)  # another text each time, as a client without a seed expects
    stream = field(body, "stream", (bool,), False, "true or false")
    options = field(body, "stream_options", (dict,), {}, "an object")
    if options and not stream:
        raise Refused(400, "stream_options has no effect without stream: leave it out", "stream_options")
    texts = texts_in(body, tokenizer)
    if len(texts) * n > MAX_CHOICES:
        raise Refused(400, f"the request asks for {len(texts) * n} texts: at most {MAX_CHOICES}", "n")
    for _, ids in texts:
        if len(ids) > context:
            raise Refused(
                400,
                f"the prompt has {len(ids)} tokens, and the model reads {context}: shorten it",
                "prompt",
                "context_length_exceeded",
            )
    requests = [
        Request(
            prompt_ids=ids,
            max_new_tokens=tokens,
            sampling=sampling,
            seed=(seed + number) % 2**63,
            stop_id=tokenizer.end_of_text_id,
        )
        for _, ids in texts
        for number in range(n)
    ]
    return Asked(
        prompts=tuple(text for text, _ in texts),
        requests=tuple(requests),
        n=n,
        stop=stop,
        stream=stream,
        include_usage=field(options, "include_usage", (bool,), False, "true or false"),
        echo=field(body, "echo", (bool,), False, "true or false"),
    )
