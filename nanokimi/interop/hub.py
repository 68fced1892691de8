"""`nanokimi push` and `pull`: a model to the Hugging Face Hub and from it.

What goes up was exported and verified first, and goes in one commit: the Hub has all of it or nothing. What comes down
is the configuration, the tokenizer and safetensors, by name; nothing else is asked for, and nothing is executed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanokimi.data.packed import import_optional
from nanokimi.errors import TrainingError, UserError
from nanokimi.interop.export import export_hf
from nanokimi.interop.hf_read import INDEX, WEIGHTS, named_shards, read_config
from nanokimi.interop.import_run import config_in, import_model, parameters_of, tokenizer_files
from nanokimi.interop.verify import Receipt
from nanokimi.runtime.files import MAX_FILE_BYTES, file_sha256
from nanokimi.runtime.text import one_line

SMALL_FILES = ("tokenizer.json", "tokenizer.model", INDEX)
"""What is taken beside config.json and the weights, if it is there."""


@dataclass(frozen=True)
class Pushed:
    """What went to the Hub, or what would."""

    receipt: Receipt
    sizes: dict[str, int]
    url: str


def push(folder: Path, repo: str, checkpoint: str, *, public: bool, dry_run: bool) -> Pushed:
    """Export the run in `folder` into a temporary folder and upload that as one commit to the model repository `repo`.

    A repository that does not exist is made, private unless `public`. With `dry_run` nothing is sent, and no login is
    needed.

    Raises:
        UserError: there is no such run, no login, a name that cannot be one, or the Hub refuses or is not reached.
        TrainingError: what was exported, or what the Hub holds afterwards, is not the same.
    """
    hub = client(repo)
    if not dry_run:
        require_login(repo)
    with tempfile.TemporaryDirectory(prefix="nanokimi-push-") as temporary:
        out = Path(temporary) / repo.split("/")[1]
        receipt = export_hf(folder, out, checkpoint)
        files = sorted(out.iterdir())
        sizes = {path.name: path.stat().st_size for path in files}
        url = "" if dry_run else upload(hub, repo, files, public)
    return Pushed(receipt, sizes, url)


def upload(hub: Any, repo: str, files: list[Path], public: bool) -> str:
    """Send files as one commit, look at what the Hub then holds, and return the commit's address."""
    from huggingface_hub import CommitOperationAdd

    before = prepare_repository(hub, repo, public)
    operations = [CommitOperationAdd(path.name, str(path)) for path in files]
    try:
        with hub_errors(repo):
            commit = hub.create_commit(
                repo, operations, commit_message="Upload a model trained with nanokimi"
            )
    except UserError as error:
        return after_failure(hub, repo, files, before, error)
    with hub_errors(repo, "the files were sent, but what the Hub holds was not seen: push again"):
        held = hub.model_info(repo, revision=commit.oid, files_metadata=True)
    if (name := other_than_sent(held, files)) is not None:
        raise TrainingError(f"{repo} holds another {name} than was sent: push again")
    return str(commit.commit_url)


def after_failure(hub: Any, repo: str, files: list[Path], before: str | None, error: UserError) -> str:
    """The address of a commit that arrived although its answer did not.

    Raises `error` with what became of the repository, which only the Hub can say: a connection that broke off while
    the Hub answered has told nothing. A commit is all or nothing, and what was made for it stays for the next push.
    """
    try:
        with hub_errors(repo):
            held = hub.model_info(repo, files_metadata=True)
    except UserError:
        advice = "whether the files arrived is not known: push again, which sends only what the Hub lacks"
        raise UserError(f"{error}; {advice}") from None
    if held.sha != before and other_than_sent(held, files) is None:
        return f"{hub.endpoint}/{repo}/commit/{held.sha}"
    left = "the new repository is empty" if before is None else "the repository is as it was"
    raise UserError(f"{error}; {left}, push again") from None


def other_than_sent(held: Any, files: list[Path]) -> str | None:
    """The first of the files that the Hub lacks, or holds with another size or hash; None: it holds all of them."""
    there = {one.rfilename: one for one in held.siblings or []}
    for path in files:
        one = there.get(path.name)
        sha256 = one.lfs.sha256 if one is not None and one.lfs else None
        if one is None or one.size != path.stat().st_size or sha256 not in (None, file_sha256(path)):
            return path.name
    return None


def prepare_repository(hub: Any, repo: str, public: bool) -> str | None:
    """Make the repository if there is none, and return the commit that it stands at; None: it was made.

    Raises UserError if there is one that is public where a private one is meant, or the other way round.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with hub_errors(repo):
        try:
            found = hub.model_info(repo)
        except RepositoryNotFoundError:
            hub.create_repo(repo, private=not public, repo_type="model")
            return None
    if not found.private and not public:
        raise UserError(f"{repo} exists and is public: add --public, or choose another name")
    if found.private and public:
        raise UserError(f"{repo} exists and is private: leave out --public, or change that on the Hub")
    return str(found.sha)


def pull(
    repo: str,
    out: Path,
    *,
    revision: str = "",
    data: str = "",
    tokenizer: str = "",
    context: int | None = None,
) -> Any:
    """Download the model repository `repo` into a temporary folder and make the run folder `out` of it.

    `revision` is a branch, tag or commit (empty: the main branch); the others are those of `import_model`, whose
    configuration is returned. Raises UserError, and leaves nothing, if any of them cannot be used or the Hub does not
    answer.
    """
    hub = client(repo)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already holds files and a run never overwrites another: choose another --out")
    with tempfile.TemporaryDirectory(prefix="nanokimi-pull-") as temporary:
        folder = Path(temporary) / repo.split("/")[1]
        folder.mkdir()
        try:
            commit = download(hub, repo, revision, folder, lambda: tokenizer_files(folder, data, tokenizer))
            origin = f"{repo}@{commit}"
            return import_model(folder, out, data=data, tokenizer=tokenizer, context=context, origin=origin)
        except UserError as error:  # the temporary folder is gone when it is read
            raise UserError(str(error).replace(str(folder), repo)) from None


def download(hub: Any, repo: str, revision: str, folder: Path, check: Callable[[], object]) -> str:
    """Fetch what `import` reads, and return the commit.

    The configuration comes first, and the weights come last, so that nobody waits for gigabytes that cannot be used:
    `check` raises UserError if the tokenizer is not there.
    """
    with hub_errors(repo):
        info = hub.model_info(repo, revision=revision or None, files_metadata=True)
    files = {one.rfilename: one for one in info.siblings or []}

    def fetch(name: str) -> None:
        one = files[name]
        if not name.endswith(".safetensors") and (one.size or 0) > MAX_FILE_BYTES:
            raise UserError(
                f"{repo} has a {name} of {one.size:,} bytes, at most {MAX_FILE_BYTES:,} are expected"
            )
        with hub_errors(repo):
            hub.hf_hub_download(repo, name, revision=info.sha, local_dir=folder)
        if one.lfs and file_sha256(folder / name) != one.lfs.sha256:
            raise UserError(f"{repo}: {name} was damaged on its way: pull again")

    if "config.json" in files:
        fetch("config.json")
    parameters_of(config_in(read_config(folder)))
    for name in SMALL_FILES:
        if name in files and not (name == INDEX and WEIGHTS in files):
            fetch(name)
    check()
    if WEIGHTS in files:
        shards = [WEIGHTS]
    elif INDEX in files:
        shards = named_shards(folder)
    else:
        raise UserError(f"{repo} has no {WEIGHTS} and no {INDEX}: only safetensors are read")
    for name in shards:
        if name not in files:
            raise UserError(f"{repo} lacks {name}, which its index names: the repository is not whole")
        fetch(name)
    return str(info.sha)


def client(repo: str) -> Any:
    """The Hub's own client, at HF_ENDPOINT. Raises UserError for a name that is not owner/name."""
    library = import_optional("huggingface_hub", "the Hub", "hub")
    utils = import_optional("huggingface_hub.utils", "the Hub", "hub")  # it is loaded only when it is named
    try:
        utils.validate_repo_id(repo)
        owner, slash, name = repo.partition("/")
        if not (owner and slash and name):
            raise ValueError("it has no owner")
    except ValueError as error:
        reason = one_line(error).rstrip(".")
        raise UserError(f"{repo} is not a name on the Hub ({reason[:200]}): expected owner/name") from None
    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    return library.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="nanokimi")


def require_login(repo: str) -> None:
    """Raise UserError if the Hub's client knows no token."""
    from huggingface_hub import get_token

    with hub_errors(repo):
        if get_token():
            return
    raise UserError(
        "there is no login for the Hub: run `hf auth login`, or set HF_TOKEN (--dry-run needs none)"
    )


@contextmanager
def hub_errors(repo: str, left: str = "") -> Iterator[None]:
    """Turn what the Hub's client raises into one line; what the disk of this machine raises stays what it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        after = f"; {left}" if left else ""
        raise UserError(f"{repo}: {reason_of(error)}{after}") from None


def reason_of(error: BaseException) -> str:
    """What went wrong at the Hub and what to do, from an exception or one that it came from."""
    chain: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in chain:
        chain.append(one)
        one = one.__cause__ or one.__context__
    if "OfflineModeIsEnabled" in {type(one).__name__ for one in chain}:
        return "the Hub was not asked, because HF_HUB_OFFLINE is set: unset it"
    answered = next((one for one in chain if getattr(one, "response", None) is not None), None)
    kind, status = type(answered).__name__, getattr(getattr(answered, "response", None), "status_code", None)
    if kind == "RevisionNotFoundError":
        return "there is no such revision: check --revision"
    if status == 404 or kind == "RepositoryNotFoundError":
        return (
            "the Hub has none of that name, or it is private: check the name, and log in with `hf auth login`"
        )
    if status == 401:
        return (
            "the Hub does not accept the login (401): run `hf auth login`, or set HF_TOKEN to a valid token"
        )
    if status == 403:
        return "the login may not do that (403): use a token that may, or ask for access"
    said = one_line(error)[:200] or type(error).__name__
    if status is not None:
        return f"the Hub answers with status {status} ({said}): try again later"
    return f"the Hub cannot be reached, or not understood ({said}): check the network and HF_ENDPOINT"
