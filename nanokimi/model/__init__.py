"""The models. For Kimi K2 read `layers`, `attention`, `moe`, `kimi`. The baseline is `gpt`, on its own. The decoder in
`variants` is composed of parts.

Shape suffixes, one legend for the whole repository (`q_BTHX` is a tensor of shape batch, tokens, heads, X):
B batch, T queries (tokens), S keys, D width, H heads, N no-position dim, R rotary dim, X = N + R, V value dim,
Q query latent, C key-value latent, E experts, K experts per token, F expert width, M flat tokens (B * T),
P flat token-expert pairs (M * K), L layers, W vocabulary. In `variants` also G groups of heads that share keys, and
J pooled latents.
"""
