"""The model card of an export: every number in it was measured, by the run or by the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi import __version__
from nanokimi.interop.import_run import IMPORT_FILE
from nanokimi.interop.torchtitan_flavor import FLAVOR_FILE, launch_line
from nanokimi.interop.torchtitan_verify import HandOverReceipt
from nanokimi.interop.verify import Receipt
from nanokimi.measure.cost import model_cost
from nanokimi.runtime.files import read_json
from nanokimi.train.prune_record import PRUNE_FILE
from nanokimi.train.result import RESULT_FILE
from nanokimi.train.run_folder import Run

ROWS = (
    ("test loss (nats per token)", "test_loss", "{:.4f}"),
    ("test bits per byte", "test_bits_per_byte", "{:.4f}"),
    ("test bits per character", "test_bits_per_char", "{:.4f}"),
    ("validation loss (nats per token)", "val_loss", "{:.4f}"),
    ("steps", "steps", "{:,}"),
    ("training tokens", "tokens", "{:,}"),
    ("training seconds", "train_seconds", "{:.0f}"),
    ("optimizer", "optimizer", "{}"),
    ("peak learning rate", "lr", "{:g}"),
)
"""What of result.json is shown, and how."""
BUILT_IN = ("tales",)


def model_card(run: Run, checkpoint: str, stock_class: str, receipt: Receipt | HandOverReceipt) -> str:
    """README.md for the folder of an export."""
    cost = model_cost(run.config.family.model, run.config.train.context_length)
    result = read_json(run.folder / RESULT_FILE) if (run.folder / RESULT_FILE).is_file() else {}
    lines = [
        *front_matter(run),
        f"# {run.config.title}",
        "",
        f"A small language model, {origin(run)} and exported as a stock `{stock_class}`: it needs no remote code.",
        "",
        "## Numbers",
        "",
        *numbers(result, checkpoint),
        f"| parameters | {cost.params_total:,} |",
        f"| active parameters | {cost.params_active:,} |",
        f"| context (tokens) | {run.model.config.max_position_embeddings:,} |",
        "",
        "## Data",
        "",
        *data_lines(run),
        "",
        "## Audit",
        "",
        audit_line(result),
        "",
        "## Receipt of the export",
        "",
        *receipt.sentences,
        "",
        "## How to load it",
        "",
        *how_to_load(run),
        *(how_to_hand_over() if isinstance(receipt, HandOverReceipt) else []),
        "",
        "## Licence",
        "",
        licence_line(run),
        "",
    ]
    return "\n".join(lines)


def origin(run: Run) -> str:
    """Where the weights come from, as a part of a sentence."""
    if is_imported(run):
        source = read_json(run.folder / IMPORT_FILE).get("source")
        return f"made by others, imported into nanokimi {__version__} from {source}"
    start = ", beginning with the weights of another run," if began_elsewhere(run) else ""
    return f"trained with nanokimi {__version__}{start}"


def is_imported(run: Run) -> bool:
    """Whether the weights are as others trained them."""
    return (run.folder / IMPORT_FILE).is_file()


def began_elsewhere(run: Run) -> bool:
    """Whether training began with the weights of another run, which may be others'.

    The configuration of a pruned run does not name them, because they have other shapes; its record does.
    """
    path = run.folder / PRUNE_FILE
    record = read_json(path) if path.is_file() else {}
    return (run.config.train.init_from or record.get("init_from")) is not None


def front_matter(run: Run) -> list[str]:
    """The metadata that the Hub reads."""
    return [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"license: {'mit' if is_all_ours(run) else 'unknown'}",
        "tags:",
        "- nanokimi",
        "---",
        "",
    ]


def numbers(result: dict[str, Any], checkpoint: str) -> list[str]:
    """The head and the measured rows of the table."""
    if not result:
        return ["The run has no result.json, so its losses are not known.", "", "| | |", "|---|---|"]
    head = (
        []
        if checkpoint == "final"
        else [
            f"The losses are those of the end of the run; these are its weights at checkpoint `{checkpoint}`.",
            "",
        ]
    )
    rows = [(label, result.get(key), form) for label, key, form in ROWS]
    shown = [f"| {label} | {form.format(value)} |" for label, value, form in rows if value is not None]
    shown += [
        f"| test bits per byte, {name.replace('|', '/')} | {one['bits_per_byte']:.4f} |"
        for name, one in result.get("test_sources", {}).items()
    ]
    return [*head, "| | |", "|---|---|", *shown]


def data_lines(run: Run) -> list[str]:
    """The run's text, which is what the model was trained on unless it was imported: names and hashes, no paths."""
    metadata = run.data.metadata
    told = ["What the model was trained on is not known to nanokimi. The run has this text:", ""]
    return [
        *(told if is_imported(run) else []),
        *text_lines(run),
        f"- tokenizer: {metadata['tokenizer']}, {metadata['vocab_size']:,} ids, SHA-256 `{run.data.tokenizer_sha256}`",
        f"- {metadata['train_tokens']:,} tokens to train, {metadata['val_tokens']:,} for validation, "
        f"{metadata.get('test_tokens', 0):,} for test",
        f"- random seed {run.config.seed}",
    ]


def text_lines(run: Run) -> list[str]:
    """The text, or each text of a mixture with its share of the training tokens."""
    metadata = run.data.metadata
    if not run.data.sources:
        return [f"- text: `{Path(str(metadata['path'])).name}`, SHA-256 `{metadata['sha256']}`"]
    return [
        f"- text: {one['name']}, `{Path(one['path']).name}`, {one['share']:.1%} of the training tokens, SHA-256 "
        f"`{one['sha256']}`"
        for one in run.data.sources
    ]


def audit_line(result: dict[str, Any]) -> str:
    """The verdict of the run's audit."""
    audit = result.get("audit")
    if not isinstance(audit, dict):
        return "Not audited: `nanokimi audit RUN` does it."
    if not audit.get("causal"):
        return f"**{audit.get('verdict')}**: {audit.get('where')}. The losses are void."
    return (
        f"Causal: {audit.get('passes')} forward passes with tokens changed, none of which moved a logit that it must "
        "not move."
    )


def how_to_load(run: Run) -> list[str]:
    """A piece of Python that works in the folder."""
    return [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
        f'ids = tokenizer({(run.config.sample.prompts or ("The",))[0][:60]!r}, return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0], skip_special_tokens=True))",
        "```",
    ]


def how_to_hand_over() -> list[str]:
    """The command that trains on in torchtitan."""
    return [
        "",
        "## How to train on in torchtitan",
        "",
        f'`{FLAVOR_FILE}` holds the flavor and the settings, and TEXT.jsonl a line `{{"text": "..."}}` for each '
        "document. This launch, which needs GPUs, was not tried:",
        "",
        "```sh",
        launch_line(Path("path/to/this/folder")),
        "```",
    ]


def licence_line(run: Run) -> str:
    """What is known of the rights."""
    if is_all_ours(run):
        return (
            "The training text is made by nanokimi, which is under the MIT licence, and so are these weights."
        )
    decides = "the training text decides"
    if is_imported(run):
        decides = "the imported model decides"
    elif began_elsewhere(run):
        decides = "the training text and of the weights that training began with decide"
    return f"Not known to nanokimi: that of {decides}. Fill it in, here and above, before you publish."


def is_all_ours(run: Run) -> bool:
    """Whether the weights were trained from the beginning, on a text that is nanokimi's own."""
    if is_imported(run) or began_elsewhere(run):
        return False
    return str(run.data.metadata["path"]).startswith(BUILT_IN) and "val_floor_nats" in run.data.metadata
