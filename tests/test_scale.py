"""Power laws with known answers, what is saved, and the whole study at toy size; the sweep's command line."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import study_command, write_study_files
from scipy.interpolate import PchipInterpolator

from nanokimi import cli
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.config.rules import resolve
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost
from nanokimi.runtime.files import read_json
from nanokimi.study.jobs import read_results
from nanokimi.study.ladder import CORNERS, END, START
from nanokimi.study.power_law import (
    CUBIC,
    LAW,
    LINES,
    Size,
    Sizes,
    between_sizes,
    describe_fit,
    fit_power,
    misfit,
    monotone_cubic,
    multiplier,
)
from nanokimi.study.scale import ScaleOptions, at_size, ratio_sentence, saving, scale_arms

COMPUTE = np.array([1e9, 3e9, 1e10, 4e10])


def law(compute: np.ndarray | float, e0: float, a: float, alpha: float) -> np.ndarray:
    return np.asarray(e0 + a * np.asarray(compute) ** -alpha)


def sizes(losses_SN: np.ndarray) -> Sizes:
    nothing_N = np.zeros(len(COMPUTE))
    return Sizes(COMPUTE, losses_SN, nothing_N, nothing_N)


# ---- curves


def test_a_law_is_found_again() -> None:
    fit = fit_power(COMPUTE, law(COMPUTE, 0.2, 30.0, 0.15), floor=0.2)
    assert (fit.alpha_R[0], math.exp(fit.log_a_R[0])) == pytest.approx((0.15, 30.0))
    assert fit.compute_for(law(5e9, 0.2, 30.0, 0.15)[None])[0] == pytest.approx(5e9)
    assert fit.compute_for(np.array([0.2]))[0] == math.inf, "the entropy is never reached"


def test_e0_is_fitted_only_where_sizes_determine_it() -> None:
    many = np.geomspace(1e8, 1e12, 8)
    found = describe_fit(list(many), law(many, 1.5, 200.0, 0.3)[None], None)
    assert found["e0_is"] == "fitted" and found["e0"] == pytest.approx(1.5, rel=0.02)
    few = describe_fit(list(COMPUTE), law(COMPUTE, 1.5, 200.0, 0.3)[None], None)
    assert few["e0"] == 0 and few["e0_is"].startswith("taken as 0: 4 sizes")
    assert describe_fit(list(COMPUTE), law(COMPUTE, 1.5, 200.0, 0.3)[None], 1.4)["e0"] == 1.4


def test_the_multiplier_of_a_known_pair_and_its_interval() -> None:
    """The new family needs a third of the compute. One curve's interval over seeds holds 3 about 95% of the time, the
    envelope of all of them more often."""
    generator = np.random.default_rng(2)
    clean = multiplier(
        sizes(law(COMPUTE, 0.2, 30.0, 0.15)[None].repeat(5, 0)),
        Size(1e10 / 3, law(1e10, 0.2, 30.0, 0.15).repeat(5)),
        0.2,
    )
    assert clean["ratio"] == pytest.approx(3.0) and clean["bound"] is None
    assert clean["seeds95"] == pytest.approx([3.0, 3.0])
    covered, wholly = 0, 0
    for _ in range(100):
        base = law(COMPUTE, 0.2, 30.0, 0.15) + generator.normal(0, 0.004, (5, 4))
        new = law(1e10, 0.2, 30.0, 0.15) + generator.normal(0, 0.004, 5)
        found = multiplier(sizes(base), Size(1e10 / 3, new), 0.2)
        covered += found["seeds95"][0] <= 3 <= found["seeds95"][1]
        wholly += found["ci95"][0] <= 3 <= found["ci95"][1]
        assert found["ci95"][0] <= found["seeds95"][0] <= found["seeds95"][1] <= found["ci95"][1]
    assert 0.90 <= covered / 100 <= 0.99 and wholly >= covered


def test_the_interval_holds_every_curve_and_every_size_left_out() -> None:
    """On losses no law describes, lines through four sizes and through three differ: the interval says so."""
    bent = np.array([4.3, 3.6, 3.1, 1.3]) + np.array([[-0.01], [0.0], [0.01]])
    found = multiplier(sizes(bent), Size(2e9, np.array([2.19, 2.2, 2.21])), 0.2, by_law=False)
    lines = [one for one in found["sensitivity"] if one["curve"] == LINES]
    assert [one["without"] for one in lines] == [None, *COMPUTE] and len(found["sensitivity"]) == 4 * 5
    assert lines[0]["ratio"] == found["ratio"] and lines[0]["ci95"] == found["seeds95"]
    assert lines[-1]["bound"] == ["more than", pytest.approx(5.0)], "without the last size it is not reached"
    read = [one for one in found["sensitivity"] if one["ratio"] is not None]
    assert found["range"] == [min(one["ratio"] for one in read), max(one["ratio"] for one in read)]
    assert found["range"][1] / found["range"][0] > 1.2 * found["seeds95"][1] / found["seeds95"][0]
    assert found["ci95"][0] <= found["range"][0] and found["range"][1] <= found["ci95"][1]
    once = multiplier(sizes(bent[1:2]), Size(2e9, np.array([2.2])), 0.2, by_law=False)
    assert once["ci95"] is None and once["range"][0] < once["ratio"] < once["range"][1]
    curves = {
        one["curve"] for one in multiplier(sizes(bent), Size(2e9, np.full(3, 2.2)), None)["sensitivity"]
    }
    assert curves == {LAW, LINES, CUBIC}, "without a known floor the two laws are one"


def test_the_searches_noise_is_in_a_multiplier() -> None:
    """Of a law L = A C^-a, a step d in the loss is one of d / (a L) in the logarithm of the compute."""
    lawful, new, alpha = law(COMPUTE, 0.0, 30.0, 0.15), law(5e9, 0.0, 30.0, 0.15), 0.15
    noisy = Size(2e9, new.repeat(3), search=0.001**2)
    found = multiplier(sizes(lawful[None].repeat(3, 0)), noisy, 0.0)
    half = math.log(found["seeds95"][1] / found["ratio"])
    assert half == pytest.approx(4.302653 * 0.001 / (alpha * float(new)), rel=0.01)


def test_the_luck_of_one_search_moves_all_sizes_together() -> None:
    """A law whose losses are all larger by a share r reaches a loss after log(1 + r) / a more of the logarithm."""
    lawful, new, alpha = law(COMPUTE, 0.0, 30.0, 0.15), Size(2e9, law(5e9, 0.0, 30.0, 0.15).repeat(3)), 0.15
    nothing_N, luck_N = np.zeros(len(COMPUTE)), (0.001 * lawful) ** 2
    halves = []
    for own_N, shared_N in ((nothing_N, luck_N), (luck_N, nothing_N)):
        found = multiplier(Sizes(COMPUTE, lawful[None].repeat(3, 0), own_N, shared_N), new, 0.0)
        halves.append(math.log(found["seeds95"][1] / found["ratio"]))
    assert halves[0] == pytest.approx(4.302653 * 0.001 / alpha, rel=0.01)
    assert halves[1] < 0.8 * halves[0], "luck of their own is partly averaged out"


def test_the_monotone_cubic_is_scipys() -> None:
    generator = np.random.default_rng(9)
    for count in (3, 4, 7):
        for _ in range(20):
            xs = np.cumsum(generator.uniform(0.1, 2, count))
            ys = np.cumsum(generator.uniform(0, 1, count) ** 4)
            asked = generator.uniform(xs[0], xs[-1], 9)
            expected = PchipInterpolator(xs, ys)(asked)
            assert [monotone_cubic(x, xs, ys) for x in asked] == pytest.approx(expected, rel=1e-10)
    assert monotone_cubic(0.5, np.array([0.0, 1.0]), np.array([1.0, 2.0])) == 1.5


def test_nothing_is_said_beyond_twice_what_was_measured() -> None:
    base = law(COMPUTE, 0.2, 30.0, 0.15)[None].repeat(3, 0)
    for at, inside in ((7.9e10, True), (8.1e10, False), (5.1e8, True), (4.9e8, False)):
        found = multiplier(sizes(base), Size(1e9, law(at, 0.2, 30.0, 0.15).repeat(3)), 0.2)
        assert (found["ratio"] is not None) == inside, at
    above = multiplier(sizes(base), Size(1e9, np.full(3, 0.21)), 0.2)
    assert above["bound"] == ["more than", pytest.approx(80.0)] and above["ci95"] is None


def test_a_law_that_misses_its_sizes_is_not_used() -> None:
    generator = np.random.default_rng(3)
    noise = generator.normal(0, 0.01, (5, 4))
    lawful, bent = law(COMPUTE, 0.2, 30.0, 0.15), np.array([4.3, 3.6, 3.1, 1.3])
    assert misfit(COMPUTE, lawful + noise, 0.2)[1]
    missed, describes = misfit(COMPUTE, bent + noise, 0.2)
    assert not describes and 0.3 < missed < 1
    assert misfit(COMPUTE, bent[None], 0.2)[1], "one seed says nothing about noise"


def test_between_sizes_the_compute_is_interpolated_and_beyond_them_nothing_is_said() -> None:
    """On a power law, a straight line in the logarithms, both ways give the same."""
    lawful = law(COMPUTE, 0.2, 30.0, 0.15)
    found = between_sizes(COMPUTE, lawful, law(5e9, 0.2, 30.0, 0.15)[None], 0.2)
    assert found[0] == pytest.approx(5e9)
    bent, new = np.array([4.3, 3.6, 3.1, 1.3])[None].repeat(3, 0), np.full(3, 3.1)
    same = multiplier(sizes(bent), Size(2e9, new), 0.2, by_law=False)
    assert same["ratio"] == pytest.approx(5.0) and same["seeds95"] == pytest.approx([5.0, 5.0])
    below = multiplier(sizes(bent), Size(2e9, np.full(3, 1.2)), 0.2, by_law=False)
    assert below["ratio"] is None and below["bound"] == ["more than", pytest.approx(20.0)]
    above = multiplier(sizes(bent), Size(2e9, np.full(3, 4.4)), 0.2, by_law=False)
    assert above["bound"] == ["less than", pytest.approx(0.5)]


def test_what_is_saved_says_how_it_was_read() -> None:
    def points(losses: list[float], share: float) -> list[dict[str, object]]:
        rows = zip(COMPUTE, losses, strict=True)
        return [
            {
                "flops": share * c,
                "losses": [x - 0.01, x, x + 0.01],
                "test_loss": x,
                "search_variance": 0.0,
                "own_variance": 0.0,
                "shared_variance": 0.0,
                "hidden_size": width,
                "epochs": width / 80,
            }
            for width, (c, x) in zip((32, 48, 64, 96), rows, strict=True)
        ]

    def curves(base: list[float]) -> list[dict[str, object]]:
        losses_SN = np.array([point["losses"] for point in points(base, 1)]).T
        laws = {"flops": describe_fit(list(COMPUTE), losses_SN, 0.2)}
        new = [x - 0.3 for x in base]
        return [
            {"family": START, "laws": laws, "points": points(base, 1)},
            {"family": END, "laws": {}, "points": points(new, 0.5)},
        ]

    lawful = saving(curves(list(law(COMPUTE, 0.2, 30.0, 0.15))), START, "flops", 0.2)
    assert "a power law misses" not in lawful["sentence"]
    bent = saving(curves([4.3, 3.6, 3.1, 1.3]), START, "flops", 0.2)
    assert bent["sentence"].count("Read between NanoGPT's sizes: a power law misses") == 1
    assert "for the loss 2.8000" in bent["sentence"], "the largest size that the base reaches, not beyond"
    assert "A ratio was read at 3 of 4 sizes: " in bent["sentence"]
    assert " at 64 wide (from NanoGPT's 64 and 96); none at 96 wide, beyond what was" in bent["sentence"]
    assert bent["sentence"].count("The sizes read the text 0.4, 0.6, 0.8 and 1.2 times.") == 1


# ---- sizes


@pytest.fixture
def config() -> RunConfig:
    loaded = load_config("scale-tales", ["--data", "text.txt"])
    return resolve(loaded, vocab_size=1024, device="cpu", dtype="fp32", threads=1)


def test_an_interval_without_bounds_is_told_in_words() -> None:
    """A quick study once printed a number of 64 digits."""
    one = {"ci95": (1e-9, 5e61), "range": (1.0, 2.0), "loss": 3.5, "ratio": 27.15}
    found = ratio_sentence(one, "NanoGPT", "compute")
    assert "27.15 times" in found and "(95% interval less than 0.01 to more than 1,000, over" in found


def test_a_ratio_without_an_interval_is_no_verdict() -> None:
    """The range of the curves has none of the seeds' noise, and yet a study said that NanoKimi needs more."""
    one = {"ci95": None, "range": (0.17, 0.75), "loss": 0.542, "ratio": 0.69}
    found = ratio_sentence(one, "NanoGPT", "compute")
    assert "no interval, and so no verdict" in found and "needs more" not in found
    assert ratio_sentence({**one, "ci95": (0.4, 0.9)}, "NanoGPT", "compute").endswith(f"so {END} needs more.")


def test_sizes_keep_heads_and_tokens_per_parameter(config: RunConfig) -> None:
    context = config.train.context_length
    per_parameter = []
    for hidden in (32, 64, 96):
        sized = at_size(config, hidden, equal_steps=False)
        gpt = sized.nanogpt.model
        assert gpt.hidden_size // gpt.num_attention_heads == 16 and gpt.hidden_size == hidden
        assert sized.train.max_steps is not None
        per_parameter.append(sized.train.max_steps / model_cost(gpt, context).params_active)
    assert per_parameter == pytest.approx([per_parameter[1]] * 3, rel=0.01)
    assert at_size(config, 64, equal_steps=False) == config
    assert at_size(config, 96, equal_steps=True).train.max_steps == config.train.max_steps
    arms = scale_arms(config, ScaleOptions(sizes=(32, 48, 64, 96)))
    assert len(arms) == 8 and all(abs(arm.size_gap or 0) < 0.02 for arm in arms)
    assert list(CORNERS)[0] == START and list(CORNERS)[-1] == END


# ---- through the command line


def test_a_family_of_the_users_own_stands_at_every_size(config: RunConfig) -> None:
    added = ("Lion: from=nanogpt optim.name=lion optim.lr=3e-4",)
    arms = scale_arms(config, ScaleOptions(sizes=(32, 48, 64, 96), families=(END,), added=added))
    lions = [arm for arm in arms if arm.family == "Lion"]
    assert [arm.name for arm in lions] == [f"Lion, {hidden} wide" for hidden in (32, 48, 64, 96)]
    assert [arm.config.variant.model.hidden_size for arm in lions] == [32, 48, 64, 96]
    assert {arm.config.variant.optim.name for arm in lions} == {"lion"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: from=nanogpt model.hidden_size=64", "model.hidden_size is what --sizes changes: leave it out"),
        ("x: from=mine.py:Model", "a class of your own has no width that scale could change"),
        ("x: from=nanogtp", "from is nanogtp: arms of a study are made from nanokimi, nanogpt"),
        ("x optim.lr=1", 'expected "NAME: from=FAMILY'),
    ],
)
def test_a_family_that_cannot_be_scaled_is_refused(config: RunConfig, text: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        scale_arms(config, ScaleOptions(sizes=(32, 48, 64, 96), added=(text,)))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_study_files(tmp_path, steps=8)


def test_scale_end_to_end(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = "--sizes 16,32,48,64 --seeds 2 --points 2 --rounds 0 --tuning-seeds 1 --search rates --workers 1".split()
    assert cli.main(study_command(toy, "scale", *more)) == 0
    report = read_json(toy / "out" / "study.json")
    assert len(report["arms"]) == 8 and {one["family"] for one in report["curves"]} == {START, END}
    assert len(report["sentences"]) == 2 and all(f"times {END}'s " in one for one in report["sentences"])
    shown = capsys.readouterr().out
    assert report["sentences"][0] in shown and "Sizes are matched in active parameters" in shown
    assert {"study.html", "curve-flops.png", "curve-seconds.png"} <= {p.name for p in (toy / "out").iterdir()}
    assert len(read_results(toy / "out")) == 8 * 2 + 8 * 2
    effects = [one["name"] for one in report["effects"]]
    assert effects == [f"{END} - {START}, {hidden} wide" for hidden in (16, 32, 48, 64)]
    assert cli.main(study_command(toy, "scale", "--sizes", "16,32,48")) == 2
    assert "a curve needs at least 4" in capsys.readouterr().err
    assert cli.main(study_command(toy, "scale", "--sizes", "16,32,50,64")) == 2
    assert "50 is not a multiple of the width of a head, 16" in capsys.readouterr().err


def test_sweep_of_any_setting(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "nanogpt", "--workers", "1", "--vary", "optim.schedule", "--grid", "cosine,constant")
    assert cli.main(study_command(toy, "sweep", *words)) == 0
    found = read_json(toy / "out" / "sweep.json")["arms"]["NanoGPT"]
    assert [value for value, _ in found["curve"]] == ["cosine", "constant"] and found["trials"] == 2
    assert found["best"] == min(found["curve"], key=lambda point: point[1])[0]
    shared = ("--vary", "train.batch_size", "--grid", "4,8", "--seeds", "2")
    assert cli.main(study_command(toy, "sweep", *words[:4], *shared)) == 0
    found = read_json(toy / "out" / "sweep.json")["arms"]["NanoGPT"]
    losses = [line["val_loss"] for line in read_results(toy / "out").values() if line["tokens"] == 8 * 4 * 16]
    assert len(losses) == 2 and found["curve"][0] == [4, pytest.approx(sum(losses) / 2)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--vary", "optim.rate"), "--vary: there is no setting 'nanokimi.optim.rate'; the nearest is"),
        (("--vary", "dataset.fraction"), "--vary dataset.fraction: name a setting of model, optim or train"),
        (("--vary", "optim.name"), "name values with --grid"),
        (("--model", "gpt5"), "--model is gpt5: expected one of nanokimi, nanogpt, variant, module"),
        (("--model", "variant", "--variant.model.experts", "expert_choice"), "Variant is LEAKING"),
    ],
)
def test_mistakes_are_one_line(
    toy: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(study_command(toy, "sweep", *more)) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert message in error and all(line.startswith("auditing ") for line in progress)


def test_without_optuna_one_line_says_how_to_get_it(
    toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(study_command(toy, "sweep", "--optuna", "4")) == 2
    assert capsys.readouterr().err == (
        "nanokimi: --optuna needs Optuna: pip install -c constraints.txt -e '.[tune]' (in the checkout)\n"
    )


def test_optuna_drives_it(toy: Path) -> None:
    pytest.importorskip("optuna")
    words = ("--model", "nanogpt", "--grid", "0.0005,0.05", "--optuna", "5", "--workers", "2")
    assert cli.main(study_command(toy, "sweep", *words)) == 0
    curve = json.loads((toy / "out" / "sweep.json").read_text())["arms"]["NanoGPT"]["curve"]
    assert len(curve) == 5 and all(0.0005 <= value <= 0.05 for value, _ in curve)
