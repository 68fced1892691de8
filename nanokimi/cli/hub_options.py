"""The help texts of `push` and `pull`."""

from __future__ import annotations

from nanokimi.runtime.extras import how_to_install

HUB_USAGE = {
    "push": """\
usage: nanokimi push RUN_FOLDER OWNER/NAME [options]

  RUN_FOLDER              of `train`, or of `compare` (then name an arm)
  OWNER/NAME              a model on the Hugging Face Hub; it is made if there is none
  --public                everyone may see it (default: private)
  --dry-run               export and verify, print the files that would go and their sizes, and send nothing
  --step NAME             final (default), best (lowest validation loss), last, or a step that is kept
  --arm NAME              the arm of a comparison, whose first seed is exported
The run is exported as by `nanokimi export`, verified, and sent as one commit. Files of the same names are replaced; the
Hub's history keeps them. Log in with `hf auth login` or set HF_TOKEN.
"""
    + f"Needs: {how_to_install('export,hub')}\n",
    "pull": """\
usage: nanokimi pull OWNER/NAME --out RUN [options]

  OWNER/NAME              a DeepSeek-V3, Moonlight, Kimi K2 or GPT-2 model on the Hugging Face Hub
  --out RUN               a new run folder
  --revision NAME         a branch, tag or commit (default: the main branch)
  --data PATH_OR_NAME     the run's text (default: the built-in stories)
  --tokenizer FILE        a tokenizer.json, or a SentencePiece .model (default: the model's own)
  --context N             tokens per sequence (default: all positions of the model, 1024 at most)
Only config.json, the tokenizer and safetensors are downloaded; nothing is executed. The result is that of `nanokimi
import`. A private model needs a login (`hf auth login`, or HF_TOKEN).
"""
    + f"Needs: {how_to_install('hub')}\n",
}
