"""The help texts of the command line, and how options are taken out of the arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nanokimi.cli.hub_options import HUB_USAGE
from nanokimi.cli.interop_options import INTEROP_USAGE
from nanokimi.cli.play_options import PLAY_USAGE
from nanokimi.cli.study_options import STUDY_USAGE
from nanokimi.config import RunConfig
from nanokimi.config.files import config_text, load_config
from nanokimi.errors import UserError
from nanokimi.pretrained import run_path
from nanokimi.runtime.extras import how_to_install
from nanokimi.runtime.text import whole_number

HELP = """\
nanokimi: train Kimi K2's ideas at nano scale beside NanoGPT, and measure honestly which is better.

usage: nanokimi COMMAND [options]

  compare    train NanoKimi, NanoGPT with Muon and NanoGPT (or other arms) on the same text and write one report
  train      train one of them, or a variant that you compose
  sweep      find each arm's best learning rate, or the best value of any setting
  ladder     measure what each change from NanoGPT to NanoKimi is worth, with intervals over seeds
  scale      measure how much compute NanoKimi saves, over several sizes
  plot       draw any runs: loss, experts, costs and more, as PNG, SVG or an interactive page
  report     make the report of a run, a comparison or a study again, from its folder
  sample     continue a prompt with a trained model
  inspect    show how a trained model reads: its surprise, what it nearly said, experts, attention
  play       open a local web page: models write side by side, and can be looked into
  serve      answer OpenAI-compatible completion requests with a trained model
  judge      let another model rate stories of trained models, blind, with intervals
  evaluate   score a trained model on the whole test text
  prepare    read, split and encode a text before training, and show what is in it
  audit      test whether a model reads the answer (exit status 1 if it does, or is not deterministic)
  export     write a trained model as a Hugging Face folder, and prove that it computes the same
  import     make a run of a model that others trained
  push       export a trained model and upload it to the Hugging Face Hub, private by default
  pull       make a run of a model on the Hugging Face Hub
  prune      drop the least used experts of a trained model, and show the loss before and after
  bench      show where the milliseconds of a training step go on this machine, in under a minute

`nanokimi COMMAND --help` shows a command's options, and `--help-all` every setting too.
First steps: nanokimi compare --data path/to/text.txt
"""

RUN_HELP = """\
  --config NAME_OR_PATH   a preset or a YAML file (default: tales, on CUDA tales-gpu; {default} with --data).
                          Of several, with commas between or given again, later ones override earlier ones.
                          Presets: {presets}
  --data PATH_OR_NAME     a text, a folder, a data set (short for --dataset.path)
  --out DIR               a new folder for the results (default: the next free one below runs/)
  --seed N                decides the initial weights, batches and samples
  --resume                continue the run in --out from its newest whole checkpoint, bit for bit. No other option
                          is needed, and those that are given must be as when the run was started. If --out holds no
                          run and the options describe one, it is started
  --allow-changes         with --resume: continue even if configuration, data or tokenizer changed
  --on-nonfinite WHAT     what to do when a loss or gradient is not finite: stop (default), skip or rollback
  --track NAMES           trackers to tell the run's numbers: csv, tensorboard, wandb (offline), trackio; with commas
  --plugin FILE.py:NAME   your attention, feed-forward layer or optimizer in place of the model's own; all sizes are
                          kept. compare makes it one more arm from the first; for another one: --arm "NAME: from=nanogpt
                          model.attention=FILE.py:NAME" (or model.experts, optim.name). The file is executed
"""
GROUP_HELP = """\
  On several GPUs: torchrun --nproc-per-node N -m nanokimi, and the rest as here (docs/many-gpus.md)
"""
PLUGIN_HELP = """\
  --plugin FILE.py:NAME   your class that the run was trained with, from the same file, which is executed
"""

DEFAULT_CONFIG = "shakespeare-char"  # for a user's text
TEXT_OPTIONS = ("--data", "--dataset.path", "--dataset.sources", "--sources")
TALES_CONFIG, TALES_GPU_CONFIG = "tales", "tales-gpu"  # without a text
NOT_EMPTY = (
    *("config", "out", "data", "device", "checkpoint", "part", "tuned", "search", "inherit", "vary", "model"),
    *("html", "arm", "runs"),
    *("format", "step", "tokenizer", "revision", "init_from"),
)
"""Options whose empty value would mean another folder, file or name than anyone meant."""

USAGE = {
    "compare": "usage: nanokimi compare [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]\n\n"
    + RUN_HELP
    + GROUP_HELP
    + """\
  --seeds N               seeds that every arm is trained with; a winner needs two or more
  --arm "NAME: from=FAMILY model.K=V optim.K=V"
                          add an arm, or replace the one of that name; without from=, change it. from= names a family,
                          another arm, or your own model as FILE.py:CLASS (the file is executed). May be repeated
  --arms A,B              train only these arms
"""
    + "  --match QUANTITY        make the arms equal in active_params, total_params, flops, tokens or seconds\n",
    "train": "usage: nanokimi train [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]\n\n"
    + RUN_HELP
    + GROUP_HELP
    + "  --model NAME            nanokimi (default), nanogpt, variant or module\n"
    + '  --arm NAME              the arm of the preset to train, or "NAME: from=...", as for compare\n'
    + "  --init-from RUN         start from the weights of a finished run, with its settings where none are given\n"
    + "  --dry-run               do not train: show what memory, time and disk the run will need\n",
    "report": """\
usage: nanokimi report FOLDER

  FOLDER                  of `train`, `compare`, `ladder`, `scale` or `sweep --search`, or one run inside it
Makes report.html (study.html, search.html) and its pictures again from the numbers in the folder. No model is loaded.
""",
    "plot": """\
usage: nanokimi plot FOLDER... [options]

  FOLDER...               of `train`, `compare` (or an arm in it) or one study, or the name of shipped weights; a run
                          may be in progress
  --kind NAME             what is drawn, see below (default: loss; of a study scaling, or else effects)
  --x NAME                the axis: steps (default), tokens, flops or seconds; of scaling: flops (default) or seconds
  --out FILE              a name that ends in .png, .svg or .html (default: KIND.html here); a file there is replaced
Runs that differ only in the random seed are one arm: a line for the mean, and a band from the lowest to the highest.
A page needs no network, has a switch of the axis, and shows values under the pointer and by the arrow keys.

Kinds:

{kinds}
""",
    "sample": """\
usage: nanokimi sample RUN_FOLDER [options]

  RUN_FOLDER              of `train`, or of `compare` (every arm answers)
  --prompt TEXT           the text to continue (default: the run's own prompts)
  --interactive           continue each line of standard input; Ctrl-C stops a text, Ctrl-D ends
  --num_samples N         texts for each prompt, with seeds counted up from --seed (default: 1)
  --max_new_tokens N      tokens to write
  --temperature X         how random the choice is; 0 always takes the likeliest token
  --top_k N, --top_p X    draw from the likeliest tokens only
  --min_p X               draw from the tokens with this share of the likeliest one's probability
  --repetition_penalty X  above 1: tokens that prompt or text already hold become less likely
  --stop TEXT             end a text where it would write this
  --seed N                decides what is drawn (default: the run's)
  --stats                 say on standard error how many tokens were read and written, and the bytes of the cache
  --checkpoint NAME       final (default), best (lowest validation loss), last, or a step that is kept
  --device NAME           (default: the run's)
"""
    + PLUGIN_HELP,
    "inspect": """\
usage: nanokimi inspect RUN_FOLDER... [options]

  RUN_FOLDER              of `train`, or of `compare` (every arm, side by side); several may be named
  --prompt TEXT           the text to continue and to look at (default: the run's first own prompt)
  --max_new_tokens N      tokens to write; 0: only read the prompt
  --temperature X, --top_k N, --top_p X, --min_p X, --repetition_penalty X, --stop TEXT, --seed N
                          as for sample, which writes the same text
  --arm A,B               of a comparison, only these arms
  --html FILE             write one page that works offline and can be mailed, at most 3 MB, instead of the table
  --layer N, --head N     show where this head looks (in the table head 0, if only the layer is named); with --html
                          embed only these maps of attention, if not all fit. Counted from 0
  --favourites N          validation tokens over which the experts' favourite tokens are counted (default: 20000 with
                          --html, otherwise 0; 0: leave them out)
  --checkpoint NAME       final (default), best (lowest validation loss), last, or a step that is kept
  --device NAME           (default: the run's)
"""
    + PLUGIN_HELP,
    "serve": """\
usage: nanokimi serve RUN_FOLDER [options]

  RUN_FOLDER              of `train`, or of `compare` (every arm is a model)
  --host ADDRESS          where to listen (default: 127.0.0.1, which only this machine reaches)
  --port N                (default: 8000; 0: any free one)
  --max_tokens N          the most that a request may ask for (default: 4096)
  --at_once N             requests in work, a token of each in turn (default: 8)
  --queue N               further requests that may wait; more are refused with status 429 (default: 64)
  --checkpoint NAME       final (default), best (lowest validation loss), last, or a step that is kept
  --device NAME           (default: the run's)
"""
    + PLUGIN_HELP
    + f"If NANOKIMI_API_KEY is set, clients have to send it.\nNeeds: {how_to_install('serve')}\n",
    "judge": """\
usage: nanokimi judge RUN_FOLDER... --url URL --model NAME [options]

  RUN_FOLDER              of `train`, or of `compare` (of each arm its first seed); several may be named
  --url URL               of an OpenAI-compatible server, such as http://localhost:8000/v1 (or OPENAI_BASE_URL)
  --model NAME            the judging model there
  --key KEY               its API key (better: OPENAI_API_KEY, because a command line can be seen by others)
  --kind NAME             chat (default) or completions
  --prompts N             beginnings of validation texts to go on from (default: 8)
  --prompt TEXT           this beginning instead; a winner needs several
  --seeds N               stories for each prompt (default: 2)
  --rounds N              times that each story is rated; two show how far the judge agrees with itself (default: 2)
  --no-pairs              do not ask which of two stories is better (otherwise each pair in both orders)
  --temperature X, --max_new_tokens N  of the stories (default: the run's)
  --seed N                of the stories and the order of the questions (default: 0)
  --at_once N             questions at a time (default: 4)
  --out DIR               for judge.json, with every story and answer (default: the next free runs/judge-...)
  --checkpoint NAME       final (default), best, last, or a step that is kept
  --device NAME           (default: the run's)
"""
    + PLUGIN_HELP,
    "evaluate": """\
usage: nanokimi evaluate RUN_FOLDER [options]

  RUN_FOLDER              of `train`, or of `compare` (every run is scored)
  --part NAME             test (default), or val, the part that settings were chosen on
  --data PATH             score this text instead, all of it, with the run's tokenizer
  --dataset.text_column NAME  the column of that text, if it has columns (default: the run's)
  --json                  print one JSON object for each model instead of the table
  --checkpoint NAME       final (default), best (lowest validation loss), last, or a step that is kept
  --device NAME           (default: the run's)
"""
    + PLUGIN_HELP,
    "prepare": """\
usage: nanokimi prepare [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]

  --config NAME_OR_PATH   a preset or a YAML file, for its tokenizer and context (default: as for compare)
  --data PATH_OR_NAME     a text, a folder, a data set (short for --dataset.path)
  --out DIR               a new folder for data.json, the tokenizer and summary.png (default: the next free
                          runs/prepare-...)
  --print-config          print the whole configuration, as a file that --config takes, and do nothing else
Prints a summary. Training with the same settings finds the tokens in the cache.
""",
    "audit": """\
usage: nanokimi audit RUN_FOLDER [options]
       nanokimi audit FILE.py:NAME --vocab_size N --context N [options]

  RUN_FOLDER              of `train`, or of `compare` (every run is audited, also on its validation text)
  FILE.py:NAME            your function or class that, called without arguments, returns an nn.Module which maps token
                          ids to logits; the file is executed
  --vocab_size N          number of token ids
  --context N             sequence length to test (default for a run: its own)
  --device NAME           (default for a run: its own)
"""
    + PLUGIN_HELP
    + "Exit status 1 if a model is LEAKING, NONDETERMINISTIC (the same ids give different logits) or UNDECIDED\n"
    "(rounding or a leak: nobody can tell, because it does not run in float64).\n",
    "prune": """\
usage: nanokimi prune RUN_FOLDER --keep N [options]

  RUN_FOLDER              of a finished run whose model has experts
  --keep N                experts to keep in each layer: those chosen most often on the validation text
  --recover STEPS         training steps afterwards (default: 0), from a tenth of the run's rate down to 0
  --out DIR               a new folder for the pruned run (default: the next free one below runs/)
  --device NAME           (default: the run's)
"""
    + PLUGIN_HELP
    + "Prints the validation loss before, after, and after the recovery. The result is a run like any other.\n",
    "bench": """\
usage: nanokimi bench [options] [--any.setting VALUE ...]

  --config NAME_OR_PATH   a preset or a YAML file (default: {default}); presets: {presets}
  --quick                 a few seconds, less exact
  --json                  print one JSON object instead of the table
Measures the machine's rates of matrix products and memory. Then it measures for every arm, on random tokens, a training
step with its parts, the roofline that those rates set, prefill, and decoding one token. Needs no text.
""",
    **STUDY_USAGE,
    **INTEROP_USAGE,
    **HUB_USAGE,
    **PLAY_USAGE,
}


PATH_OPTIONS = ("out", "config", "html")


def user_path(option: str, value: str) -> str:
    """A path, or several with commas between, with ~ as the home folder: a shell leaves it in --out=~/here.

    Raises UserError if it names a user that does not exist.
    """
    try:
        return ",".join(
            str(Path(one).expanduser()) if one.startswith("~") else one for one in value.split(",")
        )
    except RuntimeError as error:  # no such user
        raise UserError(f"{option} {value} cannot be a path ({error}): check it") from None


def take_options(
    arguments: list[str], named: dict[str, Callable[[str], object]]
) -> tuple[dict[str, object], list[str]]:
    """Take the options of `named` (with their types) out of `arguments`; returns their values and the rest."""
    values: dict[str, object] = {}
    rest = []
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in named:
            rest.append(word)
            continue
        if name in values and name != "config":
            raise UserError(f"option {option} is given twice: give it once")
        if named[name] is bool:
            if equals:
                raise UserError(f"option {option} takes no value")
            values[name] = True
            continue
        if not equals:
            value = next_value(option, remaining)
        if not value.strip() and name in NOT_EMPTY:
            raise UserError(f"option {option} is empty: give it a value, or leave it out")
        if name in PATH_OPTIONS:
            value = user_path(option, value)
        if name == "config" and name in values:  # several files, of which later ones override earlier ones
            value = f"{values[name]},{value}"
        try:
            values[name] = whole_number(value) if named[name] is int else named[name](value)
        except ValueError:
            raise UserError(
                f"{option} is {value}: expected {'a whole number' if named[name] is int else 'a number'}"
            ) from None
    return values, rest


def next_value(option: str, remaining: list[str]) -> str:
    """The word after an option, taken off the remaining ones. Raises UserError if there is none."""
    if not remaining or remaining[0].startswith("--"):
        raise UserError(f"option {option} needs a value (one that starts with dashes: {option}=--value)")
    return remaining.pop(0)


def one_target(rest: list[str], what: str) -> str:
    """The single word that is not an option."""
    require_targets(rest, what)
    if len(rest) != 1:
        raise UserError(f"expected one {what}, got {len(rest)}; see --help")
    return rest[0]


def require_targets(rest: list[str], what: str) -> None:
    """Raise UserError for an option that the command does not have, and for an empty word, as whose path "." counts."""
    unknown = [word for word in rest if word.startswith("--")]
    if unknown:
        raise UserError(f"there is no option {unknown[0].partition('=')[0]} here; see --help")
    if not all(word.strip() for word in rest):
        raise UserError(f"the {what} is empty: name one (the current folder is .)")


def one_run(rest: list[str]) -> Path:
    """The folder of the run or comparison that is the single word without dashes, or the name of shipped weights."""
    return run_path(one_target(rest, "run folder"))


def choose_config(
    options: dict[str, object], rest: list[str], *, alone: bool = False, inherit: bool = False
) -> tuple[str, RunConfig]:
    """The name of the configuration (that of `--config`, or the default), and the configuration with `rest` applied.

    Without `--data` the default is the story world's, which has a larger form for a GPU. With `alone`, words such as
    `--lr` are settings of the family that `model` names; `inherit` is that of `load_config`.
    """
    if "config" in options:
        name = str(options["config"])
    elif any(word.partition("=")[0] in TEXT_OPTIONS for word in rest):
        name = DEFAULT_CONFIG
    else:
        # The configuration comes first, so that mistakes are found before torch is imported, which takes a second.
        config = load_config(TALES_CONFIG, rest, alone=alone, inherit=inherit)

        import torch

        if not torch.cuda.is_available():
            return TALES_CONFIG, config
        name = TALES_GPU_CONFIG
    return name, load_config(name, rest, alone=alone, inherit=inherit)


def default_folder(first: str, chosen: str) -> Path:
    """The next free folder for a command without --out, named after the command and the configuration."""
    from nanokimi.runtime.files import default_run_folder

    return default_run_folder(first, "-".join(Path(name).stem for name in chosen.split(","))[:80])


def require_data(config: RunConfig) -> None:
    """Raises UserError for a configuration without a text, before anything is written."""
    if not config.dataset.path and not config.dataset.sources:
        raise UserError("no text given: name one with --data path/to/text.txt, or use --data tales")


def print_config(config: RunConfig) -> int:
    """`--print-config`: the configuration as a file that --config takes; returns the exit status."""
    print(config_text(config), end="")
    return 0
