"""Asking a model behind any OpenAI-compatible address."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.text import one_line

TRIES = 4
MAX_ANSWER_BYTES = 1 << 22
ANSWER_TOKENS = 300


@dataclass(frozen=True)
class Endpoint:
    """The address, such as https://api.openai.com/v1, and the model there that is asked."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    kind: str = "chat"
    """chat or completions."""
    timeout: float = 120.0
    """Seconds to wait for an answer."""
    pause: float = 1.0
    """Seconds before the first repetition of a request; doubled before each further one."""

    def ask(self, prompt: str) -> str:
        """The model's answer. An overloaded or unreachable server is asked again, TRIES times in all.

        Raises:
            UserError: the server refuses the request, as with a wrong key or model.
            TrainingError: it does not answer, or not as an OpenAI-compatible server does.
        """
        why = ""
        for number in range(TRIES):
            if number:
                time.sleep(self.pause * 2 ** (number - 1))
            try:
                return self._once(prompt)
            except urllib.error.HTTPError as error:
                why = f"status {error.code}: {reason_in(error.read(10_000))}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise UserError(
                        f"{self.url} refuses the request ({why}): check URL, model and key"
                    ) from None
            except (OSError, ValueError) as error:
                why = one_line(getattr(error, "reason", error)) or type(error).__name__
        raise TrainingError(f"{self.url} does not answer as expected ({why[:300]}), asked {TRIES} times")

    def _once(self, prompt: str) -> str:
        chat = self.kind == "chat"
        asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body = {"model": self.model, "temperature": 0, "max_tokens": ANSWER_TOKENS, **asked}
        headers = {"Content-Type": "application/json", "User-Agent": "nanokimi"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        path = "chat/completions" if chat else "completions"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return text_in(json.loads(answer.read(MAX_ANSWER_BYTES)), chat)


def text_in(answer: Any, chat: bool) -> str:
    """The text in an answer. Raises ValueError if it has none."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if chat else choice["text"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("the answer is not in OpenAI's form") from None
    if text is not None and not isinstance(text, str):
        raise ValueError("the answer holds no text")
    return text or ""


def reason_in(body: bytes) -> str:
    """The message of an error's body, on one line."""
    try:
        found = json.loads(body)["error"]
        return one_line(found["message"] if isinstance(found, dict) else found)[:200]
    except (ValueError, KeyError, TypeError):
        return one_line(body.decode(errors="replace"))[:200] or "no reason given"
