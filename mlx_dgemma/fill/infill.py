"""Fill gaps in a text: what is there is held in the canvas, only the gaps are denoised.

The result is the given text, to the byte, with the decoded gaps between it: known text is never decoded. The model
reads "\n" where lines end; lines of a gap end as most of the text's do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from ..errors import Mistake
from ..seam.model import Cache, DiffusionModel, Text
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask
from ..writing.batch import PIECE
from ..writing.blocks import Block, check_width
from ..writing.clock import Clock
from ..writing.sampling import Sampling
from ..writing.task import Show, Task, complete
from ..writing.verify import Verify
from ..writing.writing import Step, Writing
from .gap_length import LENGTHS, Gap, Result, search
from .held import Alphabet, Held
from .line_ends import BOM, line_end, normalized, with_line_ends

MARK = "<fill>"


def texts_around(fill: str | None = None, prefix: str | None = None, suffix: str | None = None) -> list[str]:
    """The texts around the gaps of `fill`, a text with marks; or around the gap between `prefix` and `suffix`."""
    if (suffix or "").startswith(BOM):  # the mark of a file stands in front of all that is written
        prefix, suffix = prefix or BOM, suffix.removeprefix(BOM)
    texts = [prefix or "", suffix or ""] if fill is None else fill.split(MARK)
    if len(texts) == 1:
        raise Mistake(f"the text to fill has no {MARK} mark: put one where something is missing")
    if "" in texts[1:-1]:
        raise Mistake(f"there are two {MARK} marks with nothing between them: one is enough")
    if not any(text.removeprefix(BOM) for text in texts):
        raise Mistake("there is no text around the gap: give a prefix or a suffix")
    return texts


def gap_lengths(given: Sequence[int] | None, gaps: int) -> list[int] | None:
    """The length of each gap; one number is the length of all."""
    if given and len(given) not in (1, gaps):
        raise Mistake(f"gap has {len(given)} lengths, and there are {gaps} gaps: give one each, or one")
    return (list(given) * gaps)[:gaps] if given else None


def fill_prompt(texts: Sequence[str]) -> str:
    """The prompt where nothing else is asked."""
    return f"Fill in what is missing at {MARK}:\n\n{normalized(MARK.join(texts))}"


@dataclass(frozen=True, kw_only=True)
class Infill:
    """A text with gaps."""

    prompt: Sequence[int]  # tokens: what is asked, up to where the model's turn begins
    texts: Sequence[str]  # around the gaps: one more than there are gaps
    lengths: Sequence[int] | None = None  # tokens of each gap; None: searched
    heal: bool = False  # a token next to a gap may become a longer one that holds its text
    ask: Ask = field(default_factory=Ask)
    first_lengths: Sequence[int] = ()  # that a search tries in any case, before others
    tries: int = LENGTHS  # lengths that a search tries at most
    longest: int | None = None  # tokens of a gap at most; None: as many as a canvas has

    @property
    def line_end(self) -> str:
        return line_end("".join(self.texts))

    @property
    def normalized(self) -> list[str]:
        """The texts with the line ends that the model reads."""
        return [normalized(text, self.line_end) for text in self.texts]

    def initial(self, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """[length] int32 twice: the tokens that a gap starts from, -1 for noise, and the hint of its first pass, -1 for
        none."""
        return np.full(length, -1, np.int32), np.full(length, -1, np.int32)

    def schedule(self) -> Sampling:
        """How its gaps are denoised."""
        return self.ask.sampling


@dataclass(frozen=True, kw_only=True)
class Filled:
    texts: Sequence[str]  # as given
    gaps: list[str]
    lengths: list[int]  # tokens of each gap
    tried: list[dict[int, float]]  # of each gap whose length was searched: length -> score, nats
    steps: list[int]  # of each block
    passes: int  # canvases denoised in all, those of the search among them
    entropy: float  # nats a position of the gaps, when their canvases were done
    finish_reason: str  # "stop", or "deadline"
    notes: list[str]  # what was decided on the way

    @property
    def text(self) -> str:
        return self.texts[0] + "".join(gap + behind for gap, behind in zip(self.gaps, self.texts[1:], strict=True))


def check_fill(model: DiffusionModel, tokenizer: Tokenizer, request: Infill) -> None:
    """Mistake where `request` could not be filled."""
    if request.ask.mode != "diffusion":
        raise Mistake(f"a gap is denoised: leave out mode {request.ask.mode!r}")
    prompt, known = len(request.prompt), sum(len(tokenizer.encode(text)) for text in request.normalized)
    count, lengths = len(request.texts) - 1, request.lengths
    if count < 1 or (lengths is not None and (len(lengths) != count or min(lengths) < 1)):
        raise Mistake(f"need gaps, and for each its length of 1 or more, got {count} and {lengths}")
    gaps, room = sum(lengths or ()) or count, model.facts.max_position_embeddings
    width, old = canvas_width(model, request.ask.sampling), max(request.first_lengths, default=0)
    room -= width
    if prompt == 0:
        raise Mistake("the prompt is empty: need at least one token before the text")
    if prompt + known + gaps > room:
        raise Mistake(
            f"a gap of {gaps} tokens does not fit into the context: the prompt takes {prompt}, the text around it "
            f"{known}, of {room} beside a canvas; make the gap or the text smaller"
        )
    if lengths is None and old >= width:
        raise Mistake(
            f"what is to change is {old} tokens long, and a length is searched up to {width - 1}: give the new one "
            "by --gap, or less to change"
        )


@dataclass(frozen=True, kw_only=True)
class InGaps(Step):
    """A step, cut to the gaps."""

    gaps: np.ndarray  # int32: the number of the gap that each position is in


class Filling:
    """An infill in progress."""

    def __init__(self, model: DiffusionModel, alphabet: Alphabet, request: Infill):
        self.model, self.alphabet, self.request = model, alphabet, request
        self.sampling, self.clock = request.schedule(), Clock(request.ask.deadline, model.now)
        self.texts = request.normalized
        self.parts = [alphabet.encode(text) for text in self.texts]
        self.filler = alphabet.filler(canvas_width(model, self.sampling))
        self.lengths = list(request.lengths or ())
        self.results: list[Result] = []  # of the search, gap by gap
        self.caches: dict[bytes, Cache] = {}
        self.steps: list[Step] = []  # the last of each block
        self.notes: list[str] = []

    @property
    def complete(self) -> bool:
        """True if the length of every gap is known."""
        return len(self.lengths) == len(self.parts) - 1

    def read(self) -> Task[None]:
        """Encode the prompt, and a long text before the next gap, in pieces between the passes of others."""
        for text in (np.zeros(0, np.int32), self.next_gap().before):
            tokens = Text(text if len(text) else self.request.prompt)
            if text.tobytes() in self.caches or len(tokens) <= PIECE:
                continue
            cache = self.encoded(text[:0]).copy() if len(text) else self.model.new_cache(len(tokens))
            for start in range(0, len(tokens), PIECE):
                yield []
                self.model.encode([tokens[start : start + PIECE]], [cache])
            self.caches[text.tobytes()] = cache

    def encoded(self, before: np.ndarray) -> Cache:
        """The cache of the prompt and `before`: shared, so not to be written to."""
        key = before.tobytes()
        if key not in self.caches:
            cache = self.encoded(before[:0]).copy() if key else self.model.new_cache(len(self.request.prompt))
            self.model.encode([Text(before if key else self.request.prompt)], [cache])
            self.caches[key] = cache
        return self.caches[key]

    def next_gap(self) -> Gap:
        """The first gap whose length is not known, behind the texts that the search gave to those before it."""
        at = len(self.lengths)
        filled = zip(self.parts, [result.tokens for result in self.results], strict=False)
        return Gap(
            before=np.concatenate([*chain(*filled), self.parts[at]]),
            behind=self.parts[at + 1],
            ends=at + 2 == len(self.parts),
            encoded=self.encoded,
            initial=self.request.initial,
            alphabet=self.alphabet,
            filler=self.filler,
            first_lengths=self.request.first_lengths,
            tries=self.request.tries,
            longest=self.request.longest or len(self.filler),
            sampling=self.sampling,
            clock=self.clock,
            seed=self.request.ask.seed,
        )

    def add_result(self, result: Result) -> None:
        """Take the length of the next gap that a search has found."""
        self.results.append(result)
        self.lengths.append(result.length)

    def writing(self, number: int) -> Writing:
        rng = np.random.default_rng(self.request.ask.seed)
        text, self.spans = self._text(rng)
        self.layout, self.tokens = Held(text, self.filler), text.tokens.copy()
        for i, (span, result) in enumerate(zip(self.spans, self.results, strict=False)):
            left, right = map(bool, self.healed(i))
            gap = self.tokens[span.start + left : span.stop - right]
            gap[:] = np.resize(result.tokens, len(gap))  # it stands if a deadline comes first
        cache = self.encoded(self.layout.take_before()).copy()
        check = Verify() if self.request.ask.verify else None
        return Writing(self.model, Text(), self.layout, self.sampling, rng, cache, self.clock, check, number)

    def _text(self, rng: np.random.Generator) -> tuple[Block, list[slice]]:
        """The whole text with gaps of known length; and where these are, tokens that may be healed included."""
        blanks = [self.request.initial(length, rng) for length in self.lengths]
        known = [(part, np.full(len(part), -1, np.int32)) for part in self.parts]
        pairs = [pair for both in zip(known, blanks, strict=False) for pair in both] + known[-1:]
        tokens, hint = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        ends = np.cumsum([len(pair[0]) for pair in pairs]).tolist()
        allowed, spans = np.full(len(tokens), -1, np.int32), []
        for i in range(len(self.lengths)):
            first, last = ends[2 * i], ends[2 * i + 1]
            allowed[first:last] = self.alphabet.any_text
            left, right = map(bool, self.healed(i))
            if left:
                allowed[first - 1] = self.alphabet.beginning_with(tokens[first - 1])
            if right:
                allowed[last] = self.alphabet.ending_with(tokens[last])
            spans.append(slice(first - left, last + right))
        sets = self.alphabet.sets
        return Block(tokens=tokens, fixed=allowed < 0, hint=hint, allowed=allowed, token_sets=sets), spans

    def healed(self, gap: int) -> tuple[str, str]:
        """The texts of the two tokens next to the gap that may change; "" for one that is no whole characters, or all
        that stands between two gaps."""
        left, right = self.parts[gap], self.parts[gap + 1]
        before, behind = self.texts[gap], self.texts[gap + 1]
        if not self.request.heal:
            return "", ""
        last = self.alphabet.text_of(left[-1]) if len(left) > 1 else ""
        first = self.alphabet.text_of(right[0]) if len(right) > 1 else ""
        return last if before.endswith(last) else "", first if behind.startswith(first) else ""

    def add(self, step: Step) -> None:
        self.notes += [step.note] if step.note else []
        if step.final:
            start = self.layout.starts[step.block]
            part = self.tokens[start : start + len(step.draft)]
            part[:] = step.draft[: len(part)]
            self.steps.append(step)

    def within_gaps(self, step: Step) -> InGaps:
        start = self.layout.starts[step.block]
        gaps = np.full(len(self.tokens) + len(self.filler), -1, np.int32)
        for i, span in enumerate(self.spans):
            gaps[span] = i
        gaps = gaps[start : start + len(step.draft)]
        cut = {name: getattr(step, name)[gaps >= 0] for name in ("canvas", "draft", "accepted", "entropy")}
        return InGaps(**vars(step) | cut, gaps=gaps[gaps >= 0])

    def filled(self) -> Filled:
        gaps = []
        for i, span in enumerate(self.spans):
            left, right = self.healed(i)
            tokens = self.tokens[span]
            text = self.alphabet.decode(tokens[tokens >= 0])  # a deadline may leave a gap without a draft
            gaps.append(with_line_ends(text[len(left) : len(text) - len(right)], self.request.line_end))
        free = sum(span.stop - span.start for span in self.spans)
        return Filled(
            texts=self.request.texts,
            gaps=gaps,
            lengths=self.lengths,
            tried=[result.scores for result in self.results],
            steps=[step.step + 1 for step in self.steps],
            passes=sum(step.step + 1 for step in self.steps) + sum(result.passes for result in self.results),
            entropy=float(sum(step.entropy.sum() for step in self.steps)) / free,
            finish_reason=self.steps[-1].reason,
            notes=self.notes,
        )


def canvas_width(model: DiffusionModel, sampling: Sampling) -> int:
    """Tokens of a canvas: as asked, or the model's. Known text needs the room, so "auto" is the whole of it."""
    length = check_width(model.facts, sampling.canvas_length)
    return length if isinstance(length, int) else model.facts.canvas_length


def infill(
    model: DiffusionModel,
    tokenizer: Tokenizer,
    requests: Sequence[Infill],
    *,
    size: int = 8,
    show: Show = lambda step: None,
) -> list[Filled]:
    """Fill the gaps of all `requests`, `size` canvases in a pass. Each result is the one that its request gets alone.
    `show` is called with every step, those of the search included.

    Where no length is given, gap after gap is searched, each behind what the one before became; then all gaps of a text
    are denoised together.
    """
    alphabet = Alphabet(model, tokenizer)
    for request in requests:
        check_fill(model, tokenizer, request)
    results: list[Filled] = []
    for first in range(0, len(requests), size):  # a search keeps a dozen caches of each of them
        together = fill(model, alphabet, requests[first : first + size], size)
        results += complete(model, together, size, show)
    return results


def fill(
    model: DiffusionModel,
    alphabet: Alphabet,
    requests: Sequence[Infill],
    size: int,
    *,
    prompt: Cache | None = None,
    show: Show = lambda step: None,
) -> Task[list[Filled]]:
    """Search the gaps whose length is not given, one of each text at a time, then fill all gaps. `prompt`: the cache of
    the first request's prompt, if that is encoded already; `show`: called with the steps of the gaps, the search's
    not among them."""
    fillings = [Filling(model, alphabet, request) for request in requests]
    if prompt is not None:
        fillings[0].caches[b""] = prompt
    while unknown := [filling for filling in fillings if not filling.complete]:
        for filling in unknown:
            yield from filling.read()
        gaps = [filling.next_gap() for filling in unknown]
        for filling, result in zip(unknown, (yield from search(model, gaps, size)), strict=True):
            filling.add_result(result)
    writings = {filling.writing(i): filling for i, filling in enumerate(fillings)}
    while running := [writing for writing in writings if not writing.done]:
        steps = yield running
        for writing, step in steps.items():
            writings[writing].add(step)
            show(writings[writing].within_gaps(step))
    return [filling.filled() for filling in fillings]
