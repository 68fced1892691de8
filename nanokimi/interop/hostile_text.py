"""Lines of text that tokenizers stumble over: the exported tokenizer must give the same ids on each of them."""

from __future__ import annotations

import random

FRAGMENTS = (
    *("the ", "The", " and", "Once upon a time", "don't", "HELLO", "x = y[0];", "3.14", "1,000,000", "0x41"),
    *("\t", "\t\t", " ", "  ", "     ", "\n", "\n\n", "\r\n", "\r", "\0", "\x01", "\x7f", "\x85", "\u00a0"),
    *("\u2003", "\u200b", "\u200d", "\ufeff", "\u2028", "\u2581", "\u2581\u2581the", "\u00ad", "\ufffd"),
    *("\u00e2\u20ac\u2122", "\u00e2\u20ac\u0153Hi\u00e2\u20ac\x9d", "\u00c3\u00a9", "\u201cquoted\u201d"),
    *("caf\u00e9", "cafe\u0301", "\u212b", "\ufb01ne", "\u0130", "\u00df", "\u01c4", "\u0345"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f"),
    *("\u4f60\u597d", "\u3053\u3093", "\ud55c\uad6d", "\u1112\u1161\u11ab", "\u0e2a\u0e27\u0e31\u0e2a"),
    *(
        "\u0645\u0631\u062d\u0628\u0627",
        "\u05e9\u05b8\u05c1",
        "\u0915\u094d\u0937",
        "\u0600\u0661",
        "\U0001d54f",
    ),
    *(
        "<|endoftext|>",
        "<unk>",
        "<s>",
        "</s>",
        "<0x41>",
        "<0x0A>",
        "<0xE2>",
        "[UNK]",
        "<pad>",
        "\ue000",
        "\uf8ff",
    ),
    *("{", "}", "~", "|", "^", "`", "\\", "\\n", "a" * 30, "-" * 17, "aaab", "ababab", "\u00a9\u00ae\u2122"),
)
SCRIPTS = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x400), (0x400, 0x500), (0x600, 0x6FF)),
    *((0x900, 0x980), (0x2000, 0x2070), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0x1F300, 0x1F650)),
)


def hostile_lines(count: int, seed: int, *texts: str) -> list[str]:
    """`count` strings that mix stumbling blocks with pieces of `texts`. No code point that Unicode leaves free."""
    import unicodedata

    rng = random.Random(seed)
    words = [word for text in texts for word in text[:20_000].split(" ")] or ["word"]
    lines = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(0, 9)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(FRAGMENTS))
            elif kind < 0.8:
                parts.append(rng.choice(words) + rng.choice(("", " ", "  ")))
            else:
                low, high = rng.choice(SCRIPTS)
                parts.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 4))))
        line = "".join(parts)
        lines.append("".join(c for c in line if unicodedata.category(c) not in ("Cn", "Cs")))
    return lines
