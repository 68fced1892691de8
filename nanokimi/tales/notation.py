"""The notation in which the tales are written, and its translation into steps.

A word group has a name, a kind of fact, perhaps other groups to begin with, and entries (`form=text` adds a form):

    = promise : promise
    to water the beans; did=watered the beans | to feed the hens; did=fed the hens

In a rule, "- " begins an alternative, "3~" gives its weight, and an empty line (or "~~") begins a paragraph:

    == weather
    - 3~It was a [fine|windy] morning.
    - ?sky:rain It rained.     only where the mark `sky` is `rain` ("a/b": a or b; "-": not set)

In the text, `{hero}` is a known fact, `{hero.his}` a form of it, `{He}` short for `{Hero.he}`; `{c=colour}` is a new
fact, `{c.a=colour}` the same in its form `a`, `{C=colour}` with a capital; `{!sky:rain}` sets a mark, `{!key@=f}` a
pointer ("f now holds the key"), `{!g=hero+f}` one to both; `<weather>` is a rule, `[a|b]` a choice here, `[ Perhaps.|]`
something or nothing. What follows such a choice becomes part of both options, so that "nothing" shows at once, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from nanokimi.tales.world import (
    PRONOUNS,
    Bind,
    Choice,
    Entity,
    Lexicon,
    Mark,
    Option,
    Point,
    Slot,
    Step,
    Text,
)

_TOKEN = re.compile(r"\{[^}]*\}|<[a-z_]+>|[\[\]|]|[^{<\[\]|]+")
_OPTION = re.compile(r"(?:(\d+)~)?((?:\?[\w:/&-]+(?:[ ]|$))?)")
_VOWELS = "aeiou"
_HERO_FORMS = {*PRONOUNS, "child", "hers"} - {"was"}


def read_lexicons(source: str) -> dict[str, Lexicon]:
    """Return the word groups of `source` by name."""
    lexicons: dict[str, Lexicon] = {}
    for block in re.split(r"^= ", source, flags=re.MULTILINE)[1:]:
        head, *lines = block.strip().splitlines()
        title, *others = [part.strip() for part in head.split("+")]
        name, rest = [part.strip() for part in title.split(":")]
        kind, _, common = rest.partition(";")
        entities = [entity for other in others for entity in lexicons[other].entities]
        entries = [entry for line in lines for entry in line.split(" | ")]
        entities += [_read_entity(kind, f"{entry}; {common}" if common else entry) for entry in entries]
        lexicons[name] = Lexicon(name, kind, tuple(entities))
    return lexicons


def _read_entity(kind: str, entry: str) -> Entity:
    word, *extras = [part.strip() for part in entry.split(";")]
    forms = {"": word, "a": f"{'an' if word[0] in _VOWELS else 'a'} {word}"}
    for extra in extras:
        form, _, text = extra.partition("=")
        if form == "sex":
            forms |= _PRONOUN_FORMS[text]
        else:
            forms[form] = text
    return Entity(kind, forms)


_PRONOUN_FORMS = {
    "f": {"he": "she", "him": "her", "his": "her", "himself": "herself", "was": "was", "child": "girl"},
    "m": {"he": "he", "him": "him", "his": "his", "himself": "himself", "was": "was", "child": "boy"},
}


class Compiler:
    """Turns rules into steps; a rule may name rules that come later."""

    def __init__(self, lexicons: dict[str, Lexicon], thesaurus: str = "") -> None:
        self.lexicons = lexicons
        lines = [line.split(" | ") for line in thesaurus.strip().splitlines()]
        self._synonyms = {words[0]: words for words in lines}
        # A longer phrase goes first, so that "the middle of" is not taken for "the".
        found = "|".join(sorted(self._synonyms, key=len, reverse=True)) or "(?!)"
        self._phrase = re.compile(rf"(?<![\w'])({found})(?![\w'])", re.IGNORECASE)
        self.rules: dict[str, Choice] = {}

    def rule(self, name: str) -> Choice:
        """Return the rule called `name`, which is empty until it has been added."""
        return self.rules.setdefault(name, Choice(name, []))

    def add(self, source: str) -> None:
        """Read the rules of `source`."""
        for block in re.split(r"^== ", source, flags=re.MULTILINE)[1:]:
            name, _, body = block.partition("\n")
            parts = re.split(r"^- ", body, flags=re.MULTILINE)
            assert len(parts) == 1 or not parts[0].strip(), name
            for part in parts[1:] or parts:
                tokens = [*_TOKEN.findall(re.sub(r"^(\d+~) +", r"\1", _join_lines(part).lstrip()))]
                self.rule(name.strip()).options.append(self._option(name, tokens))
                assert not tokens, f"{name}: too many closing brackets before {tokens[:3]}"

    def check(self) -> None:
        """Assert that every rule that another one names exists."""
        missing = [name for name, rule in self.rules.items() if not rule.options]
        assert not missing, f"no such rule: {missing}"

    def _option(self, where: str, tokens: list[str]) -> Option:
        """Take tokens up to the end of an option."""
        weight, needs = 1.0, ""
        if tokens and (match := _OPTION.match(tokens[0])):
            weight, needs = float(match[1] or 1), match[2].strip()[1:]
            tokens[:1] = [rest] if (rest := tokens[0][match.end() :]) else []
        pairs = [need.split(":") for need in needs.split("&") if need]
        items: list[str | Slot | Step] = []
        while tokens and tokens[0] not in ("|", "]"):
            items += self._items(where, tokens)
        steps = _merge(_draw_in(where, _sink_marks(items)))
        return Option(weight, tuple((key, value) for key, value in pairs), tuple(steps))

    def _items(self, where: str, tokens: list[str]) -> Iterator[str | Slot | Step]:
        token = tokens.pop(0)
        if token == "[":
            options = [self._option(where, tokens)]
            while tokens and tokens[0] == "|":
                tokens.pop(0)
                options.append(self._option(where, tokens))
            assert tokens and tokens.pop(0) == "]", f"{where}: a bracket is not closed"
            yield Choice(where, options)
        elif token[0] == "<":
            yield self.rule(token[1:-1])
        elif token[0] == "{":
            yield self._braces(token[1:-1])
        else:
            yield from self._literal(token)

    def _literal(self, words: str) -> Iterator[str | Step]:
        """Turn each phrase that is in the thesaurus into a choice."""
        for place, part in enumerate(self._phrase.split(words)):
            if place % 2:
                synonyms = self._synonyms.get(part) or self._synonyms[part[0].lower() + part[1:]]
                capital = part not in self._synonyms
                ways = [way[0].upper() + way[1:] if capital else way for way in synonyms]
                yield Choice(part, [Option(1.0, (), (Text([way]),)) for way in ways])
            elif part:
                yield part

    def _braces(self, inside: str) -> Slot | Step:
        if inside[0] == "!":
            role, sign, targets = re.split("([=:])", inside[1:], maxsplit=1)
            return Mark(role, targets) if sign == ":" else Point(role, tuple(targets.split("+")))
        role, _, lexicon = inside.partition("=")
        if lexicon:
            role, _, form = role.partition(".")
            return Bind(role[0].lower() + role[1:], form, self.lexicons[lexicon], role[0].isupper())
        if inside.lower() in _HERO_FORMS:
            return Slot(f"{'Hero' if inside[0].isupper() else 'hero'}.{inside.lower()}")
        role, _, form = inside.partition(".")
        return Slot(f"{role.capitalize()}.{form.lower()}" if form[:1].isupper() else inside)


def _join_lines(body: str) -> str:
    """Make one line of each paragraph."""
    paragraphs = re.split(r"\n\s*\n", body.strip("\n ") if body.strip() else body)
    lines = "\n\n".join(re.sub(r"[ ]*\n[ ]*", "\n", paragraph.lstrip()) for paragraph in paragraphs)
    lines = re.sub(r"(?<!\n)\n(?!\n)", " ", re.sub(r"(?<=[|\[])\n(?!\n)|(?<!\n)\n(?=[|\]])", "", lines))
    # A mark says nothing, not even a space.
    lines = re.sub(r" ((?:\{![^}]*\})+)(?=[ \n|\]]|\[ |$)", r"\1", lines)
    return lines.replace("~~", "\n\n")


def _sink_marks(items: list[str | Slot | Step]) -> list[str | Slot | Step]:
    """Move each mark behind the text that follows it: a mark changes later choices and never the text."""
    done: list[str | Slot | Step] = []
    marks: list[Mark] = []
    for item in items:
        if isinstance(item, Mark):
            marks.append(item)
        else:
            if isinstance(item, Choice):
                done += marks
                marks = []
            done.append(item)
    return [*done, *marks]


def _draw_in(where: str, items: list[str | Slot | Step]) -> list[str | Slot | Step]:
    """Append what follows a choice with an empty option to each of its options, from the end to the beginning."""
    done: list[str | Slot | Step] = []
    for item in reversed(items):
        if isinstance(item, Choice) and any(not option.steps for option in item.options):
            length = next((i for i, after in enumerate(done) if not isinstance(after, str | Slot)), len(done))
            if Text([one for one in done[:length] if isinstance(one, str | Slot)]).is_short:
                length += 1
            taken, done = done[:length], done[length:]
            assert taken, f"{where}: nothing follows the choice with an empty option"
            item = Choice(
                where,
                [
                    replace(option, steps=tuple(_merge([*_split(option.steps), *taken])))
                    for option in item.options
                ],
            )
        done.insert(0, item)
    return done


def _split(steps: tuple[Step, ...]) -> Iterator[str | Slot | Step]:
    for step in steps:
        if isinstance(step, Text):
            yield from step.items
        else:
            yield step


def _merge(items: Iterable[str | Slot | Step]) -> Iterator[Step]:
    """Join neighbouring words and slots into texts."""
    words: list[str | Slot] = []
    for item in items:
        if isinstance(item, str | Slot):
            words.append(item)
            continue
        if words:
            yield Text(words)
            words = []
        yield item
    if words:
        yield Text(words)
