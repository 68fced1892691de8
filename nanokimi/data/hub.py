"""Data sets of the Hugging Face Hub, read with the library `datasets`; TinyStories (arXiv 2305.07759) has a name.

Any failure to reach the Hub becomes one line that suggests `tales`, which needs no network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanokimi.data.documents import Document, split_lines
from nanokimi.data.packed import import_optional
from nanokimi.data.parts import own_part
from nanokimi.data.records import require_column, require_text
from nanokimi.errors import UserError
from nanokimi.runtime.text import one_line

TINYSTORIES = "roneneldan/TinyStories"
V2_FILES = {"train": "TinyStoriesV2-GPT4-train.txt", "validation": "TinyStoriesV2-GPT4-valid.txt"}
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
TEST_SPLIT = "test"


@dataclass(frozen=True)
class HubSet:
    """What to load: a repository of the Hub (or a local folder of the same form), and how."""

    name: str
    repository: str
    split: str | None
    """None: train, and the set's own validation and test splits if it has them."""
    column: str
    streaming: bool
    files: dict[str, str] | None = None
    """Text files of the repository whose lines are to be joined to documents; None: what `datasets` finds."""

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the content: `datasets`' own hash of the revision and its files."""
        datasets = _import_datasets(self.name)
        with _hub_errors(self.name):
            builder = datasets.load_dataset_builder(self.repository, data_files=self.files)
        return {
            "hub": self.repository,
            "hash": builder.hash,
            "config": builder.config_id,
            "split": self.split,
            "column": self.column,
        }

    def own_parts(self) -> list[tuple[str, str | None]]:
        """Each split that is read, with the part that it is for, or None if its documents are split by content."""
        datasets = _import_datasets(self.name)
        with _hub_errors(self.name):
            builder = datasets.load_dataset_builder(self.repository, data_files=self.files)
            splits = dict.fromkeys([*(builder.config.data_files or {}), *(builder.info.splits or {})])
        return self._parts([str(split) for split in splits])

    def documents(self) -> Iterator[Document]:
        """All documents, marked with their part if the set has a validation or test split of its own."""
        datasets = _import_datasets(self.name)
        options: dict[str, Any] = {"keep_linebreaks": True} if self.files else {}
        with _hub_errors(self.name):
            loaded = datasets.load_dataset(
                self.repository, data_files=self.files, streaming=self.streaming, **options
            )
        for split, part in self._parts(list(loaded)):
            rows = loaded[split]
            require_column(self.column, list(rows.column_names or [self.column]), self.name)
            texts = self._texts(rows.select_columns([self.column]))
            for text in split_lines(texts) if self.files else texts:
                yield Document(text, part)

    def _texts(self, rows: Any) -> Iterator[str]:
        with _hub_errors(self.name):  # a stream can break in the middle
            for row in rows:
                yield require_text(row[self.column], self.column, self.name)

    def _parts(self, splits: list[str]) -> list[tuple[str, str | None]]:
        wanted = self.split or "train"
        if wanted not in splits:
            raise UserError(
                f"{self.name} has no split '{wanted}' (it has: {', '.join(splits)}): name one as "
                "hf:owner/name:split; --data tales needs none"
            )
        val = next((name for name in VALIDATION_SPLITS if name in splits), None)
        test = TEST_SPLIT if TEST_SPLIT in splits else None
        if self.split is not None or val is None and test is None:
            return [(wanted, None)]
        own = {"train": wanted, "val": val, "test": test}
        names = [part for part, split in own.items() if split]
        return [(str(own[part]), own_part(part, names)) for part in names]


def hub_set(path: str, column: str, streaming: bool) -> HubSet | None:
    """The data set that a `dataset.path` names: tinystories, tinystories-v2 or hf:owner/name[:split]; else None."""
    if path == "tinystories":
        return HubSet(path, TINYSTORIES, None, column, streaming)
    if path == "tinystories-v2":
        return HubSet(path, TINYSTORIES, None, "text", streaming, V2_FILES)
    if not path.startswith("hf:"):
        return None
    repository, colon, split = path.removeprefix("hf:").rpartition(":")
    if not colon or "/" in split:
        repository, split = path.removeprefix("hf:"), ""
    if "/" not in repository.strip("/"):
        raise UserError(f"{path} names no data set: expected hf:owner/name or hf:owner/name:split")
    return HubSet(path, repository, split or None, column, streaming)


def _import_datasets(name: str) -> Any:
    datasets = import_optional("datasets", name)
    datasets.disable_progress_bars()
    return datasets


class _hub_errors:
    """Turn any exception of the Hub's libraries into one line: they raise too many kinds to list."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            reason = one_line(error) or type(error).__name__
            raise UserError(
                f"{self.name} cannot be loaded from the Hub ({reason[:300]}): check the name and the network, or use "
                "--data tales, which needs neither"
            ) from None
