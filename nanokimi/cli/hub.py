"""`nanokimi push` and `nanokimi pull`: models to the Hugging Face Hub and from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nanokimi.cli.interop import say_imported
from nanokimi.cli.options import one_target, require_targets, take_options
from nanokimi.errors import UserError
from nanokimi.pretrained import run_path


def run_push(arguments: list[str]) -> int:
    """`nanokimi push`."""
    types: dict[str, Callable[[str], object]] = {"step": str, "arm": str, "public": bool, "dry_run": bool}
    options, rest = take_options(arguments, types)
    require_targets(rest, "run folder or owner/name")
    if len(rest) != 2:
        raise UserError(f"push needs a run folder and owner/name, got {len(rest)} words; see --help")
    folder, repo = run_path(rest[0]), rest[1]
    from nanokimi.interop.export import run_to_export
    from nanokimi.interop.hub import push

    public, dry_run = "public" in options, "dry_run" in options
    run = run_to_export(folder, str(options["arm"]) if "arm" in options else None)
    pushed = push(run, repo, str(options.get("step", "final")), public=public, dry_run=dry_run)
    total = f"{len(pushed.sizes)} files, {sum(pushed.sizes.values()):,} bytes"
    seen = "public" if public else "private"
    print(*pushed.receipt.sentences, sep="\n")
    print(*(f"{size:>15,}  {name}" for name, size in pushed.sizes.items()), sep="\n")
    if dry_run:
        print(f"Would go to {repo} ({seen}): {total}. Nothing was sent.")
    else:
        print(f"Went to {repo} ({seen}): {total}", pushed.url, sep="\n")
    return 0


def run_pull(arguments: list[str]) -> int:
    """`nanokimi pull`."""
    types: dict[str, Callable[[str], object]] = {"out": str, "data": str, "tokenizer": str, "context": int}
    options, rest = take_options(arguments, {**types, "revision": str})
    repo = one_target(rest, "owner/name")
    if "out" not in options:
        raise UserError("pull needs --out RUN, a new run folder")
    from nanokimi.interop.hub import pull

    out = Path(str(options["out"]))
    config = pull(
        repo,
        out,
        revision=str(options.get("revision", "")),
        data=str(options.get("data", "")),
        tokenizer=str(options.get("tokenizer", "")),
        context=int(str(options["context"])) if "context" in options else None,
    )
    say_imported(config, out)
    return 0
