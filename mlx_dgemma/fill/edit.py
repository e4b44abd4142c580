"""Change lines of a file in place: all else is held, the lines are partly noised and denoised from there.

There is no time input, so a canvas may start anywhere between text and noise: at a share `strength` of noise, and at
the temperature that the schedule has there.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import Mistake
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import Ask
from ..writing.sampling import Sampling
from .infill import Infill
from .line_ends import BOM, line_end, normalized, with_line_ends


@dataclass(frozen=True, kw_only=True)
class Edit(Infill):
    """An infill of one gap, of which it is known what stood there."""

    old: Sequence[int]  # tokens
    strength: float = 0.75  # share of them that is noise at first

    def initial(self, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns the old tokens, kept from both ends where the gap is shorter, apart in the middle where it is longer.
        Those that are not noised are the hint of the first pass, too."""
        kept = min(length, len(self.old))
        tokens, old = np.full(length, -1, np.int32), np.asarray(self.old, np.int32)
        tokens[: kept - kept // 2] = old[: kept - kept // 2]
        tokens[length - kept // 2 :] = old[len(old) - kept // 2 :]
        noised = rng.random(length) < self.strength
        start = np.where(noised, -1, tokens).astype(np.int32)
        return start, start

    def schedule(self) -> Sampling:
        """Returns the rest of the schedule, where a share `strength` of noise is left."""
        sampling = self.ask.sampling
        left = max(1, round(self.strength * sampling.max_denoising_steps))
        t_max = sampling.t_min + (sampling.t_max - sampling.t_min) * left / sampling.max_denoising_steps
        return replace(sampling, max_denoising_steps=left, t_max=t_max)


@dataclass(frozen=True)
class Lines:
    """Lines of a file, and what is around them; a line's end belongs to what is behind it."""

    before: str
    old: str
    behind: str

    def with_new(self, new: str) -> str:
        """Returns the whole file. The model writes "\\n"; lines end as most of the file do."""
        return self.before + with_line_ends(new, line_end(self.before + self.old + self.behind)) + self.behind


def cut(text: str, first: int, last: int, name: str = "the text") -> Lines:
    """Takes out lines `first` to `last`, counted from 1, both included."""
    mark, lines = BOM * text.startswith(BOM), split_lines(text.removeprefix(BOM), line_end(text))
    if not 1 <= first <= last <= len(lines):
        holds = f"which has {len(lines)} lines"
        raise Mistake(f"lines {first}:{last} are not in {name}, {holds}; need 1 <= FIRST <= LAST <= that")
    ends = r"\r" if line_end(text) == "\r" else r"\r?\n"
    old, end = re.fullmatch(rf"(.*?)((?:{ends})?)", "".join(lines[first - 1 : last]), re.DOTALL).groups()
    return Lines(mark + "".join(lines[: first - 1]), old, end + "".join(lines[last:]))


def split_lines(text: str, end: str = "\n") -> list[str]:
    r"""Returns lines with their ends: "\n" alone ends a line, as everywhere outside Python, or in old files "\r"."""
    return re.findall(r"[^\r]*\r|[^\r]+" if end == "\r" else r"[^\n]*\n|[^\n]+", text)


def change(
    tokenizer: Tokenizer,
    lines: Lines,
    *,
    prompt: Sequence[int],
    ask: Ask,
    length: int | None = None,
    strength: float = 0.75,
) -> Edit:
    """Makes the request for `infill` whose gap is what `lines.with_new` takes. `prompt`: tokens, up to where the
    model's turn begins; `length`: tokens that the lines become, None: searched, the present length among those tried;
    `strength`: share of the old lines that is noise at first."""
    tokens, texts = tokenizer.encode(normalized(lines.old)), [lines.before, lines.behind]
    return Edit(
        prompt=prompt,
        texts=texts,
        lengths=None if length is None else [length],
        ask=ask,
        first_lengths=[len(tokens)] if tokens else [],
        old=tokens,
        strength=strength,
    )


def unified_diff(old: str, new: str, name: str) -> str:
    """Returns a diff as `diff -u` writes it, its line about a missing newline too; empty where nothing changed."""
    names = [_quoted(path) for path in ((name, name) if name.startswith("/") else (f"a/{name}", f"b/{name}"))]
    lines = difflib.unified_diff(split_lines(old), split_lines(new), *names)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _quoted(name: str) -> str:
    """Returns a file's name as `patch` reads it back: a tab ends one with blanks, one of other characters, or that a
    blank ends, is quoted."""
    if name.endswith(" ") or any(character < " " or character in '"\\\x7f' for character in name):
        escaped = "".join(f"\\{ord(c):03o}" if c < " " or c in '"\\\x7f' else c for c in name)
        return f'"{escaped}"'
    return f"{name}\t" if " " in name else name
