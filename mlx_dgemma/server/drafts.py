"""Drafts on the wire: for those who ask, after every pass that ends nothing."""

from typing import Any

from ..fill.infill import InGaps
from ..seam.model import Facts
from ..tokens.stream import CHANNEL_OPEN, TextStream
from ..tokens.tokenizer import Tokenizer
from ..writing.blocks import until_stop
from .reply import Draft


def frame(tokenizer: Tokenizer, facts: Facts, draft: Draft, total: int, *, tokens: bool) -> dict[str, Any]:
    """Returns a diffusion frame. `settled` are the spans of `text` that the pass accepted. With `tokens` these come
    one by one, up to the stop, with their entropies in nats, and the number of the gap that each is in."""
    step = draft.step
    content = until_stop(step.draft, facts.stop_ids)
    if len(content) and content[-1] in facts.stop_ids:
        content = content[:-1]
    thoughts, pieces = _pieces(tokenizer, content.tolist(), draft.thinking)
    reasoning = not any(pieces) and any(thoughts)
    shown = thoughts if reasoning else pieces
    accepted = step.accepted[: len(content)]
    details: dict[str, Any] = {
        "start": draft.start,
        "settled": _spans(shown, accepted),
        "entropy": round(float(step.entropy.mean()), 4) if len(step.entropy) else 0.0,
        "reasoning": reasoning,
    }
    if tokens:
        details |= {"tokens": shown, "accepted": accepted.astype(int).tolist()}
        details |= {"gaps": step.gaps[: len(content)].tolist()} if isinstance(step, InGaps) else {}
        details["entropy_each"] = [round(float(nats), 2) for nats in step.entropy[: len(content)]]
    numbers = {"block": step.block, "step": step.step, "total": max(total, step.step + 1)}
    return {"type": "diffusion_frame", **numbers, "text": "".join(shown), "diffusion": details}


def _pieces(tokenizer: Tokenizer, tokens: list[int], thinking: bool) -> tuple[list[str], list[str]]:
    """Returns the text that each token adds to the thinking, and to the answer."""
    opening = tokenizer.token_id(CHANNEL_OPEN)
    stream = TextStream(tokenizer, [opening] if thinking and opening is not None else [])
    pairs = [stream.push([token]) for token in tokens]
    if pairs:
        rest = stream.finish()
        pairs[-1] = (pairs[-1][0] + rest[0], pairs[-1][1] + rest[1])
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _spans(pieces: list[str], accepted) -> list[list[int]]:
    """Returns [start, end] of each accepted stretch of the text, in characters."""
    spans: list[list[int]] = []
    at = 0
    for piece, sure in zip(pieces, accepted, strict=True):
        end = at + len(piece)
        if sure and spans and spans[-1][1] == at:
            spans[-1][1] = end
        elif sure and end > at:
            spans.append([at, end])
        at = end
    return spans
