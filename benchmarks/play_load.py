"""Many visitors of `nanokimi play` at once: errors, waiting, fairness, and whether the server's memory stays flat.

    python benchmarks/play_load.py RUN [RUN ...] [--users 32] [--seconds 120]

Needs the extra `play`. Starts the server, lets every user write again and again (every eighth wish looks inside), and
prints one JSON object. The exit status is 1 if a request failed or memory grew by more than MOST_GROWTH.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

MOST_GROWTH = 0.05
"""Of the server's memory between the second quarter of the time and the last."""
TOKENS, LOOK_TOKENS = 80, 40
EVERY = 8
"""One wish in so many looks inside."""


@dataclass
class Seen:
    """What happened to all users."""

    finished: list[int]
    """Requests by user."""
    first_signs: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def data_of(kind: str, names: list[str], rng: random.Random) -> list[Any]:
    """The inputs of a request, in the order of the page's."""
    prompt = rng.choice(["Once upon a time", "The boy", "On the morning of this story", "<b>&</b> \u2603"])
    seed = rng.randrange(10**6)
    if kind == "write":
        return [prompt, names, 0.8, 0, 0.95, seed, TOKENS]
    return [prompt, names[:1], 0.8, 0, 0.95, seed, LOOK_TOKENS, "none", "all"]


async def wish(client: httpx.AsyncClient, number: int, session: str, data: list[Any], seen: Seen) -> bool:
    """One request to its end; whether it went well."""
    begun = time.monotonic()
    body = {"data": data, "fn_index": number, "session_hash": session, "event_data": None, "trigger_id": None}
    (await client.post("/gradio_api/queue/join", json=body)).raise_for_status()
    first = None
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        events.raise_for_status()
        async for line in events.aiter_lines():
            if not line.startswith("data:"):
                continue
            message = json.loads(line[5:])
            if message["msg"] == "process_generating" and first is None:
                first = time.monotonic() - begun
            if "nk-message error" in line:
                seen.errors.append(re.sub(r"<[^>]+>", "", line)[:200])
                return False
            if message["msg"] == "process_completed":
                if not message["success"]:
                    seen.errors.append(json.dumps(message)[:200])
                    return False
                seen.first_signs.append(first or 0.0)
                seen.whole.append(time.monotonic() - begun)
                return True
    seen.errors.append("the events ended before the answer")
    return False


async def user(
    url: str, place: int, numbers: dict[str, int], names: list[str], seen: Seen, until: float
) -> None:
    """One visitor, who asks again as soon as an answer is there."""
    rng, count = random.Random(place), place
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        while time.monotonic() < until:
            count += 1
            kind = "look" if count % EVERY == 0 else "write"
            try:
                data = data_of(kind, names, rng)
                went_well = await wish(client, numbers[kind], f"user{place}-{count}", data, seen)
                seen.finished[place] += went_well
            except (httpx.HTTPError, ValueError) as error:
                seen.errors.append(f"{type(error).__name__}: {error}"[:200])


async def watch_memory(process: psutil.Process, seen: Seen, until: float) -> None:
    """The server's resident memory, twice a second."""
    while time.monotonic() < until:
        seen.memory.append(process.memory_info().rss / 1e6)
        await asyncio.sleep(0.5)


async def measure(url: str, process: psutil.Process, users: int, seconds: float) -> dict[str, Any]:
    """Let the users write for so long."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        page = (await client.get("/config")).json()
    numbers = {one["api_name"]: one["id"] for one in page["dependencies"]}
    names = next(
        one["props"]["value"] for one in page["components"] if one["props"].get("elem_id") == "nk-models"
    )
    seen = Seen([0] * users)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        rng = random.Random(0)  # what is computed once, and code that is loaded late, is not the load's
        for kind in ("look", "write"):
            await wish(client, numbers[kind], f"first-{kind}", data_of(kind, names, rng), Seen([0]))
    until = time.monotonic() + seconds
    await asyncio.gather(
        watch_memory(process, seen, until),
        *(user(url, place, numbers, names, seen, until) for place in range(users)),
    )
    quarter = max(len(seen.memory) // 4, 1)
    early = statistics.median(seen.memory[quarter : 2 * quarter] or seen.memory)
    late = statistics.median(seen.memory[-quarter:])
    return {
        "users": users,
        "seconds": seconds,
        "requests": sum(seen.finished),
        "errors": len(seen.errors),
        "first_errors": seen.errors[:3],
        "requests_per_user": [min(seen.finished), max(seen.finished)],
        "seconds_to_first_sign": quantiles(seen.first_signs),
        "seconds_to_whole_answer": quantiles(seen.whole),
        "memory_mb_second_quarter": round(early, 1),
        "memory_mb_last_quarter": round(late, 1),
        "memory_growth": round(late / early - 1, 4),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, in seconds."""
    ordered = sorted(values) or [0.0]
    return {
        "median": round(statistics.median(ordered), 2),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }


def main() -> int:
    """Start the server, measure, and end it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--checkpoint", default="final")
    given = parser.parse_args()
    command = [sys.executable, "-m", "nanokimi", "play", *given.runs, "--port", "0"]
    server = subprocess.Popen([*command, "--checkpoint", given.checkpoint], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        found = re.search(r"http://\S+:\d+", said)
        if not found:
            print(f"the server did not start: {said}", file=sys.stderr)
            return 1
        result = asyncio.run(measure(found[0], psutil.Process(server.pid), given.users, given.seconds))
        print(json.dumps(result, indent=2))
        return int(result["errors"] > 0 or result["memory_growth"] > MOST_GROWTH)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
