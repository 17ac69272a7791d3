"""Names are other people's, and so is what a server said: what they may hold in a terminal, in Markdown and in a spreadsheet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Control characters (a terminal obeys them), and those that turn the direction of a line.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
BREAKS = re.compile("[\t\n\x0b\x0c\r\x1c-\x1e\x85\u2028\u2029]+")
# What Markdown would act on, and no more, so that ``ttft_p95<=90ms [80, 95]`` stays readable as it is.
MARKDOWN = re.compile(r"[\\`*|~]|(?<![^\W_])_|_(?![^\W_])|\[(?![\d-])|\](?=[(\[:])")
# What GitHub makes a link of, or tells somebody (names, issues, addresses), wherever it stands: it is broken by a space
# that has no width, for it looks at the text after all escapes are undone.
TELLS = re.compile(r"(?<=:)(?=//)|(?<=[wW]{3})(?=\.)|(?<=[@#])(?=\w)")
NO_WIDTH = "\u200b"
HTML = {"&": re.compile(r"&(?=[#a-zA-Z])"), "<": re.compile(r"<(?=[a-zA-Z/!?])")}
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the wide ones are taken for the narrow ones


def visible(value: Any) -> Any:
    """The same, of any document, with every character that could not be seen as one that can."""
    if isinstance(value, str):
        return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, Mapping):
        return {visible(key): visible(part) for key, part in value.items()}
    return [visible(part) for part in value] if isinstance(value, (list, tuple)) else value


def one_line(text: str) -> str:
    """For a terminal: no break of the line, and nothing that it would obey."""
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", BREAKS.sub(" ", text))


def markdown_text(text: str) -> str:
    """As words of one line: no end of a cell, no link or picture, no HTML, no emphasis, nobody who is called."""
    words = HTML["&"].sub("&amp;", " ".join(one_line(text).split()))
    return TELLS.sub(NO_WIDTH, MARKDOWN.sub(r"\\\g<0>", HTML["<"].sub("&lt;", words)))


def spreadsheet_text(text: str) -> str:
    """What would be taken for a formula, however it is led in, gets an apostrophe before it."""
    words = " ".join(one_line(text).split())
    return f"'{words}" if words.startswith(FORMULA) else words
