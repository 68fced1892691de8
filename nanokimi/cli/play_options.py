"""The help text of `play`."""

from __future__ import annotations

from nanokimi.runtime.extras import how_to_install

PLAY_USAGE = {
    "play": """\
usage: nanokimi play [RUN ...] [options]

  RUN                     a folder of `train` or `compare` (every arm is a model), or the name of weights that come
                          with the package (without any RUN, these)
  --runs DIR              the folder whose runs Compare and Watch offer (default: runs)
  --host ADDRESS          where to listen (default: 127.0.0.1, which only this machine reaches)
  --port N                (default: 7860; 0: any free one)
  --max_prompt N          the most characters of a prompt (default: 4000)
  --max_tokens N          the most tokens of a text (default: 1000)
  --at_once N             texts in work, a token of each in turn (default: 8)
  --queue N               further texts that may wait; more are refused (default: 128)
  --checkpoint NAME       final (default), best (lowest validation loss), last, or a step that is kept
  --device NAME           (default: the run's)
  --plugin FILE.py:NAME   your class that the run was trained with, from the same file, which is executed
The page loads nothing from outside and works without a network.
"""
    + f"Needs: {how_to_install('play')}\n",
}
