"""A part of the user's in place of one of NanoKimi's or NanoGPT's: everything else stays as it was."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from test_variant_runs import LEAKY

from nanokimi.cli.plugins import take_plugins
from nanokimi.cli.resuming import configured
from nanokimi.cli.studies import take_arms
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import config_text, load_config
from nanokimi.config.rules import resolve
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost
from nanokimi.runtime.plugins import forget_plugins, imported_files, name_plugin, require_same_plugins

EXAMPLE = Path(__file__).parent.parent / "examples" / "sliding_window.py"
ATTENTION, LAYER = f"{EXAMPLE}:SlidingWindowAttention", f"{EXAMPLE}:SwishLayer"
OURS, THEIRS = "sliding_window.py:SlidingWindowAttention", "sliding_window.py:SwishLayer"


def asked(command: str, *words: str) -> RunConfig:
    """The configuration of a command line on the preset smoke."""
    arms, rest = take_arms(take_plugins(command, list(words)))
    config = configured(command, {"config": "smoke"}, rest, arms)[1]
    return resolve(config, vocab_size=256, device="cpu", dtype="fp32", threads=1)


def active(config: RunConfig) -> int:
    return model_cost(config.family.model, config.train.context_length).params_active


def test_a_plugin_keeps_the_sizes_of_the_model_that_it_is_plugged_into() -> None:
    """The variant's own sizes once gave a comparison of 819k against 115k parameters."""
    plain = asked("train", "--model", "nanogpt")
    for words in (["--model", "nanogpt"], ["--model", "variant"]):
        both = asked("train", *words, "--plugin", ATTENTION, "--plugin", LAYER)
        model = both.variant.model
        assert both.model == "variant" and active(both) == active(plain)
        assert (model.attention, model.experts) == (OURS, THEIRS)
        assert both.variant.optim == plain.nanogpt.optim
    kimi = asked("train", "--nanokimi.optim.lr", "3e-3", "--plugin", ATTENTION)
    assert kimi.title == "NanoKimi with SlidingWindowAttention"
    assert kimi.variant.optim == kimi.nanokimi.optim and kimi.variant.optim.lr == 3e-3
    renamed_or_refused = {"rms_norm_eps", "rope_scaling", "latent_norm_eps", "rescale_prenorm_residual"}
    kept = {one.name for one in fields(kimi.nanokimi.model)} - renamed_or_refused
    assert all(getattr(kimi.variant.model, name) == getattr(kimi.nanokimi.model, name) for name in kept)
    rescaled = asked("train", "--nanokimi.model.rescale_prenorm_residual", "true", "--plugin", ATTENTION)
    assert (kimi.variant.model.initialization, rescaled.variant.model.initialization) == ("flat", "gpt2")


def test_compare_makes_one_more_arm_of_a_plugin_from_the_first_or_from_the_one_that_is_named() -> None:
    config = asked("compare", "--plugin", ATTENTION, "--arm", f"Mine: from=nanogpt model.experts={LAYER}")
    arms = arm_configs(config)
    preset = ["NanoKimi", "NanoGPT with Muon", "NanoGPT"]
    assert list(arms) == [*preset, "Mine", "NanoKimi with SlidingWindowAttention"]
    assert active(arms["Mine"]) == active(arms["NanoGPT"])
    assert arms["Mine"].variant.optim == config.nanogpt.optim
    assert arms["NanoKimi with SlidingWindowAttention"].variant.model.kv_lora_rank == 32
    only = asked("compare", "--arms", "NanoGPT", "--plugin", ATTENTION)
    assert list(arm_configs(only)) == ["NanoGPT", "NanoGPT with SlidingWindowAttention"]


def test_an_attention_that_cannot_be_clipped_is_trained_without_qk_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(LEAKY)
    config = asked("train", "--plugin", f"{tmp_path}/mine.py:Past")
    assert config.variant.optim.name == "muon" and config.variant.optim.lr == config.nanokimi.optim.lr
    assert "without QK-Clip" in capsys.readouterr().err
    own = asked("train", "--model", "nanogpt", "--plugin", f"{tmp_path}/mine.py:Choosy")
    assert own.model == "nanogpt" or own.variant.optim.name == "mine.py:Choosy"
    assert active(own) == active(asked("train", "--model", "nanogpt"))


def test_an_arm_may_replace_any_part_of_nanogpt_or_nanokimi(tmp_path: Path) -> None:
    words = ["RoPE: from=nanogpt model.positions=rope", "Dense: from=nanokimi model.experts=none"]
    config = asked("compare", "--arm", words[0], "--arm", words[1])
    arms = arm_configs(config)
    assert arms["RoPE"].variant.model.hidden_size == 64 and arms["RoPE"].variant.model.positions == "rope"
    assert arms["Dense"].variant.model.attention == "mla"
    assert arms["Dense"].variant.model.initializer_range == config.nanokimi.model.initializer_range
    (tmp_path / "config.yaml").write_text(config_text(config))
    assert arm_configs(load_config(str(tmp_path / "config.yaml"))) == arms
    with pytest.raises(UserError, match="rope_scaling"):
        asked("train", "--nanokimi.model.rope_scaling.factor", "2", "--plugin", ATTENTION)
    with pytest.raises(UserError, match="latent_norm_eps"):
        asked("train", "--nanokimi.model.latent_norm_eps", "1e-5", "--plugin", ATTENTION)
    with pytest.raises(UserError, match="activation_function"):
        asked("train", "--model", "nanogpt", "--activation_function", "gelu_new", "--plugin", ATTENTION)


IMPORTING = """
import json
import torch
from torch.nn import functional as F
try:
    from . import beyond
    import broken
except ImportError:
    pass

import helper
from package.inner import WIDTH


class Mine(torch.nn.Module):
    plugs_into = "feed_forward"
"""


def test_a_plugin_is_another_if_one_of_the_users_files_that_it_imports_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison went on with a part whose helper was another one by then, and nothing was said."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    plugin, helper, inner = tmp_path / "mine.py", tmp_path / "helper.py", tmp_path / "package" / "inner.py"
    inner.parent.mkdir()
    (inner.parent / "__init__.py").write_text("")
    (tmp_path / "deeper.py").write_text("DEPTH = 1")
    (tmp_path / "broken.py").write_text("def")
    inner.write_text("from deeper import *\nfrom . import __name__ as ours\nWIDTH = 1")

    def hashed(content: str, help_with: str) -> str:
        plugin.write_text(content)
        helper.write_text(f"import numpy\nimport {help_with}")
        forget_plugins()
        for name in ("helper", "package", "package.inner", "deeper"):
            sys.modules.pop(name, None)
        return name_plugin(f"{plugin}:Mine").sha256

    first = hashed(IMPORTING, "json")
    assert set(imported_files(IMPORTING.encode())) == {
        "helper",
        "package",
        "package.inner",
        "deeper",
        "broken",
    }
    assert hashed(IMPORTING, "json") == first
    assert hashed(IMPORTING, "torch") != first
    (tmp_path / "deeper.py").write_text("DEPTH = 2")
    assert hashed(IMPORTING, "json") != first
    kept = {"mine.py:Mine": first}
    with pytest.raises(UserError, match="made with another mine.py, or with others that it imports"):
        require_same_plugins(kept, tmp_path)
    alone = IMPORTING.replace("import helper\nfrom package.inner import WIDTH", "").replace(
        "import broken", ""
    )
    assert hashed(alone, "json") == hashlib.sha256(alone.encode()).hexdigest(), "as in runs of before"
    forget_plugins()
