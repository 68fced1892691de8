"""The diagrams of Kimi K2's architecture, with the sizes of NanoKimi of the default comparison."""

from __future__ import annotations

from svg_canvas import Sheet

from nanokimi.config.files import load_config


def block() -> Sheet:
    """The decoder: a residual stream that attention and feed-forward layers add to."""
    sheet = Sheet(640, 560, "Kimi K2's decoder: a residual stream that attention and experts add to")
    stream = 150.0
    sheet.box(stream - 95, 20, 190, 40, "token ids")
    sheet.arrow((stream, 60), (stream, 84))
    sheet.box(stream - 95, 84, 190, 40, "embedding")
    sheet.box(24, 142, 592, 262, role="faint")
    sheet.text(600, 164, "block, repeated L times", "small muted", "end")
    sheet.arrow((stream, 124), (stream, 232))
    for top, layer, note in (
        (172.0, ("multi-head", "latent attention"), "looks at earlier tokens"),
        (294.0, ("feed-forward:", "experts + shared one"), "works on each token alone"),
    ):
        middle = top + 26
        sheet.arrow((stream, top), (stream + 70, top), (stream + 70, middle), (stream + 96, middle))
        sheet.box(stream + 96, middle - 22, 96, 44, "RMSNorm")
        sheet.arrow((stream + 192, middle), (stream + 222, middle))
        sheet.box(stream + 222, middle - 26, 228, 52, layer, "kept", "title")
        sheet.text(stream + 336, middle + 48, note, "small muted")
        sheet.arrow(
            (stream + 222, middle + 14),
            (stream + 208, middle + 14),
            (stream + 208, top + 72),
            (stream + 12, top + 72),
        )
        sheet.dot(stream, top + 72, 12, "+")
    sheet.arrow((stream, 256), (stream, 354))
    sheet.text(44, 222, "residual", "small muted", "start")
    sheet.text(44, 240, "stream", "small muted", "start")
    sheet.arrow((stream, 378), (stream, 424))
    sheet.box(stream - 95, 424, 190, 40, "RMSNorm")
    sheet.arrow((stream, 464), (stream, 488))
    sheet.box(stream - 95, 488, 190, 48, ("head: logits of", "the next token"))
    for place, words in enumerate(
        (
            "In the first block one dense feed-forward layer",
            "stands for the experts. Kimi K2's is as wide as",
            "the experts that a token uses in other blocks.",
        )
    ):
        sheet.text(280, 440 + 20 * place, words, "small muted", "start")
    return sheet


def mla() -> Sheet:
    """What is cached, to scale, and how keys and values come from it."""
    c = load_config("tales").nanokimi.model
    heads, kept = c.num_attention_heads, c.kv_lora_rank + c.qk_rope_head_dim
    plain = 2 * c.hidden_size
    sheet = Sheet(
        640,
        566,
        "Multi-head latent attention: one small latent per token is cached instead of all keys and values",
    )
    scale = 592 / plain
    sheet.text(24, 36, f"Plain attention keeps {plain} numbers per token and layer:", "title", "start")
    for kind in range(2):
        for head in range(heads):
            width = c.hidden_size / heads * scale
            x = 24 + (kind * heads + head) * width
            sheet.box(x, 48, width, 36, f"{('key', 'value')[kind]} {head + 1}", text="small", radius=0)
    sheet.text(24, 118, f"MLA keeps {kept} (same scale):", "title", "start")
    latent, rotary = c.kv_lora_rank * scale, c.qk_rope_head_dim * scale
    sheet.box(24, 130, latent, 36, f"{c.kv_lora_rank}", "kept", "small", 0)
    sheet.box(24 + latent, 130, rotary, 36, f"{c.qk_rope_head_dim}", "kept", "small", 0)
    sheet.text(
        36 + latent + rotary, 153, "a latent, and a rotary key that all heads share", "small muted", "start"
    )

    sheet.text(24, 212, "How a token's keys, values and queries are made:", "title", "start")
    sheet.box(24, 292, 92, 60, ("token", f"{c.hidden_size} wide"))
    sheet.arrow((116, 310), (136, 310), (136, 264), (158, 264))
    sheet.text(120, 246, "kv_a_proj_with_mqa", "code muted", "start")
    sheet.box(160, 254, 116, 44, f"latent, {c.kv_lora_rank}", "kept")
    sheet.box(160, 318, 116, 44, f"rotary key, {c.qk_rope_head_dim}", "kept", "small")
    sheet.arrow((116, 330), (136, 330), (136, 340), (158, 340))
    sheet.text(218, 384, "cached", "small muted")
    sheet.arrow((276, 276), (372, 276))
    sheet.text(324, 266, "kv_b_proj", "code muted")
    sheet.arrow((276, 340), (324, 340), (324, 322), (372, 322))
    sheet.text(280, 362, "to each head", "small muted", "start")
    x, y = 376.0, 236.0
    for head in range(heads - 1, -1, -1):
        sheet.box(x + 12 * head, y + 12 * head, 210, 104)
    sheet.text(x + 105, y + 22, "head 1", "title")
    sheet.box(x + 10, y + 30, 92, 28, f"key {c.qk_nope_head_dim}", text="small")
    sheet.box(x + 108, y + 30, 92, 28, f"value {c.v_head_dim}", text="small")
    sheet.box(x + 10, y + 66, 92, 28, f"rotary {c.qk_rope_head_dim}", "kept", "small")
    sheet.arrow((70, 352), (70, 440), (372, 440))
    sheet.text(84, 432, "q_up_proj", "code muted", "start")
    sheet.box(376, 400, 210, 66)
    sheet.text(481, 420, "query of head 1", "title")
    sheet.box(386, 430, 92, 28, f"query {c.qk_nope_head_dim}", text="small")
    sheet.box(484, 430, 92, 28, f"rotary {c.qk_rope_head_dim}", text="small")
    sheet.text(320, 502, "logit of a head  =  query . key  +  rotary query . rotary key", "title")
    sheet.text(320, 526, "The first product compares content and ignores position;", "small muted")
    sheet.text(
        320, 546, "the second, rotated by position, knows how far apart the tokens are.", "small muted"
    )
    return sheet


def moe() -> Sheet:
    """A token's way through the experts: the router's scores choose, the shared expert always works."""
    c = load_config("tales").nanokimi.model
    scores = [0.31, 0.72, 0.18, 0.44, 0.55, 0.86, 0.27, 0.39]
    chosen = sorted(sorted(range(len(scores)), key=lambda e: -scores[e])[: c.num_experts_per_tok])
    assert len(scores) == c.n_routed_experts
    gates = {e: scores[e] / sum(scores[k] for k in chosen) for e in chosen}
    sheet = Sheet(
        640,
        520,
        "A mixture of experts: the router sends a token to two of eight experts, a shared expert sees every token",
    )
    sheet.box(24, 26, 120, 44, "token")
    sheet.arrow((144, 48), (176, 48))
    sheet.box(178, 26, 110, 44, "router", "plain", "title")
    sheet.text(300, 44, "a score between 0 and 1 for each expert;", "small muted", "start")
    sheet.text(300, 62, "the two highest are chosen (here with biases of 0)", "small muted", "start")
    sheet.arrow((233, 70), (233, 98))
    sheet.text(243, 89, "scores", "small muted", "start")
    width, base = 62.0, 190.0
    for expert, score in enumerate(scores):
        x = 118 + expert * (width + 2)
        role = "kept" if expert in chosen else "idle"
        sheet.box(x + 12, base - 90 * score, width - 24, 90 * score, role=role, radius=0)
        sheet.text(
            x + width / 2, base + 18, f"{score:.2f}", "small title" if expert in chosen else "small muted"
        )
        sheet.box(x, 226, width, 62, ("expert", f"{expert}"), role, "small")
        if expert in chosen:
            sheet.arrow((x + width / 2, 288), (x + width / 2, 338))
            sheet.text(x + width / 2 + 8, 318, f"x {gates[expert]:.2f}", "small", "start")
    sheet.path([(118, base), (628, base)], "faint")
    sheet.path([(84, 70), (84, 226)], arrow=True)
    sheet.box(24, 226, 84, 62, ("shared", "expert"), "turned", "small title")
    sheet.arrow((66, 288), (66, 360), (116, 360))
    sheet.text(76, 318, "x 1", "small", "start")
    sheet.box(118, 340, 510, 42, "sum (of which the routed part times a fixed scale)")
    sheet.arrow((373, 382), (373, 410))
    sheet.box(283, 412, 180, 40, "added to the token")
    sheet.text(320, 480, "The chosen scores are divided by their sum. Experts with dotted", "small muted")
    sheet.text(320, 500, "outlines do no work for this token; another token chooses others.", "small muted")
    return sheet
