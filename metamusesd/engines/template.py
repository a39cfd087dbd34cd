"""Stage 8 · worker · the model file's own chat template, rendered around sentinels.

The template never sees what people wrote: each message's content is replaced by a random sentinel, and what comes back
is cut at the sentinels. So nothing in a message can look like template text, however the template treats it. This is
the only file that imports jinja2.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from metamusesd.errors import ModelLoadFailed, TemplateFailed
from metamusesd.job import Message
from metamusesd.wire import DATED

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)  # for files without a template
CHATML_END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered prompt. `trusted`: it comes from the template, not from a message."""

    text: str
    trusted: bool


class ChatTemplate:
    """A compiled template. Thread-safe."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self.source = source
        dated = DATED if "strftime_now" in source else ""
        self.digest = f"{dated}sha256:{hashlib.sha256(source.encode()).hexdigest()}"
        self._words = {"bos_token": bos, "eos_token": eos, "raise_exception": _refuse, "strftime_now": _now}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelLoadFailed(f"the model's chat template is broken: {error}") from error

    def render(self, messages: list[Message]) -> list[Piece]:
        """The prompt in pieces, ending where the assistant's turn begins. Raises TemplateFailed."""
        mark = secrets.token_hex(8)
        turns = [{"role": message.role, "content": f"\x02{mark}:{index}\x03"} for index, message in enumerate(messages)]
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **self._words)
        except Exception as error:  # a template is a program: it may raise anything
            raise TemplateFailed(f"the model's chat template does not accept these messages: {error}") from error
        return _cut(text, re.compile(f"\x02{mark}:([0-9]+)\x03"), messages)


def _cut(text: str, sentinel: re.Pattern[str], messages: list[Message]) -> list[Piece]:
    """Split `text` at the sentinels and put the messages' contents in their places."""
    parts = sentinel.split(text)
    pieces = []
    for place, part in enumerate(parts):
        if place % 2:
            pieces.append(Piece(messages[int(part)].content, trusted=False))
        elif part:
            pieces.append(Piece(part, trusted=True))
    missing = len(messages) - len(set(parts[1::2]))
    if missing:
        raise TemplateFailed(f"the model's chat template leaves out {missing} of the messages")
    return pieces


def _refuse(reason: str) -> NoReturn:
    raise jinja2.TemplateError(reason)


def _now(form: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).strftime(form)
