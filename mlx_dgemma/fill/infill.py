"""Fill gaps in a text: what is there is held in the canvas, only the gaps are denoised.

What comes out is what was given, to the byte, with the decoded gaps between it: known text is never decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel
from ..tokens.tokenizer import Tokenizer
from ..writing.batch import batch
from ..writing.blocks import Given
from ..writing.sampling import Sampling
from ..writing.writing import Step, Writing
from .gap_length import Found, Gap, search
from .held import Alphabet, Held

MARK = "<fill>"


def around(fill: str | None = None, prefix: str | None = None, suffix: str | None = None) -> list[str]:
    """What is around the gaps of `fill`, a text with marks; or around the one between `prefix` and `suffix`."""
    texts = [prefix or "", suffix or ""] if fill is None else fill.split(MARK)
    if len(texts) == 1:
        raise Mistake(f"the text to fill has no {MARK} mark: put one where something is missing")
    if "" in texts[1:-1]:
        raise Mistake(f"there are two {MARK} marks with nothing between them: one is enough")
    if not any(texts):
        raise Mistake("there is no text around the gap: give a prefix or a suffix")
    return texts


def gap_lengths(given: Sequence[int] | None, gaps: int) -> list[int] | None:
    """Of each gap; one number is that of all."""
    if given and len(given) not in (1, gaps):
        raise Mistake(f"gap has {len(given)} lengths, and there are {gaps} gaps: give one each, or one")
    return (list(given) * gaps)[:gaps] if given else None


def fill_prompt(texts: Sequence[str]) -> str:
    """Where nothing else is asked."""
    return f"Fill in what is missing at {MARK}:\n\n{MARK.join(texts)}"


@dataclass(frozen=True, kw_only=True)
class Infill:
    """A text with gaps."""

    prompt: Sequence[int]  # tokens: what is asked, up to where the model's turn begins
    texts: Sequence[str]  # around the gaps: one more than there are gaps
    lengths: Sequence[int] | None = None  # tokens of each gap; None: searched
    heal: bool = False  # a token next to a gap may become a longer one that holds its text
    seed: int = 0
    usual: Sequence[int] = ()  # lengths that a search tries in any case

    def blank(self, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """[length] int32 twice: what a gap starts from, and what its first pass hears; -1 is noise, and nothing."""
        return np.full(length, -1, np.int32), np.full(length, -1, np.int32)

    def schedule(self, sampling: Sampling) -> Sampling:
        """That of its gaps."""
        return sampling


@dataclass(frozen=True, kw_only=True)
class Filled:
    texts: Sequence[str]  # as given
    gaps: list[str]
    lengths: list[int]  # tokens of each gap
    tried: list[dict[int, float]]  # of each gap whose length was searched: length -> score, nats
    steps: list[int]  # of each block
    passes: int  # canvases looked at in all, those of the search among them
    entropy: float  # nats a position of the gaps, when their canvases were done

    @property
    def text(self) -> str:
        return self.texts[0] + "".join(gap + behind for gap, behind in zip(self.gaps, self.texts[1:], strict=True))


def check_fill(model: DiffusionModel, tokenizer: Tokenizer, request: Infill, width: int = 0) -> None:
    """Mistake where `request` could not be filled on canvases of `width`, the model's if 0."""
    prompt, known = len(request.prompt), sum(len(tokenizer.encode(text)) for text in request.texts)
    count, lengths = len(request.texts) - 1, request.lengths
    if count < 1 or (lengths is not None and (len(lengths) != count or min(lengths) < 1)):
        raise Mistake(f"need gaps, and for each its length of 1 or more, got {count} and {lengths}")
    gaps, room = sum(lengths or ()) or count, model.config.max_position_embeddings
    room -= width or model.config.canvas_length
    if prompt == 0:
        raise Mistake("the prompt is empty: need at least one token before the text")
    if prompt + known + gaps > room:
        raise Mistake(
            f"a gap of {gaps} tokens does not fit into the context: the prompt takes {prompt}, the text around it "
            f"{known}, of {room} beside a canvas; make the gap or the text smaller"
        )


class Filling:
    """One of them while it is done."""

    def __init__(self, model: DiffusionModel, alphabet: Alphabet, sampling: Sampling, request: Infill):
        self.model, self.alphabet, self.request = model, alphabet, request
        self.sampling = request.schedule(sampling)
        self.parts = [alphabet.encode(text) for text in request.texts]
        self.filling = alphabet.filling(width_of(self.sampling, model))
        self.lengths = list(request.lengths or ())
        self.found: list[Found] = []
        self.caches: dict[bytes, Cache] = {}
        self.steps: list[Step] = []  # the last of each block

    @property
    def complete(self) -> bool:
        return len(self.lengths) == len(self.parts) - 1

    def encoded(self, before: np.ndarray) -> Cache:
        """The prompt and `before`: shared, so not to be written to."""
        key = before.tobytes()
        if key not in self.caches:
            cache = self.encoded(before[:0]).copy() if key else self.model.new_cache(len(self.request.prompt))
            self.model.encode([before if key else self.request.prompt], [cache])
            self.caches[key] = cache
        return self.caches[key]

    def next_gap(self) -> Gap:
        """The first whose length is not known, behind what those before it said while theirs was searched."""
        at = len(self.lengths)
        said = [tokens for part, found in zip(self.parts, self.found, strict=False) for tokens in (part, found.tokens)]
        return Gap(
            before=np.concatenate([*said, self.parts[at]]),
            behind=self.parts[at + 1],
            ends=at + 2 == len(self.parts),
            encoded=self.encoded,
            blank=self.request.blank,
            allowed=self.alphabet.text,
            filling=self.filling,
            usual=self.request.usual,
            sampling=self.sampling,
            seed=self.request.seed,
        )

    def learn(self, found: Found) -> None:
        self.found.append(found)
        self.lengths.append(max(found.scores, key=found.scores.__getitem__))

    def writing(self, number: int) -> Writing:
        rng = np.random.default_rng(self.request.seed)
        text, self.spans = self._text(rng)
        self.layout, self.tokens = Held(text, len(self.filling), self.filling), text.tokens.copy()
        cache = self.encoded(text.tokens[: self.layout.starts[0]]).copy()
        options = {"sampling": self.sampling, "layout": self.layout, "seed": rng, "request": number, "cache": cache}
        return Writing(self.model, (), **options)

    def _text(self, rng: np.random.Generator) -> tuple[Given, list[slice]]:
        """All of it, with gaps of known length, and where these are, tokens that may be healed included."""
        blanks = [self.request.blank(length, rng) for length in self.lengths]
        known = [(part, np.full(len(part), -1, np.int32)) for part in self.parts]
        pairs = [pair for both in zip(known, blanks, strict=False) for pair in both] + known[-1:]
        tokens, hint = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        ends = np.cumsum([len(pair[0]) for pair in pairs]).tolist()
        allowed, spans = np.full(len(tokens), -1, np.int32), []
        for i in range(len(self.lengths)):
            first, last = ends[2 * i], ends[2 * i + 1]
            allowed[first:last] = self.alphabet.text
            left, right = map(bool, self.healed(i))
            if left:
                allowed[first - 1] = self.alphabet.beginning_with(tokens[first - 1])
            if right:
                allowed[last] = self.alphabet.ending_with(tokens[last])
            spans.append(slice(first - left, last + right))
        return Given(tokens=tokens, fixed=allowed < 0, hint=hint, allowed=allowed), spans

    def healed(self, gap: int) -> tuple[str, str]:
        """What the tokens next to it say that may change: "" where none may, because it says no whole characters, or
        because it is all that there is between two gaps."""
        left, right = self.parts[gap], self.parts[gap + 1]
        before, behind = self.request.texts[gap], self.request.texts[gap + 1]
        if not self.request.heal:
            return "", ""
        last = self.alphabet.whole(left[-1]) if len(left) > 1 else ""
        first = self.alphabet.whole(right[0]) if len(right) > 1 else ""
        return last if before.endswith(last) else "", first if behind.startswith(first) else ""

    def add(self, step: Step) -> None:
        if step.final:
            start = self.layout.starts[step.block]
            own = self.tokens[start : start + len(step.draft)]
            own[:] = step.draft[: len(own)]
            self.steps.append(step)

    def filled(self) -> Filled:
        gaps = []
        for i, span in enumerate(self.spans):
            left, right = self.healed(i)
            said = self.alphabet.decode(self.tokens[span])
            gaps.append(said[len(left) : len(said) - len(right)])
        free = sum(span.stop - span.start for span in self.spans)
        return Filled(
            texts=self.request.texts,
            gaps=gaps,
            lengths=self.lengths,
            tried=[found.scores for found in self.found],
            steps=[step.step + 1 for step in self.steps],
            passes=sum(step.step + 1 for step in self.steps) + sum(found.passes for found in self.found),
            entropy=float(sum(step.entropy.sum() for step in self.steps)) / free,
        )


def width_of(sampling: Sampling, model: DiffusionModel) -> int:
    """Of a canvas: as asked, or the model's. What is held needs the room, so "auto" is the whole of it."""
    if not isinstance(sampling.canvas_length, int):
        return model.config.canvas_length
    if sampling.canvas_length > model.config.canvas_length:
        raise Mistake(f"need canvas_length <= {model.config.canvas_length}, the model's, got {sampling.canvas_length}")
    return sampling.canvas_length


def infill(
    model: DiffusionModel, tokenizer: Tokenizer, requests: Sequence[Infill], *, sampling: Sampling, size: int = 8
) -> list[Filled]:
    """Fill the gaps of all `requests`, `size` canvases in a pass. What comes of each is what it gets alone.

    Where no length is given, gap after gap is searched, each behind what the one before said; then all gaps of a text
    are denoised together.
    """
    alphabet = Alphabet(model, tokenizer)
    for request in requests:
        check_fill(model, tokenizer, request, width_of(sampling, model))
    found: list[Filled] = []
    for first in range(0, len(requests), size):  # a search keeps a dozen caches of each of them
        found += _together(model, alphabet, requests[first : first + size], sampling, size)
    return found


def _together(
    model: DiffusionModel, alphabet: Alphabet, requests: Sequence[Infill], sampling: Sampling, size: int
) -> list[Filled]:
    fillings = [Filling(model, alphabet, sampling, request) for request in requests]
    while unknown := [filling for filling in fillings if not filling.complete]:
        gaps = [filling.next_gap() for filling in unknown]
        for filling, found in zip(unknown, search(model, gaps, size), strict=True):
            filling.learn(found)
    for step in batch(model, (filling.writing(i) for i, filling in enumerate(fillings)), size):
        fillings[step.request].add(step)
    return [filling.filled() for filling in fillings]
