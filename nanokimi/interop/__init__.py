"""Models out and in: Hugging Face folders and nanoGPT's checkpoints, with their tokenizers.

`deepseek` and `gpt2` turn configurations and weights into those of the stock classes and back. `fast_tokenizer` does so
with tokenizers. `gguf_model`, `gguf_tokenizer` and `gguf_file` write llama.cpp's files, which `gguf_verify` reads and
runs. `torchtitan_flavor` writes the file that torchtitan needs, and `torchtitan_verify` builds its model from it.
`export` and `import_run` write whole folders, and `verify` reloads what was exported.
"""
