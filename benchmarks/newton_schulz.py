"""Muon's step over the roofline of its Newton-Schulz, for a configuration's matrices; the optimizer's share of a step.

    python benchmarks/newton_schulz.py [--config shakespeare-char] [--any.setting VALUE ...]

The matrices are those that Muon updates, stacked by shape, and a step is the whole of it: momentum, Newton-Schulz,
the weights' update. The roofline of a shape is its three products per iteration (X X^T, A A, P X, with X turned to be
wide) and nothing else, at the rate of torch.bmm on exactly those stacks in the dtype that Muon chooses, measured in
turn with it. Shares of the step come from the real `train_step`, with marks around its parts, in every precision the
processor multiplies in.
"""

from __future__ import annotations

import time
from collections import Counter
from statistics import median
from typing import Any

import arms
import torch
from common import CPU, OtherLoad, finish, options_parser, rates, rates_record, shown, spread, table

from nanokimi.config import RunConfig
from nanokimi.kernels.muon import Muon, fastest_dtype
from nanokimi.optim.groups import assign
from nanokimi.profiling.bench import step_roofline, synthetic_state, time_parts
from nanokimi.profiling.roofline import native_dtypes


def matrix_sizes(config: RunConfig) -> dict[tuple[int, int], int]:
    """How many matrices of each shape, (rows, columns), Muon updates."""
    optim, counts = config.family.optim, Counter[tuple[int, int]]()
    heads = config.family.model.num_attention_heads if optim.split_heads else 1
    for name, p in synthetic_state(config).model.named_parameters():
        algorithm, blocks = assign(name, tuple(p.shape), num_heads=heads, router=optim.router)
        if algorithm == "muon":
            rows, columns = p.shape[-2] // blocks, p.shape[-1]
            counts[rows, columns] += blocks * (len(p) if p.dim() == 3 else 1)
    return dict(counts)


def timed(call: object, repeats: int) -> float:
    """Milliseconds of one call, as the mean of several."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()  # type: ignore[operator]
    return (time.perf_counter() - start) / repeats * 1e3


def race(
    count: int, rows: int, columns: int, steps: int, rounds: int, repeats: int
) -> tuple[list[float], list[float]]:
    """(Muon's step, roofline) in milliseconds for each round."""
    matrices, (m, n) = torch.nn.Parameter(torch.randn(count, rows, columns)), sorted((rows, columns))
    matrices.grad, optimizer = torch.randn_like(matrices), Muon([matrices], ns_steps=steps)
    dtype = fastest_dtype(matrices)
    x, square = torch.randn(count, m, n).to(dtype), torch.randn(count, m, m).to(dtype)
    out, out_square = torch.empty_like(x), torch.empty_like(square)

    def products() -> None:
        for _ in range(steps):
            torch.bmm(x, x.mT, out=out_square)
            torch.bmm(square, square, out=out_square)
            torch.bmm(square, x, out=out)

    contest = {"ours": optimizer.step, "roofline": products}
    found: dict[str, list[float]] = {name: [] for name in contest}
    for number in range(-1, rounds):  # the first warms up
        for name in contest if number % 2 else reversed(contest):
            ms = timed(contest[name], repeats)
            if number >= 0:
                found[name].append(ms)
    return found["ours"], found["roofline"]


def shares(config: RunConfig, seconds: float) -> dict[str, float]:
    """Parts of a step of ours over the whole."""
    parts = time_parts(synthetic_state(config), seconds)
    optimizer = sum(parts.parts_ms[name] for name in ("optimizer", "newton_schulz", "qk_clip"))
    return {
        "step_ms": parts.step_ms,
        "newton_schulz": parts.parts_ms["newton_schulz"] / parts.step_ms,
        "optimizer": optimizer / parts.step_ms,
    }


def described(
    count: int, rows: int, columns: int, iterations: int, ours: list[float], roofline: list[float]
) -> tuple[list[str], dict[str, Any]]:
    """The line of the table and the record of one size, from the milliseconds of each round."""
    m, n = sorted((rows, columns))
    gflop = count * iterations * (4 * m * m * n + 2 * m**3) / 1e9
    over = spread([a / b for a, b in zip(ours, roofline, strict=True)])
    dtype = str(fastest_dtype(torch.empty(rows, columns))).removeprefix("torch.")
    ms, least = median(ours), median(roofline)
    cells = [f"{count} x {rows} x {columns}", dtype, f"{ms:.2f}", f"{least:.2f}", shown(over)]
    size = {"count": count, "rows": rows, "columns": columns, "dtype": dtype, "ms": ms, "over_roofline": over}
    return [*cells, f"{gflop / least * 1e3:.0f}"], size


def main() -> None:
    """Race every size, then look at the whole step."""
    parser = options_parser(__doc__, rounds=7, steps=10)
    parser.add_argument("--config", default="shakespeare-char")
    options, overrides = parser.parse_known_args()
    if options.smoke:
        options.rounds, options.steps = 2, 1
    config = arms.bench_config(options.config, overrides, options.threads)
    machine = rates(options.threads, options.smoke)
    rows, sizes, iterations = [], [], config.family.optim.ns_steps
    ours, roofline = [0.0] * options.rounds, [0.0] * options.rounds
    with OtherLoad() as load, torch.no_grad():
        for (r, c), count in sorted(matrix_sizes(config).items(), key=lambda item: -item[1]):
            mine, least = race(count, r, c, iterations, options.rounds, options.steps)
            line, size = described(count, r, c, iterations, mine, least)
            rows.append(line)
            sizes.append(size)
            ours = [a + b for a, b in zip(ours, mine, strict=True)]
            roofline = [a + b for a, b in zip(roofline, least, strict=True)]
    whole = spread([a / b for a, b in zip(ours, roofline, strict=True)])
    rows.append(["all", "", f"{median(ours):.2f}", f"{median(roofline):.2f}", shown(whole), ""])
    print(table(["matrices", "dtype", "ms", "roofline ms", "times roofline", "bmm GFLOP/s"], rows))
    found = {
        dtype: shares(arms.with_dtype(config, dtype), 0.1 if options.smoke else 5.0)
        for dtype in native_dtypes(CPU)
    }
    text = [
        [d, f"{s['step_ms']:.1f}", f"{s['newton_schulz']:.0%}", f"{s['optimizer']:.0%}"]
        for d, s in found.items()
    ]
    print(table(["step in", "ms", "Newton-Schulz", "whole optimizer"], text))
    large = step_roofline(synthetic_state(config), machine)["newton_schulz"]
    finish(
        options,
        {
            "benchmark": "newton_schulz",
            "over_roofline": whole,
            "ms": median(ours),
            "roofline_ms": median(roofline),
            "roofline_ms_at_large_products": large,
            "sizes": sizes,
            "shares": found,
            "rates": rates_record(machine),
            "other_cores": load.cores,
        },
    )


if __name__ == "__main__":
    main()
