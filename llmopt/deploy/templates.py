"""Templates of what is no document, and the escapes of the languages that they are written in.

A value reaches a template through one of the filters; a template that prints one bare is a defect, which the contract tests
find by rendering names full of quotes, newlines and metacharacters and reading everything back.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmopt.core.errors import UsageError
from llmopt.core.escaping import markdown_text, one_line

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent / "templates"
# What systemd reads inside double quotes; % and $ are expanded there too, and are written twice.
OF_SYSTEMD = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "%": "%%", "$": "$$"}

PLAIN_IN_NGINX = re.compile(r"[\w./:@-]+", re.ASCII)


def render(name: str, **values: Any) -> str:
    """The template of this name under ``templates/``."""
    text: str = environment().get_template(name).render(**values)
    return text


@functools.cache
def environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {
        "sh": shell_word,
        "systemd": systemd_word,
        "nginx": nginx_word,
        "systemd_value": systemd_value,
        "systemd_text": systemd_text,
        "json": json.dumps,
        "line": one_line,
        "md": markdown_text,
    }
    return made


def shell_word(value: Any) -> str:
    """One word of a POSIX shell."""
    return shlex.quote(without_nul(str(value)))


def systemd_word(value: Any) -> str:
    """One word of ``ExecStart=``, quoted."""
    return '"' + "".join(OF_SYSTEMD.get(c) or unseen(c) for c in without_nul(str(value))) + '"'


def systemd_value(value: Any) -> str:
    """One word of ``Environment=``, or the program of ``ExecStart=``: there ``$`` stands for itself (systemd.exec(5))."""
    return systemd_word(value).replace("$$", "$")


def unseen(character: str) -> str:
    """A control character as systemd's ``\\x01``; every other as it is."""
    return f"\\x{ord(character):02x}" if character < " " or character == "\x7f" else character


def systemd_text(value: Any) -> str:
    """A setting that systemd takes to the end of the line, such as ``Description=``: one line, ``%`` as it is."""
    return " ".join(one_line(str(value)).split()).replace("%", "%%").rstrip("\\")


def nginx_word(value: Any) -> str:
    """One parameter of a directive, quoted. Raises UsageError for ``$``, which many directives expand and none can escape."""
    text = without_nul(str(value))
    if "$" in text:
        raise UsageError(f"{text!r} has a $ in it, which nginx would expand", hint="name another path")
    return text if PLAIN_IN_NGINX.fullmatch(text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def without_nul(text: str) -> str:
    """The text. Raises UsageError for a NUL, which no program can be given."""
    if "\0" in text:
        raise UsageError(f"{text!r} has a NUL in it, which no command line can hold", hint="rename it")
    return text
