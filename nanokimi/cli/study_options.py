"""The help of the commands that run many small trainings: sweep, ladder, scale."""

from __future__ import annotations

_SHARED = """\
  --config NAME_OR_PATH   a preset or a YAML file (default: as for compare); budget in steps, epochs or tokens
  --data PATH_OR_NAME     a text, a folder, a data set (short for --dataset.path)
  --out DIR               the study's folder (default: the next free one below runs/). In the folder of a study that
                          was interrupted, the same command continues it and repeats no finished run
  --workers N             runs at a time (default: one on each free core or GPU)
  --keep                  keep every run's weights and last checkpoint
"""

_TUNING = """\
  --seeds N               seeds that arms are judged by, counting up from the configuration's (default: 5)
  --search WHAT           full (default): search for learning rate, that of embeddings and head, initialiser scale,
                          warm-up, weight decay, schedule and betas, with equal trials for each searched arm. The
                          others inherit from the nearest searched arm with their optimizer, and have only their rate
                          tuned, by a grid. rates: tune only the rate of every arm, by a grid. none: as --no-tune
  --trials N              points that a full search begins with: a power of two (default: 32)
  --search-rounds N       patterns of steps around each arm's best, after the points (default: 2)
  --points N              learning rates that a grid starts with (default: 3), around those configured or inherited
  --factor X              ratio of neighbouring rates (default: 2)
  --rounds N              most extensions of the grids while an optimum lies at an edge (default: 3); each extension
                          gives every arm one more trial
  --tuning-seeds N        other seeds that settings are tried with; their mean decides (default: 2). A single seed may
                          choose a rate at which training is unstable with others
  --tuned FILE            take the settings from the tuned.json of an earlier ladder or scale, or from a search.json,
                          which must have every arm of this study
  --no-tune               take the configured settings; every output says so
  --quick                 a quick look: a quarter of the steps, 2 seeds, and rates alone, tuned with one seed and
                          without extensions
"""

STUDY_USAGE = {
    "sweep": """\
usage: nanokimi sweep [--config NAME_OR_PATH] [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]

"""
    + _SHARED
    + """\
  --arms A,B              only these arms of the configuration (default: all); --model FAMILY: only that family
  --arm "NAME: from=ARM model.K=V optim.K=V"
                          one more arm; may be repeated
  --plugin FILE.py:NAME   one more arm: the first with your attention, layer or optimizer (executed)
  --vary SETTING          a setting of the arm, such as optim.lr (default) or model.num_experts_per_tok, or of train
  --grid A,B,C            values to start with
  --around X              or start with --points values around X (default: around the configured one)
  --factor X              ratio of neighbouring values (default: 2)
  --points N              number of values to start with (default: 5)
  --rounds N              most extensions while the best value lies at an edge (default: 4)
  --seeds N               seeds for each value (default: 1); ladder and scale never judge arms by them
  --optuna TRIALS         let Optuna choose TRIALS values within the grid's range
  --search                search for rates, initialiser scale, warm-up, weight decay, schedule and betas at once, with
                          the same search for each arm (--trials, --search-rounds as for ladder; --seeds: 2)
  --inherit SEARCH        tune rates around those of an earlier search (a search.json, or a name such as k2-1m), and
                          take the rest from it (--points: 3, an odd number; --rounds: 3; --seeds: 2)
Prints and writes the curve (sweep.json), or the search (search.json) with lines for a preset.
""",
    "ladder": """\
usage: nanokimi ladder [--config NAME_OR_PATH] [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]

"""
    + _SHARED
    + _TUNING
    + """\
  --design WHAT           additive: components added to NanoGPT one at a time. leave-one-out: components left out of
                          NanoKimi one at a time. 2x2: architecture times optimizer. both: the first two.
                          all: all three (default). NanoGPT with Muon is always an arm
  --components A,B,C      only these: RMSNorm, RoPE, SwiGLU, untied head, flat init, MLA, MoE, shared expert,
                          balancing, Muon, QK-Clip, WSD
  --budgets A,B           budgets under which NanoKimi, NanoGPT and NanoGPT with Muon are compared: tokens, flops,
                          seconds (default: all)
  --arm "NAME: from=ARM model.K=V optim.K=V"
                          add an arm made from nanokimi, nanogpt or any arm of the ladder, or your own model with
                          from=FILE.py:CLASS (the file is executed). May be repeated
  --plugin FILE.py:NAME   add an arm: NanoKimi with your attention, expert layer or optimizer; the file is executed
Every arm has NanoGPT's active parameters, by the width of its feed-forward layers, and its own tuned rate. Your own
model, and an arm whose feed-forward width you set, keep their size.
Writes study.html, .md, .csv, .json and pictures; all tables are made from results.jsonl, a line for every run.
""",
    "scale": """\
usage: nanokimi scale [--config NAME_OR_PATH] [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]

"""
    + _SHARED
    + _TUNING
    + """\
  --sizes A,B,C,D         hidden sizes, at least 4, multiples of the width of a head (default: 1/2, 3/4, 1 and 3/2 of
                          the configured one); steps grow with the active parameters
  --equal-steps           the same number of steps at every size instead
  --arm "NAME: from=FAMILY model.K=V optim.K=V"
                          add a family made from nanokimi, nanogpt or one of --families. May be repeated
  --families A,B          families out of NanoGPT, NanoGPT with Muon, NanoKimi with AdamW, NanoKimi (default: NanoKimi
                          and NanoGPT)
Shows how much less compute and time NanoKimi needs for the same loss, with an interval over seeds, searches, curves and
sizes left out.
""",
}
