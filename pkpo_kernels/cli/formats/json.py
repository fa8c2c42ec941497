"""A list of JSON objects, one for each task or for each sample, read one by one."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from pkpo_kernels.cli.formats.jsonl import JSON, DuplicateKey, Records
from pkpo_kernels.cli.lines import Lines
from pkpo_kernels.cli.sources import Source

# Bytes read at a time.
_PIECE = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")
# How near to the end of what is read an error may be that more would mend: as long as \ud83d\ude00.
_CUT = 16


def read(source: Source, lines: Lines) -> None:
    """Read a list of objects."""
    records = Records(lines)
    for record, number in _elements(source, lines):
        if not isinstance(record, dict):
            lines.fail("an element must be a JSON object with task_id and rewards", number)
        records.add(record, number)
    records.finish()


def _elements(source: Source, lines: Lines) -> Iterator[tuple[Any, int]]:
    """Decode the elements of a list: → each with the line that it begins on. What is held of the
    file is an element and a piece."""
    text = _Text(source, lines)
    opening = text.next()
    if opening != "[":
        hint = "; for one object a line, say --format jsonl" if opening == "{" else ""
        lines.fail(f"must hold a list of JSON objects; got {opening or 'nothing'}{hint}")
    if text.next() == "]":
        return
    text.back()
    while True:
        yield text.element()
        sign = text.next()
        if sign == "]":
            break
        if sign != ",":
            lines.fail(f"not valid JSON: , or ] must follow; got {sign or 'the end'}", text.line)
    if rest := text.next():
        lines.fail(f"not valid JSON: more after the list: {rest}", text.line)


class _Text:
    """What is read of a file and not yet decoded."""

    def __init__(self, source: Source, lines: Lines) -> None:
        self.line = 1
        self._source = source
        self._lines = lines
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._ended = False

    def next(self) -> str:
        """Take the next sign that is no space; "" at the end."""
        while True:
            # No slice of the text, which would copy all of it for each sign.
            end = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if end < len(self._text):
                self._pass(end + 1 - self._at)
                return self._text[end]
            self._pass(end - self._at)
            if not self._more():
                return ""

    def back(self) -> None:
        """Give back the sign that was taken last."""
        self._at -= 1

    def element(self) -> tuple[Any, int]:
        """Take a value: → it, and the line it begins on."""
        if self.next():
            self.back()
        while True:
            try:
                value, end = JSON.raw_decode(self._text, self._at)
            except DuplicateKey as error:
                self._lines.fail(str(error), self.line)
            except (ValueError, RecursionError) as error:  # of integers of 5,000 digits, too
                if isinstance(error, json.JSONDecodeError) and self._cut(error) and self._more():
                    continue
                self._lines.fail(f"not valid JSON: {error}", self.line)
            line = self.line
            self._pass(end - self._at)
            return value, line

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Tell whether what is wrong may be that the text ends here."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _CUT

    def _pass(self, signs: int) -> None:
        self.line += self._text.count("\n", self._at, self._at + signs)
        self._at += signs

    def _more(self) -> bool:
        """Read on, twice as much as is left, so that long values are not decoded over and over."""
        if self._ended:
            return False
        piece = self._source.file.read(max(_PIECE, 2 * (len(self._text) - self._at)))
        self._ended = not piece
        try:
            text = self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            self._lines.fail(f"not UTF-8: {error.reason}", self.line)
        self._source.tell()
        self._text = self._text[self._at :] + text
        self._at = 0
        return not self._ended
