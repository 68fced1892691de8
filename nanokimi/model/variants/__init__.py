"""A decoder whose parts are chosen by VariantConfig. Read `variant`, then the parts: `attention`, `latent`,
`feed_forward`, `experts`. The textbook models, `kimi` and `gpt`, import nothing from here.
"""
