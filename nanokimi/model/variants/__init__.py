"""One decoder whose parts are chosen by VariantConfig. Read `variant`, then the parts: `attention`, `latent`,
`feed_forward`, `experts`. The two textbook models, `kimi` and `gpt`, never import anything from here.
"""
