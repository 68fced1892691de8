"""Run folders: what a run leaves behind, that it repeats from it, and that nothing foreign is touched."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_study_files
from safetensors.torch import load_file

from nanokimi.config import ModelName, RunConfig
from nanokimi.config.files import load_config, save_config
from nanokimi.config.rules import resolve
from nanokimi.errors import UserError
from nanokimi.measure.evaluate import evaluate
from nanokimi.runtime.device import peak_memory_bytes, reset_peak_memory
from nanokimi.runtime.files import (
    append_json_line,
    create_run_folder,
    default_run_folder,
    give_back_unused_folders,
    read_json,
    read_json_lines,
    seal,
)
from nanokimi.train.chosen_weights import weights_of
from nanokimi.train.restored import restored_if_refused, set_results_aside
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import (
    described,
    fresh_folder,
    open_run,
    runs_in,
    set_up,
    training_folder,
)

Build = Callable[..., RunConfig]
Whole = Callable[[ModelName], tuple[Path, dict[str, Any]]]
MODELS: tuple[ModelName, ...] = ("nanokimi", "nanogpt")
CLOCKS = {"step_ms", "memory_bytes", "train_seconds"}
MEASURED = {
    *(
        "train_seconds",
        "tokens_per_second",
        "ms_per_step",
        "first_step_ms",
        "peak_memory_bytes",
        "idle_memory_bytes",
    ),
    *("prefill_ms", "decode_ms_per_token"),
}
RESULT_FIELDS = {
    *("name", "folder", "params_total", "params_active", "flops_per_token", "forward_flops_per_token"),
    *(
        "optimizer_flops_per_step",
        "steps",
        "tokens",
        "train_seconds",
        "tokens_per_second",
        "ms_per_step",
        "first_step_ms",
    ),
    *("val_loss", "val_perplexity", "val_bits_per_byte", "val_bits_per_char", "best_val_loss", "floor_gap"),
    *("test_loss", "test_perplexity", "test_bits_per_byte", "test_bits_per_char"),
    *("peak_memory_bytes", "idle_memory_bytes", "optimizer_state_bytes", "cache_bytes_per_token"),
    *("prefill_ms", "decode_ms_per_token", "loss_by_position", "tokens_by_position", "audit", "optimizer"),
    *("lr", "device", "dtype", "threads"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """For the name of a model, the folder of a finished run of it, only to be read, and what train_alone() returned."""
    folder = write_study_files(tmp_path_factory.mktemp("whole"), steps=12)
    made: dict[ModelName, dict[str, Any]] = {}

    def of(name: ModelName) -> tuple[Path, dict[str, Any]]:
        out = folder / "some" / "where" / name
        if name not in made:
            words = ["--model", name, "--train.threads", "1"]
            words += ["--data", str(folder / "text.txt"), "--dataset.cache", str(folder / "cache")]
            made[name] = train_alone(load_config(str(folder / "toy.yaml"), words), out)
        return out, made[name]

    return of


@pytest.fixture
def first(whole: Whole) -> Path:
    """The folder of a finished run; only to be read."""
    return whole("nanogpt")[0]


@pytest.fixture
def finished(first: Path, tmp_path: Path) -> Path:
    """A finished run, which the test may change."""
    return Path(shutil.copytree(first, tmp_path / "run"))


def timeless(folder: Path) -> list[dict[str, object]]:
    records = read_json_lines(folder / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def numbers(value: object) -> list[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [number for item in items for number in numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


# ---- what a run leaves


@pytest.mark.parametrize("name", MODELS)
def test_a_run_folder_holds_all_that_describes_and_continues_the_run(name: ModelName, whole: Whole) -> None:
    out, result = whole(name)
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    step = "checkpoints/step-00000012"
    assert names >= {
        *("config.yaml", "environment.json", "metrics.jsonl", "model.safetensors", "result.json"),
        *("window_nats.npy", "data/data.json", "data/train.bin", "data/val.bin", "data/tokenizer.json"),
        *(f"{step}/model.safetensors", f"{step}/optimizer.safetensors", f"{step}/state.json"),
    }
    assert not [path for path in names if "tmp" in path or (path.startswith(".") and path != ".lock")]

    stored = read_json(out / "result.json")
    assert stored == json.loads(json.dumps(result))
    assert set(stored) >= RESULT_FIELDS
    assert set(stored["audit"]) >= {"causal", "max_leak"} and stored["audit"]["causal"] is True
    assert all(math.isfinite(number) for number in numbers(stored))
    for field in RESULT_FIELDS - {"folder", "floor_gap", "optimizer_flops_per_step", "audit"}:
        assert stored[field], f"{field} is {stored[field]}"

    assert stored["name"] == {"nanokimi": "NanoKimi", "nanogpt": "NanoGPT"}[name]
    assert (stored["steps"], stored["tokens"]) == (12, 12 * 8 * 16)
    evaluations = [r["val_loss"] for r in read_json_lines(out / "metrics.jsonl") if r["kind"] == "eval"]
    assert stored["val_loss"] == evaluations[-1] and stored["best_val_loss"] == min(evaluations)
    assert stored["val_perplexity"] == pytest.approx(math.exp(stored["val_loss"]))
    steps = [r["step_ms"] for r in read_json_lines(out / "metrics.jsonl") if r["kind"] == "train"]
    assert stored["first_step_ms"] == steps[0]
    assert stored["tokens_per_second"] == pytest.approx(11 * 8 * 16 / sum(steps[1:]) * 1e3), (
        "the first is warm-up"
    )
    parameters = sum(p.numel() for p in open_run(out).model.parameters())
    assert stored["params_total"] == parameters
    windows = np.load(out / "window_nats.npy", allow_pickle=False)
    metadata = read_json(out / "data" / "data.json")
    assert windows.sum() == pytest.approx(stored["test_loss"] * metadata["test_tokens"])
    kinds = {record["kind"]: record for record in read_json_lines(out / "metrics.jsonl")}
    assert not [name for record in kinds.values() for name in record if name.startswith("test")]

    environment = read_json(out / "environment.json")
    assert (
        environment["packages"]["torch"] == torch.__version__.split("+")[0]
        or environment["packages"]["torch"]
    )
    assert {"time", "command", "python", "platform", "processor", "cores", "commit"} <= set(environment)


@pytest.mark.parametrize("name", MODELS)
def test_the_saved_config_repeats_the_run_bit_for_bit(name: ModelName, whole: Whole, tmp_path: Path) -> None:
    first, result = whole(name)
    again = train_alone(load_config(str(first / "config.yaml")), tmp_path / "again")
    assert equal(weights(first), weights(tmp_path / "again"))
    assert timeless(first) == timeless(tmp_path / "again")
    assert {key for key in result if result[key] != again[key]} <= MEASURED | {"folder"}
    texts = [(folder / "config.yaml").read_text() for folder in (first, tmp_path / "again")]
    assert texts[0] == texts[1]


def test_the_saved_config_leaves_nothing_to_choose(tiny_config: Build, tmp_path: Path) -> None:
    config = tiny_config(max_steps=1, device="auto", dtype="auto", threads=None)
    relative = Path(str(config.dataset.path))
    (tmp_path / "run").mkdir()
    returned, _ = set_up(config, tmp_path / "run")
    saved = load_config(str(tmp_path / "run" / "config.yaml"))
    assert saved == returned
    assert "auto" not in (saved.train.device, saved.train.dtype) and saved.train.threads
    assert saved.dataset.path == str(relative.resolve())
    metadata = read_json(tmp_path / "run" / "data" / "data.json")
    assert saved == resolve(
        saved,
        vocab_size=metadata["vocab_size"],
        device=saved.train.device,
        dtype=saved.train.dtype,  # type: ignore[arg-type]
        threads=saved.train.threads,
    )


def test_an_opened_run_scores_as_its_result_says(first: Path) -> None:
    result = read_json(first / "result.json")
    opened = open_run(first)
    scored = evaluate(opened.model, opened.data, 16, 64)
    assert scored.loss == result["val_loss"] != result["test_loss"]
    tested = evaluate(opened.model, opened.data, 16, 64, part="test").record()
    for name in ("test_loss", "test_perplexity", "test_bits_per_byte", "test_bits_per_char"):
        assert tested[name] == result[name]
    assert tested["loss_by_position"] == result["loss_by_position"]


def test_nanogpts_split_reports_the_text_that_was_tuned_on_and_says_so(
    tiny_config: Build, tmp_path: Path
) -> None:
    config = replace(tiny_config(max_steps=2), model="nanogpt")
    config = replace(config, dataset=replace(config.dataset, split="nanogpt"))
    result = train_alone(config, tmp_path / "run")
    assert result["test_loss"] == result["val_loss"] and "chosen on" in result["split_note"]


def test_a_run_without_a_test_part_is_opened_but_not_resumed(finished: Path) -> None:
    """As an earlier version left it: its model still writes and validates; the way on is said in one line."""
    data = finished / "data"
    (data / "test.bin").unlink()
    metadata = {k: v for k, v in read_json(data / "data.json").items() if not k.startswith(("test", "split"))}
    (data / "data.json").write_text(json.dumps(metadata | {"schema_version": 1}))
    opened = open_run(finished)
    assert evaluate(opened.model, opened.data, 16, 64).loss > 0
    with pytest.raises(UserError, match="without a test part.*--part val"):
        evaluate(opened.model, opened.data, 16, 64, part="test")
    with pytest.raises(UserError, match="begun without a test part.*in a new folder"):
        train_alone(open_run(finished).config, finished, resume=True)


# ---- folders that are taken, or that fail


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_second_run_into_the_same_folder_is_refused(first: Path) -> None:
    before = snapshot(first)
    with pytest.raises(UserError, match="already holds files"):
        train_alone(open_run(first).config, first)
    assert snapshot(first) == before


def test_a_folder_with_one_hidden_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    with pytest.raises(UserError, match="already holds files"), fresh_folder(tmp_path):
        raise AssertionError("it must not be entered")
    assert snapshot(tmp_path) == {".hidden": b""}


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert create_run_folder(tmp_path / "empty") == tmp_path / "empty"
    assert snapshot(tmp_path / "empty") == {}, "the write test is removed"


@pytest.mark.parametrize("change", ["no text", "short text", "vocabulary", "device", "prompt"])
def test_a_setup_that_fails_leaves_no_folder(change: str, tiny_config: Build, tmp_path: Path) -> None:
    config = tiny_config()
    if change == "no text":
        config = replace(config, dataset=replace(config.dataset, path=str(tmp_path / "none.txt")))
    elif change == "short text":
        Path(str(config.dataset.path)).write_text("too short")
    elif change == "vocabulary":
        small = replace(config.nanogpt, model=replace(config.nanogpt.model, vocab_size=5))
        config = replace(config, nanogpt=small)
    elif change == "device":
        config = replace(config, train=replace(config.train, device="cuda:99"))
    elif change == "prompt":
        config = replace(config, sample=replace(config.sample, prompts=("half a pair: \ud800",)))
    before = snapshot(tmp_path)
    for out in (tmp_path / "run", tmp_path / "new" / "parents" / "run"):
        with pytest.raises(UserError) as caught:
            train_alone(config, out)
        assert "\n" not in str(caught.value)
        assert snapshot(tmp_path) == before, "nothing is left behind, new parent folders included"


def test_a_setup_that_fails_keeps_an_empty_folder_that_was_there(tiny_config: Build, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    config = tiny_config(device="cuda:99")
    with pytest.raises(UserError):
        train_alone(config, tmp_path / "mine")
    assert (tmp_path / "mine").is_dir() and not any((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_a_setup_that_breaks_off_leaves_no_folder(error: type[BaseException], tmp_path: Path) -> None:
    """Ctrl-C while a long text is being prepared, or a full disk: the same command can be given again."""
    with pytest.raises(error), fresh_folder(tmp_path / "run") as folder:
        (folder / "half").write_text("written")
        raise error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as caught, fresh_folder(out):
            pass
        assert "--out" in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_default_run_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_run_folder("compare", "smoke") == Path("runs/compare-smoke-1")
    assert default_run_folder("compare", "smoke") == Path("runs/compare-smoke-2")
    assert default_run_folder("compare", "other") == Path("runs/compare-other-1")
    Path("runs/compare-other-1/config.yaml").touch()
    give_back_unused_folders()
    assert [path.name for path in Path("runs").iterdir()] == ["compare-other-1"], "only what was used is kept"
    assert default_run_folder("compare", "smoke") == Path("runs/compare-smoke-1"), "its number is free again"
    give_back_unused_folders()
    shutil.rmtree("runs")
    default_run_folder("compare", "smoke")
    give_back_unused_folders()
    assert not Path("runs").exists()


def test_starts_at_once_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: default_run_folder("train", "smoke"), range(32)))
    assert sorted(path.name for path in found) == sorted(f"train-smoke-{i + 1}" for i in range(32))


@pytest.mark.parametrize("name", ["x" * 300, "half\0way"])
def test_a_default_folder_that_cannot_be_made_is_a_user_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="choose another with --out"):
        default_run_folder("prepare", name)
    give_back_unused_folders()
    Path("runs").touch()
    with pytest.raises(UserError, match="choose another with --out"):
        default_run_folder("prepare", "text")


@pytest.mark.parametrize("there", [False, True])
def test_a_run_refused_before_its_first_record_leaves_nothing(
    there: bool, tiny_config: Build, tmp_path: Path
) -> None:
    """As by an optimizer that cannot be built from its arguments."""
    if there:
        (tmp_path / "new").mkdir()
    with (
        pytest.raises(UserError, match="refused"),
        training_folder(
            tiny_config(),
            tmp_path / "new" if there else tmp_path / "new" / "run",
            "train",
            lambda *_: None,
            resume=False,
            allow_changes=False,
        ),
    ):
        raise UserError("refused")
    assert (tmp_path / "new").exists() == there
    assert not there or not any((tmp_path / "new").iterdir())


def test_a_comparison_that_refuses_a_change_is_as_it_was(tmp_path: Path) -> None:
    """Its runs kept the refused settings, lost their results, and stood beside those of seeds that nobody wanted."""
    before = {
        "config.yaml": "old",
        "data/data.json": "old",
        "report.json": "old",
        "nanogpt/seed-7/config.yaml": "old",
        "nanogpt/seed-7/result.json": "old",
        "nanogpt/seed-7/model.safetensors": "old",
        "nanogpt/seed-7/model-before-1.safetensors": "older",
    }
    for name, content in before.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="refused"), restored_if_refused(tmp_path, True):
        for name in before:
            if not name.endswith(".safetensors"):
                (tmp_path / name).write_text("new")
        set_results_aside(tmp_path / "nanogpt" / "seed-7")
        assert (tmp_path / "nanogpt" / "seed-7" / "model-before-2.safetensors").read_text() == "old"
        (tmp_path / "config-before-1.yaml").write_text("old")
        for name in ("nanogpt/seed-8", "nanokimi/seed-7"):
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "config.yaml").write_text("new")
        raise UserError("refused")
    found = (path for path in tmp_path.rglob("*") if path.is_file())
    assert {path.relative_to(tmp_path).as_posix(): path.read_text() for path in found} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["data", "nanogpt"]


# ---- opening what is not a finished run


def test_a_folder_of_several_runs_says_which_there_are(tmp_path: Path) -> None:
    for name, ended in (("one", True), ("two", False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        if ended:
            (tmp_path / name / "result.json").touch()
    with pytest.raises(UserError, match="holds several runs") as caught:
        runs_in(tmp_path)
    assert f"{tmp_path / 'one'} " in f"{caught.value} ".replace(" and", " ").replace(",", " ")
    assert f"{tmp_path / 'two'} (not finished)" in str(caught.value)
    for written in ("report.json", "study.json", "search.json", "sweep.json"):
        (tmp_path / "two" / written).touch()
        assert described(tmp_path / "two") == str(tmp_path / "two"), f"{written} is written at the end"
        (tmp_path / "two" / written).unlink()
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(UserError, match="is a study"):
        runs_in(tmp_path)


def test_a_folder_that_holds_one_run_names_it(tmp_path: Path) -> None:
    """Such as an arm's folder of a comparison with one seed, which is no run itself."""
    for depth in ("seed-1337", "seed-1337/deeper"):
        folder = tmp_path / depth.replace("/", "-")
        run = folder / depth
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        with pytest.raises(UserError) as caught:
            runs_in(folder)
        assert str(caught.value) == f"{folder} is no run, but holds one: name {run} (not finished)"


def test_the_best_checkpoint_of_a_run_that_never_improved_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints" / "step-00000012").mkdir(parents=True)
    save_config(load_config("smoke"), tmp_path / "config.yaml")
    monkeypatch.setattr("nanokimi.train.chosen_weights.read_state", lambda *_: {"step": 12, "best_step": 0})
    with pytest.raises(
        UserError, match="lowest validation loss was that at step 0, whose weights are not kept"
    ):
        weights_of(tmp_path, "best")


def test_a_folder_beside_the_checkpoints_is_none(tmp_path: Path) -> None:
    """A copy that someone made of one ended in a traceback."""
    for name in ("step-00000006", "step-00000012", "step-00000012-copy", "step-x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "model.safetensors").touch()
        seal(tmp_path / "checkpoints" / name)
    assert weights_of(tmp_path, "last").parent.name == "step-00000012"
    with pytest.raises(UserError, match="there are final, best, last, 6, 12$"):
        weights_of(tmp_path, "x")


@pytest.mark.parametrize("wanted", ["best", "last", "12"])
def test_weights_that_are_not_kept_are_not_offered(wanted: str, tmp_path: Path) -> None:
    """Where there were no checkpoints, "best" was refused with "there are final, best, last"."""
    with pytest.raises(UserError, match=f"keeps no checkpoint '{wanted}', and no other: there is only final"):
        weights_of(tmp_path, wanted)


def test_a_foreign_or_unfinished_folder_cannot_be_opened(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="no config.yaml"):
        open_run(tmp_path / "foreign")
    with pytest.raises(UserError, match="is not a folder"):
        runs_in(tmp_path / "nowhere")
    (finished / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has not finished"):
        open_run(finished)


@pytest.mark.parametrize(
    "file", ["config.yaml", "model.safetensors", "data/data.json", "data/tokenizer.json", "data/val.bin"]
)
def test_a_damaged_run_is_a_user_error(file: str, finished: Path) -> None:
    path = finished / file
    content = path.read_bytes()
    cut = len(content) // 2
    if file == "config.yaml":
        cut = content.index(b"hidden_size") + 4  # in the midst of a word
    path.write_bytes(content[:cut])
    with pytest.raises(UserError) as caught:
        open_run(finished)
    assert Path(file).name in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_do_not_fit_the_config_are_a_user_error(finished: Path) -> None:
    path = finished / "config.yaml"
    save_config(replace(load_config(str(path)), model="nanokimi"), path)
    with pytest.raises(UserError, match="does not fit"):
        open_run(finished)


def test_a_comparisons_folder_means_its_arms(tmp_path: Path) -> None:
    for name in ("nanogpt", "nanokimi", "data"):
        (tmp_path / name).mkdir()
    for name in ("nanogpt", "nanokimi"):
        (tmp_path / name / "config.yaml").touch()
    assert runs_in(tmp_path) == [tmp_path / "nanogpt", tmp_path / "nanokimi"]
    assert runs_in(tmp_path / "nanogpt") == [tmp_path / "nanogpt"]


def test_records_with_line_separators_of_unicode_are_one_record(tmp_path: Path) -> None:
    """str.splitlines() cuts at U+2028 and U+0085, which JSON leaves in place: a run on such a text died at its end."""
    record = {"kind": "sample", "text": "a\u2028b\u2029c\x85d\x0be"}
    append_json_line(tmp_path / "metrics.jsonl", record)
    append_json_line(tmp_path / "metrics.jsonl", {"kind": "eval"})
    assert read_json_lines(tmp_path / "metrics.jsonl") == [record, {"kind": "eval"}]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")
def test_the_peak_of_memory_is_the_process_s_own() -> None:
    """getrusage's peak survives exec: a worker would inherit that of the comparison, and both arms look alike."""
    code = (
        "import subprocess, sys; block = bytearray(600_000_000); block[::4096] = b'x' * len(block[::4096])\n"
        "child = 'import torch; from nanokimi.runtime.device import peak_memory_bytes as p;'\n"
        "child += 'print(p(torch.device(\"cpu\")))'\n"
        "print(subprocess.run([sys.executable, '-c', child], capture_output=True, text=True).stdout)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 50e6 < int(found) < 500e6


def test_the_peak_of_memory_starts_again_after_a_reset() -> None:
    cpu = torch.device("cpu")
    block = torch.ones(50_000_000)
    before = peak_memory_bytes(cpu)
    del block
    reset_peak_memory(cpu)
    if peak_memory_bytes(cpu) == before:
        pytest.skip("this system cannot reset a process's peak")
    assert peak_memory_bytes(cpu) < before - 150e6
