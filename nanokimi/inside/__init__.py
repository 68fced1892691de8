"""Look inside a trained model while it reads: how much each token surprises it, what it nearly said, which experts took
the token, where each head looks, and what it keeps of the past.

`look` reads a text once and returns a `Look`. `favourites` and `attention` take longer, or are larger, and are computed
when asked. Every value comes from the model's own forward pass: from its output, from hooks on its routers (`routing`),
and from the calls of torch's attention that it makes (`attention`). What a model does not tell is None, and
`Look.unknown` says so in words. `page` shows all of it as HTML, `terminal` as text.
"""

from nanokimi.inside.attention import AttentionMap, attention_map, attention_maps
from nanokimi.inside.favourites import Favourites, favourites
from nanokimi.inside.look import Alternative, Look, Token, look, write_and_look
from nanokimi.inside.subject import Subject, subject_of

__all__ = [
    "Alternative",
    "AttentionMap",
    "Favourites",
    "Look",
    "Subject",
    "Token",
    "attention_map",
    "attention_maps",
    "favourites",
    "look",
    "subject_of",
    "write_and_look",
]
