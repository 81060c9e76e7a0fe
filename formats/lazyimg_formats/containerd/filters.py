r"""Which objects a caller of a List wants. Source: containerd, pkg/filters.

    filter    := "" | selector ("," selector)*       all of them must match; "" matches anything
    selector  := fieldpath [operator value]          alone: the field must be there
    fieldpath := field ("." field)*
    field     := [A-Za-z0-9_]+ | '"' ... '"'
    operator  := "==" | "!=" | "~="                  equal, not equal, contains a match of
    value     := quoted | [^\s,"/|=!~.][^\s,]*      without NUL
    quoted    := '"' ... '"', after ~= also /.../ and |...|, with Go's escapes

White space between tokens means nothing. A field that is not there has the value "". Regular
expressions are Python's here and RE2's there, which agree on all that people write; one that is not
valid matches nothing, as there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lazyimg_formats.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    Fields = Callable[[tuple[str, ...]], str | None]

MAX_TEXT: Final = 64 << 10
"""Characters of one filter: four labels of the largest size and their quoting."""

MAX_SELECTORS: Final = 256

_WORD: Final = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_OPERATOR: Final = re.compile(r"[=!~]+")
_VALUE: Final = re.compile(r'[^\s,"/|=!~.\0][^\s,\0]*')
_SPACE: Final = re.compile(r"\s*")
_OPERATORS: Final = frozenset({"==", "!=", "~="})
_PLAIN_ESCAPES: Final = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\",
}  # fmt: skip
_CODED_ESCAPE: Final = re.compile(
    r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})"
)


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition.

    Attributes:
        path: of the field.
        operator: "==", "!=" or "~="; "": the field must be there.
        value: what it is compared with.
    """

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""

    def matches(self, fields: Fields) -> bool:
        """Whether an object whose fields `fields` gives (None: not there) is wanted."""
        found = fields(self.path)
        if self.operator == "~=":
            try:
                return re.search(self.value, found or "") is not None
            except (re.error, RecursionError, OverflowError):  # the latter two: too deep, too often
                return False
        if self.operator == "!=":
            return (found or "") != self.value
        return found is not None and (not self.operator or found == self.value)


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold; none: anything is wanted."""

    selectors: tuple[Selector, ...]

    def matches(self, fields: Fields) -> bool:
        """Whether an object whose fields `fields` gives (None: not there) is wanted."""
        return all(selector.matches(fields) for selector in self.selectors)

    def required(self, path: tuple[str, ...]) -> str | None:
        """Give the value that a field must have in everything that matches, if it is said."""
        for selector in self.selectors:
            if selector.path == path and selector.operator == "==":
                return selector.value
        return None


def parse_filter(text: str) -> Filter:
    """Parse one filter.

    Raises:
        FormatError: it does not follow the grammar, or is larger than `MAX_TEXT`.
    """
    if not text:
        return Filter(())
    if len(text) > MAX_TEXT:
        raise FormatError("filter", f"{len(text)} characters, at most {MAX_TEXT} are taken")
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def parse(self) -> Filter:
        selectors = [self._selector()]
        while self._take(","):
            selectors.append(self._selector())
            if len(selectors) > MAX_SELECTORS:
                raise self._error(f"more than {MAX_SELECTORS} conditions")
        if self._position < len(self._text):
            raise self._error("expected a comma or the end")
        return Filter(tuple(selectors))

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._take("."):
            path.append(self._field())
        operator = self._match(_OPERATOR)
        if not operator:
            return Selector(tuple(path))
        if operator not in _OPERATORS:
            raise self._error(f"{operator!r} is none of ==, != and ~=")
        return Selector(tuple(path), operator, self._value('"/|' if operator == "~=" else '"'))

    def _field(self) -> str:
        self._skip()
        if self._text.startswith('"', self._position):
            return self._quoted()
        word = self._match(_WORD)
        if not word:
            raise self._error("expected the name of a field")
        return word

    def _value(self, quotes: str) -> str:
        self._skip()
        if self._position < len(self._text) and self._text[self._position] in quotes:
            return self._quoted()
        value = self._match(_VALUE)
        if not value:
            raise self._error("expected a value")
        return value

    def _quoted(self) -> str:
        quote = self._text[self._position]
        self._position += 1
        parts: list[str] = []
        while True:
            char = self._next("the closing quote")
            if char == quote:
                return "".join(parts)
            if char == "\n":
                raise self._error("a quoted text ends within its line")
            parts.append(self._escape(quote) if char == "\\" else char)

    def _escape(self, quote: str) -> str:
        coded = _CODED_ESCAPE.match(self._text, self._position)
        if coded is not None:
            self._position = coded.end()
            byte, short, long, octal = coded.groups()
            number = int(octal, 8) if octal else int(byte or short or long, 16)
            largest = 0x10FFFF if short or long else 0x7F  # a byte that is no text by itself
            if number > largest or 0xD800 <= number <= 0xDFFF:
                raise self._error(f"\\{coded[0]} is no character")
            return chr(number)
        char = self._next("an escaped character")
        if char == quote:
            return char
        if char not in _PLAIN_ESCAPES:
            raise self._error(f"\\{char} is no escape sequence")
        return _PLAIN_ESCAPES[char]

    def _next(self, expected: str) -> str:
        if self._position >= len(self._text):
            raise self._error(f"expected {expected}")
        self._position += 1
        return self._text[self._position - 1]

    def _take(self, char: str) -> bool:
        self._skip()
        taken = self._text.startswith(char, self._position)
        self._position += taken
        return taken

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._skip()
        found = pattern.match(self._text, self._position)
        if found is None:
            return ""
        self._position = found.end()
        return found[0]

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._position)
        self._position = found.end() if found else self._position

    def _error(self, problem: str) -> FormatError:
        shown = self._text if len(self._text) <= 80 else f"{self._text[:80]}..."
        return FormatError("filter", f"{problem}, at character {self._position} of {shown!r}")
