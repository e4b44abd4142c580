"""Edits: lines of a text and what to do to them, as the command takes them, and as Inception's clients write them."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from ..errors import Mistake
from ..fill.edit import Lines, change, cut, unified_diff
from ..fill.infill import Filled
from ..tokens.messages import prompt_tokens, template_messages
from ..tokens.stops import Stops
from .bodies import Body, Count
from .engine import Engine
from .fim import plan_gaps
from .openai import CompletionWire
from .plan import Plan, ask_of
from .refusal import Refusal

FILE_MARK = "<file>"
REGION = re.compile(r"<\|code_to_edit\|>\n?(?P<region>.*?)\n?<\|/code_to_edit\|>", re.DOTALL)
FILE = re.compile(
    r"<\|current_file_content\|>\n?(?:current_file_path:[^\n]*\n)?(?P<file>.*?)<\|/current_file_content\|>", re.DOTALL
)
ORIGINAL = re.compile(r"<\|original_code\|>\n?(?P<region>.*?)\n?<\|/original_code\|>", re.DOTALL)
CURSOR = "<|cursor|>"


class EditBody(Body):
    messages: Annotated[list[Any], Field(max_length=1000)] | None = None  # Inception's
    text: str | None = None  # ours, and what follows
    lines: str | None = None  # FIRST:LAST
    prompt: str | None = None
    system: str | None = None
    strength: Annotated[float, Field(ge=0, le=1)] = 0.75
    gap: Count | None = None


def plan_edit(engine: Engine, body: EditBody) -> Plan:
    """Plans to change lines of a text, as a prompt says."""
    if body.messages is not None:
        return plan_region(engine, body, REGION)
    if body.text is None or body.lines is None or body.prompt is None:
        raise Refusal(400, "need messages, or text, lines and prompt", "text")
    if not (found := re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", body.lines)):
        raise Refusal(400, f"lines: need FIRST:LAST, such as 10:20, got {body.lines!r:.80}", "lines")
    lines = cut(body.text, int(found[1]), int(found[2] or found[1]))
    prompt = body.prompt.replace(FILE_MARK, body.text)
    return plan_lines(engine, body, lines, prompt_tokens(engine.tokenizer, prompt, system=body.system))


def plan_apply(engine: Engine, body: EditBody) -> Plan:
    """Plans to merge a snippet into a text, all of which may change."""
    return plan_region(engine, body, ORIGINAL)


def plan_region(engine: Engine, body: EditBody, marks: re.Pattern) -> Plan:
    """Plans to change the region between `marks` in the last message, within the file around it."""
    turns = template_messages(body.messages or [])
    asked = turns[-1]["content"] if turns else ""
    if not (found := marks.search(asked)):
        need = marks.pattern[:30].replace("\\", "").split(">")[0] + ">"
        raise Refusal(400, f"messages: the last one shows no region between {need} and its end", "messages")
    around = FILE.search(asked)
    region = found["region"].replace(CURSOR, "")
    before = behind = ""
    if around and around.start() < found.start() < around.end():
        before, behind = asked[around.start("file") : found.start()], asked[found.end() : around.end("file")]
    lines = Lines(before, region, behind)
    return plan_lines(engine, body, lines, prompt_tokens(engine.tokenizer, turns))


def plan_lines(engine: Engine, body: EditBody, lines: Lines, prompt: Sequence[int]) -> Plan:
    ask, warnings = ask_of(engine, body, None)
    if body.max_tokens is not None:
        warnings.append("max_tokens has no effect: a region is written whole")
    request = change(engine.tokenizer, lines, prompt=prompt, ask=ask, length=body.gap, strength=body.strength)
    try:
        return plan_gaps(engine, body, request, warnings, show=partial(_shown, body, lines))
    except Mistake as mistake:
        raise Refusal(400, str(mistake), "messages" if body.messages else "text") from None


def _shown(body: EditBody, lines: Lines, filled: Filled) -> tuple[str, dict[str, Any]]:
    """Returns the new region; for our own fields the whole text and the difference, too."""
    region = filled.gaps[0]
    text = lines.with_new(region)
    more = {} if body.messages is not None else {"new_text": text, "diff": unified_diff(body.text, text, "text")}
    return Stops(body.stops).push(region, last=True), more


class EditWire(CompletionWire):
    kind, id_prefix = "chat.completion", "edit-"


ENDPOINTS = {
    "/v1/edit/completions": (EditBody, plan_edit, EditWire),
    "/v1/apply/completions": (EditBody, plan_apply, EditWire),
}
