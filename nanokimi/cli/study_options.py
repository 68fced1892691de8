"""The help of the verbs that run many small trainings: sweep, ladder, scale."""

from __future__ import annotations

_SHARED = """\
  --config NAME_OR_PATH   a preset or a YAML file (default: as for compare); budget in steps, epochs or tokens
  --data PATH_OR_NAME     a text, a folder, a data set (short for --dataset.path)
  --out DIR               the study's folder (default: the next free one below runs/). Said again, what is finished
                          there is not run again and what was interrupted goes on: repeat the command
  --workers N             runs at a time (default: one on each free core, or on each GPU)
  --keep                  keep every run's weights and last checkpoint
"""

_TUNING = """\
  --seeds N               seeds that arms are judged by, counted up from the configuration's (default: 5)
  --search WHAT           full (default): rate, AdamW's rate beside Muon's, initialiser scale, warm-up, weight decay,
                          schedule and betas, with equal trials for each arm that is searched; the others inherit what
                          was found for the nearest of them with their optimizer, and have their rate tuned by a grid;
                          rates: every arm's rate alone, by a grid; none: nothing, as --no-tune
  --trials N              points that a full search begins with, a power of two (default: 32)
  --search-rounds N       patterns of steps around each arm's best that follow (default: 2)
  --points N              learning rates that a grid starts with (default: 3), around those configured or inherited
  --factor X              ratio of neighbouring rates (default: 2)
  --rounds N              most extensions of the grids while an optimum lies at an edge (default: 3); each gives every
                          arm one more trial
  --tuning-seeds N        seeds of its own that settings are tried with, their mean decides (default: 2): with one, a
                          rate may be chosen at which other seeds go astray
  --tuned FILE            take the settings from the tuned.json of an earlier ladder or scale, or from a search.json,
                          that has every arm of this study
  --no-tune               take the configured settings; said in every output
  --quick                 a quarter of the steps, 2 seeds, only rates, tried with one, no extensions: to see it work
"""

STUDY_USAGE = {
    "sweep": """\
usage: nanokimi sweep [--config NAME_OR_PATH] [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]

"""
    + _SHARED
    + """\
  --arms A,B              only these of the configuration's arms (default: all); --model FAMILY: the family alone
  --arm "NAME: from=ARM model.K=V optim.K=V"
                          one more arm; may be repeated
  --plugin FILE.py:NAME   your attention, expert layer or optimizer for the variant arm; the file is executed
  --vary SETTING          of the arm, such as optim.lr (default) or model.num_experts_per_tok; or train.batch_size
  --grid A,B,C            values to start with
  --around X              or so many values around X (default: around the configured one)
  --factor X              ratio of neighbouring values (default: 2)
  --points N              values to start with (default: 5)
  --rounds N              most extensions while the best value lies at an edge (default: 4)
  --seeds N               seeds for each value (default: 1); none of them is one that ladder or scale judges by
  --optuna TRIALS         let Optuna choose TRIALS values within the grid's range
  --search                search all at once, alike for each arm: rates, initialiser scale, warm-up, weight decay,
                          schedule, betas (--trials N and --search-rounds N as for ladder; --seeds N: default 2)
Prints the whole curve and writes it into sweep.json, a search into search.json, with lines to paste into a preset.
""",
    "ladder": """\
usage: nanokimi ladder [--config NAME_OR_PATH] [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]

"""
    + _SHARED
    + _TUNING
    + """\
  --design WHAT           additive, leave-one-out, 2x2, both (the first two), or all (default): components added one
                          at a time to NanoGPT; left out of NanoKimi one at a time; architecture times optimizer.
                          NanoGPT with Muon is always an arm
  --components A,B,C      only these: RMSNorm, RoPE, SwiGLU, untied head, flat init, MLA, MoE, shared expert,
                          balancing, Muon, QK-Clip, WSD
  --budgets A,B           of tokens, flops, seconds (default: all): NanoKimi, NanoGPT and NanoGPT with Muon compared
                          at equal budgets of each
  --arm "NAME: from=ARM model.K=V optim.K=V"
                          one more arm, made from nanokimi, nanogpt or any arm of the ladder; or from=FILE.py:CLASS, a
                          model of your own (the file is executed); may be repeated
  --plugin FILE.py:NAME   one more arm: NanoKimi with your attention, expert layer or optimizer; the file is executed
Every arm has NanoGPT's active parameters, solved by the feed-forward layers' width, and its own tuned rate; a model of
your own, and an arm whose feed-forward width you set, keep their size.
Writes study.html, .md, .csv, .json and pictures; results.jsonl has a line for every run, and all tables follow from it.
""",
    "scale": """\
usage: nanokimi scale [--config NAME_OR_PATH] [--data PATH_OR_NAME] [options] [--any.setting VALUE ...]

"""
    + _SHARED
    + _TUNING
    + """\
  --sizes A,B,C,D         hidden sizes, at least 4, multiples of the width of a head (default: 1/2, 3/4, 1 and 3/2 of
                          the configured one); steps grow with the active parameters
  --equal-steps           the same steps at every size instead
  --arm "NAME: from=FAMILY model.K=V optim.K=V"
                          one more family, made from nanokimi, nanogpt or one of --families; may be repeated
  --families A,B          of NanoGPT, NanoGPT with Muon, NanoKimi with AdamW, NanoKimi (default: NanoKimi and NanoGPT)
Says how much less compute, and how much less time, NanoKimi needs for the same loss, with an interval over
seeds, searches, curves and sizes left out.
""",
}
