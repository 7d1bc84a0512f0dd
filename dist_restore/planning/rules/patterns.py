"""Names with captures: `model/encoder/layer_{i}/{rest}`, and what fills them in.

`{i}`, a single letter, captures digits inside a segment; `{rest}` captures one or more whole segments;
`{anything}` else captures inside one segment. The filled-in side may compute with a digit capture: `{i+1}`.
User regexes and our own patterns both run in RE2, which takes linear time whatever the name or the pattern.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

import re2

from dist_restore.core.errors import RuleError

# Longer patterns than any real rule; RE2 compiles in time and memory proportional to them.
MAX_PATTERN = 2000
_PLACE = re.compile(r"\{([^{}]*)\}")
_EXPRESSION = re.compile(r"[A-Za-z_]\w*|\d+|//|[+*-]|\s+|.")
_BARE = re.compile(r"[A-Za-z_]\w*\Z")
# An index beyond this is no index.
MAX_INDEX = 10**9
_REFERENCE = re.compile(r"\\g<(\w+)>|\\(\d+)|\\(.)", re.DOTALL)

Captures = Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled name pattern.

    Attributes:
      text: as the rule has it.
      regex: whether `text` is a regular expression.
      prefix: what every matching name begins with.
      suffix: what every matching name ends with; both are cheap first tests: of 20 rules for 100,000 names that differ
        in their ends only, a regex for each pair took 3 s.
      pieces: the text in parts: literals (text, None) and ("", expression between braces).
      places: the expressions between braces, in order.
      groups: the captures in the order in which they first stand alone: those that `compiled` has.
      repeats: whether some place is no capture of its own, so that a match must be checked by filling it in.
      compiled: what names are matched with; None for a plain name, which may hold bytes that RE2 cannot take.
    """

    text: str
    regex: bool
    prefix: str
    suffix: str
    pieces: tuple[tuple[str, str | None], ...]
    places: tuple[str, ...]
    groups: tuple[str, ...]
    repeats: bool
    compiled: re2._Regexp | None

    @property
    def literal(self) -> bool:
        """Whether the pattern is just a name."""
        return not self.regex and not self.places

    @property
    def bare(self) -> frozenset[str]:
        """The captures that stand alone, so that matching the pattern gives their values."""
        return frozenset(p for p in self.places if _BARE.match(p))

    @property
    def computed(self) -> bool:
        """Whether some place holds arithmetic, so that the pattern can be filled in but not matched."""
        return len(self.bare) != len(set(self.places))

    def match(self, name: str) -> Captures | None:
        """The captures if the whole name matches, else None."""
        if self.compiled is None:
            return {} if name == self.text else None
        if not name.startswith(self.prefix):
            return None
        if len(self.places) == 1 and self.places[0] in self.groups:
            value = name[len(self.prefix) : len(name) - len(self.suffix)]
            if value.isascii() and name.endswith(self.suffix):  # RE2 takes care of all other characters
                return {self.groups[0]: value} if _is_capture(self.groups[0], value) else None
        try:
            found = self.compiled.fullmatch(name.encode())
        except UnicodeEncodeError:  # a name of bytes that are no UTF-8: only a literal rule can mean it
            return None
        if found is None:
            return None
        if self.regex:  # numbers stand for groups here only: in `{i+1}` the 1 is a number
            captures = {k.decode(): _text(v) for k, v in found.groupdict().items()}
            return {**captures, "0": name, **{str(i): _text(v) for i, v in enumerate(found.groups(), 1)}}
        captures = dict(zip(self.groups, map(_text, found.groups()), strict=True))
        return None if self.repeats and self.fill(captures) != name else captures

    def fill(self, captures: Captures) -> str | None:
        """The name with captures filled in; None when arithmetic leaves the natural numbers."""
        if self.regex:
            return _expand(self.text, captures)
        if len(self.places) == 1:
            value = _value(self.places[0], captures, self.text)
            return None if value is None else f"{self.prefix}{value}{self.suffix}"
        parts = []
        for piece, place in self.pieces:
            value = piece if place is None else _value(place, captures, self.text)
            if value is None:
                return None
            parts.append(value)
        return "".join(parts)


def _text(group: bytes | None) -> str:
    # Only a regex with \C, which is any byte, can split a character; no name has what such a group then holds.
    return (group or b"").decode("utf-8", "replace")


def compile_pattern(text: str, *, regex: bool = False) -> Pattern:
    """Compiles one `from`, `to`, `keep` or `drop`.

    Raises:
      RuleError: an unclosed brace, an expression or a regex that cannot be read, or text of absurd length.
    """
    if not text or len(text) > MAX_PATTERN:
        raise RuleError(f"A name pattern must have 1 to {MAX_PATTERN} characters; this one has {len(text)}.")
    if regex:
        return Pattern(text, True, "", "", (), (), (), False, _compile(text, text))
    pieces = tuple(_pieces(text))
    places = tuple(place for _, place in pieces if place is not None)
    for place in places:
        _Arithmetic(place, dict.fromkeys(_EXPRESSION.findall(place), "1"), text).result()  # refuses nonsense
    groups = tuple(dict.fromkeys(place for place in places if _BARE.match(place)))
    repeats = len(groups) != len(places)
    compiled = _compile(_to_regex(pieces, text), text) if places else None
    return Pattern(text, False, pieces[0][0], pieces[-1][0], pieces, places, groups, repeats, compiled)


def compile_template(text: str, *, regex: bool = False) -> Pattern:
    r"""Compiles a side that is only filled in: with `regex`, `\1` and `\g<name>` stand for the groups."""
    if not regex:
        return compile_pattern(text)
    return Pattern(text, True, "", "", (), (), (), False, None)


def _pieces(text: str) -> list[tuple[str, str | None]]:
    """Splits into (literal, None) and ("", place) pieces; the first piece is always a literal."""
    pieces: list[tuple[str, str | None]] = []
    cursor = 0
    for place in _PLACE.finditer(text):
        pieces += [(_literal(text[cursor : place.start()], text), None), ("", place.group(1).strip())]
        cursor = place.end()
    return [*pieces, (_literal(text[cursor:], text), None)]


def _literal(piece: str, text: str) -> str:
    if "{" in piece or "}" in piece:
        raise RuleError(f"{text[:200]!r} has an unpaired brace. Captures look like {{i}}, {{name}} or {{rest}}.")
    return piece


def _to_regex(pieces: Sequence[tuple[str, str | None]], text: str) -> str:
    _require_utf8(text)
    parts, seen = [], set[str]()
    for piece, place in pieces:
        if place is None:
            parts.append(re2.escape(piece))
        elif _BARE.match(place) and place not in seen:
            seen.add(place)
            parts.append(f"(?P<{place}>{_capture_class(place)})")
        else:
            parts.append(f"(?:{_capture_class(place)})")
    return "".join(parts)


def _capture_class(place: str) -> str:
    if place == "rest":
        return "(?s:.+)"
    return r"[0-9]+" if len(place) == 1 or not _BARE.match(place) else "[^/]+"


def _is_capture(place: str, value: str) -> bool:
    """Whether a place may capture ASCII text: what `_capture_class` says, ten times faster for one place."""
    if place == "rest" or not value:
        return bool(value)
    return value.isdigit() if len(place) == 1 else "/" not in value


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RuleError(
            f"The pattern {text[:200]!r} cannot be read: it is no UTF-8. Spell such a name out, without captures."
        ) from error


def _compile(expression: str, text: str) -> re2._Regexp:
    _require_utf8(expression)
    options = re2.Options()
    options.max_mem = 8 << 20
    options.log_errors = False
    try:
        # Of bytes: counting characters again where text was matched takes two thirds of the time of a match.
        return re2.compile(expression.encode(), options)
    except re2.error as error:
        raise RuleError(
            f"The pattern {text[:200]!r} cannot be read: {_why(error)}. Regexes run in RE2, which takes linear time "
            "and has no look-around and no back-references."
        ) from error


def _why(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


def _expand(template: str, captures: Captures) -> str:
    def replace(found: re.Match[str]) -> str:
        key = found.group(1) or found.group(2)
        if key is None:
            return found.group(3)
        if key not in captures:
            raise RuleError(f"{template[:200]!r} refers to the group {key!r}, which the `from` regex does not have.")
        return captures[key]

    return _REFERENCE.sub(replace, template)


def _value(place: str, captures: Captures, text: str) -> str | None:
    if place in captures:
        return captures[place]
    number = _Arithmetic(place, captures, text).result()
    return None if number is None or number < 0 else str(number)


class _NoIndexError(Exception):
    """A result beyond any index."""


class _Arithmetic:
    """Evaluates `i+1`, `i//2`, `4*i+j`: integers, captures, + - * // with their usual precedence."""

    def __init__(self, expression: str, captures: Captures, text: str) -> None:
        self._expression, self._captures, self._text = expression, captures, text
        self._tokens = [t for t in _EXPRESSION.findall(expression) if not t.isspace()]

    def result(self) -> int | None:
        """The value, or None when it is beyond any index."""
        try:
            value = self._sum()
        except _NoIndexError:
            return None
        if self._tokens:
            self._refuse(f"unexpected {self._tokens[0]!r}")
        return value if abs(value) < MAX_INDEX else None

    def _sum(self) -> int:
        value = self._product()
        while self._tokens and self._tokens[0] in ("+", "-"):
            value = value + self._product() if self._tokens.pop(0) == "+" else value - self._product()
        return value

    def _product(self) -> int:
        value = self._factor()
        while self._tokens and self._tokens[0] in ("*", "//"):
            operator, factor = self._tokens.pop(0), self._factor()
            if operator == "//" and factor == 0:
                self._refuse("division by zero")
            value = value * factor if operator == "*" else value // factor
            if value >= MAX_INDEX**2:  # bounds the cost of hostile arithmetic
                raise _NoIndexError
        return value

    def _factor(self) -> int:
        token = self._tokens.pop(0) if self._tokens else ""
        digits = self._captures[token] if _BARE.match(token) and token in self._captures else token
        if not digits.isascii() or not digits.isdigit():
            self._refuse(f"{token!r} is no digit capture and no number")
        if len(digits) >= len(str(MAX_INDEX)):
            raise _NoIndexError
        return int(digits)

    def _refuse(self, why: str) -> NoReturn:
        raise RuleError(
            f"{{{self._expression}}} in {self._text[:200]!r} cannot be computed: {why}. "
            "Index arithmetic is + - * // over {i}-style captures and integers."
        )
