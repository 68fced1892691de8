"""The help texts of `export` and `import`."""

from __future__ import annotations

INTEROP_USAGE = {
    "export": """\
usage: nanokimi export RUN_FOLDER --out DIR [options]

  RUN_FOLDER              of `train`, or of `compare` (then name an arm)
  --out DIR               a new folder; with gguf, a new FILE.gguf, or a folder that gets model-TYPE.gguf
  --format NAME           hf (default): a folder of Hugging Face's for a stock class, NanoKimi as DeepseekV3ForCausalLM
                          and NanoGPT as GPT2LMHeadModel, with tokenizer and model card;
                          gguf: a file for llama.cpp, NanoKimi as deepseek2 and NanoGPT as gpt2, with tokenizer;
                          torchtitan: the folder of hf, NanoKimi only, with a flavor file to train on in torchtitan
  --type NAME             of the weights in a gguf: F32 (default), F16, Q8_0 or Q4_0
  --step NAME             final (default), best (lowest validation loss), last, or a step that is kept
  --arm NAME              the arm of a comparison, whose first seed is exported
The folder is loaded again with transformers before it gets its name: logits must be within 1e-4, 64 greedy tokens and
the ids of hostile text equal. A gguf is read back with gguf's own reader and, where llama-cpp-python is installed, run
in llama.cpp: 64 greedy tokens after 20 prompts are compared, and the logits within a bound for each type. A folder
for torchtitan is also built and run there on the CPU, where torchtitan is installed. If anything differs, the exit
status is 1, and nothing is left.
""",
    "import": """\
usage: nanokimi import PATH --out RUN [options]

  PATH                    a DeepSeek-V3, Moonlight, Kimi K2 or GPT-2 folder of Hugging Face's, or nanoGPT's ckpt.pt
                          (only weights and plain data are read; nothing in it is executed)
  --out RUN               a new run folder
  --data PATH_OR_NAME     the run's text (default: the built-in stories)
  --tokenizer FILE        a tokenizer.json, a SentencePiece .model or nanoGPT's meta.pkl (default: the folder's own)
  --context N             tokens per sequence (default: all positions of the model, 1024 at most)
The run can be sampled, evaluated, audited, exported, and trained further with `train --init-from RUN`.
""",
}
