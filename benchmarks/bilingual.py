"""A mixture of English and German from Debian's manuals: what the weights change, in bits per byte of each language.

    apt-get download debian-reference-en debian-reference-de debian-faq debian-faq-de
    python benchmarks/bilingual.py debian-*.deb --out docs/results/benchmarks.jsonl

The Debian Reference (GPL, version 2 or later) and the Debian FAQ (may be copied and changed under its own terms) are
translated section by section. Each section is a document. Commands and tables of packages, which are the same in all
languages, are left out, and so are German paragraphs that are still English. For each pair of weights the arms of
bilingual.yaml are trained by `nanokimi compare` with the same seeds; the test parts are the same with any weights.

The packages are not installed, only unpacked, and no text is kept. Other versions of them give other figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bilingual_text import documents_of, unpack, without_untranslated, write_documents
from common import finish, table
from recorded import RESULTS

import nanokimi
from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json_lines

LANGUAGES = {"English": "en", "German": "de"}
"""By name, the endings of their pages. The first is the original."""
WEIGHTS = [[3.0, 1.0], [1.0, 3.0]]
CONFIG = Path(__file__).with_suffix(".yaml")
SIZES = [f"{part}_{what}" for part in ("train", "test") for what in ("documents", "text_bytes", "tokens")]
Row = dict[str, Any]


def write_languages(packages: Sequence[str], folder: Path) -> tuple[Row, dict[str, Path]]:
    """The texts of the packages, a file for each language, and what they are.

    Raises UserError if a package cannot be unpacked or a language has no page in any.
    """
    versions = unpack([Path(package) for package in packages], folder / "unpacked")
    texts: dict[str, list[str]] = {}
    for name, ending in LANGUAGES.items():
        found = documents_of(folder / "unpacked", ending)
        texts[name] = without_untranslated(found, next(iter(texts.values()), []))
        if not texts[name]:
            raise UserError(f"{', '.join(packages)}: no page of them is {name} (*.{ending}.html)")
    files = {name: folder / f"{name}.jsonl" for name in texts}
    for name, file in files.items():
        write_documents(texts[name], file)
    sizes = {
        name: {
            "documents": len(own),
            "characters": sum(map(len, own)),
            "bytes": sum(len(t.encode()) for t in own),
        }
        for name, own in texts.items()
    }
    return {"packages": versions, "texts": sizes}, files


def measure(files: dict[str, Path], weights: Sequence[float], options: argparse.Namespace, out: Path) -> Row:
    """Compare the arms on one mixture."""
    sources = [
        {"name": name, "path": str(file), "weight": weight}
        for (name, file), weight in zip(files.items(), weights, strict=True)
    ]
    report = nanokimi.compare(
        config=options.config,
        out=out,
        settings={
            "dataset.sources": sources,
            "dataset.cache": str(out.parent / "cache"),
            "seeds": options.seeds,
        },
    )
    tokens = report["runs"][0]["tokens"]
    languages = {
        one["name"]: {
            "share": one["share"],
            "passes": one["share"] * tokens / one["train_tokens"],
            "bytes_per_token": one["test_text_bytes"] / one["test_tokens"],
            **{key: one[key] for key in SIZES},
        }
        for one in report["data"]["sources"]
    }
    runs = [
        {
            **{key: run[key] for key in ("arm", "seed", "params_active", "test_loss", "test_bits_per_byte")},
            "causal": run["audit"]["causal"],
            "languages": {
                name: {key: score[key] for key in ("loss", "bits_per_byte")}
                for name, score in run["test_sources"].items()
            },
        }
        for run in report["runs"]
    ]
    settings = {"steps": report["runs"][0]["steps"], "tokens": tokens, **report["settings"]}
    return {"weights": list(weights), "languages": languages, "runs": runs, "settings": settings}


# ---- the table


def mixture_table(mixtures: list[Row]) -> str:
    """A row for each language of each mixture, a column for each arm with mean and deviation over the seeds."""
    arms = list(dict.fromkeys(run["arm"] for run in mixtures[0]["runs"]))
    head = ["weights", "language", "share of the training tokens", "times read", "bytes per token"]
    rows = []
    for mixture in mixtures:
        for name, facts in mixture["languages"].items():
            cells = [f"{facts['share']:.0%}", f"{facts['passes']:.2f}", f"{facts['bytes_per_token']:.2f}"]
            cells += [mean_bits(mixture["runs"], arm, name) for arm in arms]
            rows.append([" to ".join(f"{weight:g}" for weight in mixture["weights"]), name, *cells])
    return table([*head, *(f"{arm} (bits per byte)" for arm in arms)], rows)


def mean_bits(runs: list[Row], arm: str, language: str) -> str:
    """Bits per byte of a language over an arm's seeds."""
    bits = [run["languages"][language]["bits_per_byte"] for run in runs if run["arm"] == arm]
    return f"{fmean(bits):.3f}" + (f" +- {stdev(bits):.3f}" if len(bits) > 1 else "")


def recorded_row() -> Row:
    """The last one in docs/results."""
    rows = read_json_lines(RESULTS / "benchmarks.jsonl")
    return [row for row in rows if row["benchmark"] == "bilingual"][-1]


def bilingual_table() -> str:
    """For docs/data.md: the last recorded row, and what it was measured on."""
    row = recorded_row()
    first = row["mixtures"][0]
    texts = ", ".join(
        f"{name} {one['documents']} documents and {one['characters']:,} characters"
        for name, one in row["texts"].items()
    )
    seeds = sorted({run["seed"] for run in first["runs"]})
    settings = first["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in sorted(row["packages"].items()))
    made = (
        f"{packages}: {texts}. {settings['steps']:,} steps, {settings['tokens']:,} tokens, {settings['dtype']}; mean "
        f"and standard deviation over seeds {seeds[0]} to {seeds[-1]}. Commit {row['commit'][:7]}, {row['time'][:10]}, "
        f"one thread of an {row['processor']}."
    )
    return f"{mixture_table(row['mixtures'])}\n\n{made}"


# ---- the command


def weights_of(text: str) -> list[float]:
    """3:1 as two numbers. `dataset.sources` says what is wrong with one that cannot be a weight."""
    weights = [float(word) for word in text.split(":")]
    if len(weights) != len(LANGUAGES):
        raise ValueError(text)
    return weights


def main() -> int:
    """Unpack, compare with each pair of weights, show the table and keep the row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("packages", nargs="+", help="the four .deb files")
    parser.add_argument(
        "--weights",
        type=weights_of,
        nargs="+",
        default=WEIGHTS,
        help="of English and German, such as 3:1 1:1",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--config", default=str(CONFIG), help="arms and budget")
    parser.add_argument("--out", type=Path, default=None, help="append the JSON line to this file, too")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            facts, files = write_languages(options.packages, folder)
            mixtures = [
                measure(files, weights, options, folder / f"mixture-{number}")
                for number, weights in enumerate(options.weights)
            ]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(mixture_table(mixtures))
    options.config = Path(options.config).name  # not the machine's folder
    finish(options, {"benchmark": "bilingual", **facts, "mixtures": mixtures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
