"""`COMMAND --help`, one screen, and `COMMAND --help-all`: every option, word and setting, with the preset's values."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from nanokimi.cli.options import DEFAULT_CONFIG, TALES_CONFIG, TEXT_OPTIONS, USAGE, take_options
from nanokimi.config import FAMILIES
from nanokimi.config.ignored import GROUPS

WIDTH = 100
OF_A_SEARCH = (
    "trials",
    "search-rounds",
    "points",
    "factor",
    "rounds",
    "tuning-seeds",
    "tuned",
    "workers",
    "keep",
)
RARE = {
    "ladder": (*OF_A_SEARCH, "budgets", "no-tune", "plugin"),
    "scale": OF_A_SEARCH,
    "sweep": ("workers", "keep", "optuna", "rounds"),
    "compare": ("allow-changes", "on-nonfinite"),
    "train": ("allow-changes", "on-nonfinite"),
}
"""Options that only --help-all shows."""
COMMON = """\
  --lr X, --steps N, --batch_size N, --context N, --device NAME, --threads N, --dtype NAME ...
                          settings by their last part. Words of nanoGPT (--n_layer, --block_size, --max_iters) and
                          Hugging Face (--hidden_size, --num_train_epochs) work, too. Those of an arm, such as --lr,
                          are for the one arm that is trained; of several, name it: --nanogpt.optim.lr X or, where the
                          preset's arm sets it itself, --arm "NanoGPT: optim.lr=X"
  --print-config          print the whole configuration, as a file that --config takes, and do nothing else
"""


def command_help(command: str, arguments: Sequence[str]) -> str:
    """The text for `nanokimi COMMAND --help`, or for `--help-all` if that is among the arguments."""
    from nanokimi.config.files import preset_names

    everything = "--help-all" in arguments
    text = USAGE[command].replace("{default}", DEFAULT_CONFIG).replace("{presets}", ", ".join(preset_names()))
    if "{kinds}" in text:
        from nanokimi.report.kinds import KINDS

        text = text.replace("{kinds}", "\n".join(f"  {name:<22}  {what}" for name, what in KINDS.items()))
    if command in GROUPS:
        text += COMMON if command != "prepare" else ""
    # A line that begins with a small letter goes on with the sentence of the line before.
    paragraphs = re.split(r"\n(?=[^a-z\s]|  \S|\n)", text.rstrip("\n"))
    hidden = () if everything else RARE.get(command, ())
    kept = [one for one in paragraphs if not one.startswith(tuple(f"  --{name} " for name in hidden))]
    text = "\n".join(wrapped(one) for one in kept) + "\n"
    if command not in GROUPS:
        return text
    if not everything:
        return (
            text + "--help-all shows every option and setting, with the values of the preset in --config.\n"
        )
    return text + words_help() + chosen_settings(command, arguments)


def wrapped(paragraph: str) -> str:
    """A paragraph of a help text, in WIDTH columns, with the description of an option beside or below its name."""
    if len(paragraph.split("\n")) == 1 and len(paragraph) <= WIDTH:
        return paragraph
    lead = "\n" if paragraph.startswith("\n") else ""
    body = paragraph.strip("\n")
    found = re.match(r"(  \S.*?)(?:  +|\n +)(\S.*)$", body, flags=re.DOTALL)
    if body.startswith("usage:"):
        ways = [
            " ".join(line.split()) for line in re.split(r"\n(?= *nanokimi )", body.removeprefix("usage:"))
        ]
        filled = [
            textwrap.fill(way, WIDTH - 7, subsequent_indent="    ", break_on_hyphens=False) for way in ways
        ]
        return lead + "usage: " + textwrap.indent("\n".join(filled), " " * 7).lstrip()
    if not found:
        return lead + textwrap.fill(" ".join(body.split()), WIDTH, break_on_hyphens=False)
    name, text = found[1], " ".join(found[2].split())
    first = name.ljust(26) if len(name) < 25 else f"{name}\n{' ' * 26}"
    filled = textwrap.wrap(text, WIDTH - 26, break_on_hyphens=False)
    return lead + first + f"\n{' ' * 26}".join(filled)


def words_help() -> str:
    """The table of other words for settings."""
    from nanokimi.config.words import WORDS

    lines = [f"  --{word.ljust(28)} --{key}" for word, key in WORDS.items()]
    return "\nOther words for settings (model. and optim. are those of the arm that is trained):\n\n" + (
        "\n".join(lines) + "\n"
    )


def chosen_settings(command: str, arguments: Sequence[str]) -> str:
    """Every setting that a command reads, with its value in the preset that the arguments choose."""
    from nanokimi.config.files import load_config
    from nanokimi.config.settings_help import settings_help

    kept = [word for word in arguments if word not in ("--help-all", "--help", "-h")]
    options, rest = take_options(kept, {"config": str})
    default = DEFAULT_CONFIG if any(word.partition("=")[0] in TEXT_OPTIONS for word in rest) else TALES_CONFIG
    name = str(options.get("config", default))
    groups = GROUPS[command]
    if "nanokimi." not in groups and command != "prepare":
        groups = (*groups, *(f"{family}." for family in FAMILIES))
    return f"\nSettings, with their values in {name}:\n\n" + settings_help(load_config(name), groups, WIDTH)
