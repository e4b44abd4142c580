"""How often the embedded model fills a gap in a right answer: with the gap's length given, and searched.

    python tests/measure/infill_rates.py --prompts 200 --seeds 3
    python tests/measure/infill_rates.py --prompts 200 --seeds 3 --edit

Prompts are those of solve_rates.py. Of each right answer a piece of random place, up to half as long as it, is taken
out; the share of pieces that come back exactly stands beside that of whole answers that are right without any help.
With --edit one line of a right answer is replaced by that line of another answer, and edited at several strengths; the
share is that of answers which are whole again. Prints one JSON object a task: shares, and mean passes over a canvas.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence

from mlx_dgemma.fill.edit import change, cut
from mlx_dgemma.fill.infill import Filled, Infill, infill
from mlx_dgemma.load import load
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tiny.tasks import TASKS
from mlx_dgemma.tokens.messages import prompt_tokens
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.diffuse import begin

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
Case = tuple[str, str, str, str]  # the prompt; before, in and behind the gap


def cases(name: str, prompts: int, seed: int) -> list[Case]:
    r, cut, made = random.Random(f"999 {name}"), random.Random(f"gap {seed} {name}"), []
    for _ in range(prompts):
        prompt, right = TASKS[name](r)
        length = cut.randint(1, len(right) // 2)
        first = cut.randint(0, len(right) - length)
        made.append((prompt, right[:first], right[first : first + length], right[first + length :]))
    return made


def whole(loaded, asked: Sequence[Case], seed: int, size: int) -> list[str]:
    model, tokenizer, sampling = loaded
    answers = [Answer(model.facts, tokenizer, model.facts.canvas_length) for _ in asked]
    writings = (
        begin(
            model,
            Text(prompt_tokens(tokenizer, prompt)),
            Ask(sampling=sampling, max_tokens=64, seed=seed + i),
            request=i,
        )
        for i, (prompt, *_) in enumerate(asked)
    )
    for step in run(model, writings, size):
        answers[step.request].add(step)
    return [answer.text for answer in answers]


def filled(loaded, asked: Sequence[Case], seed: int, size: int, *, given: bool) -> list[Filled]:
    model, tokenizer, sampling = loaded
    requests = [
        Infill(
            prompt=prompt_tokens(tokenizer, prompt),
            texts=[before, behind],
            lengths=[len(tokenizer.encode(gap))] if given else None,
            ask=Ask(sampling=sampling, seed=seed + i),
        )
        for i, (prompt, before, gap, behind) in enumerate(asked)
    ]
    return infill(model, tokenizer, requests, size=size)


def share(right: Iterable[bool]) -> float:
    right = list(right)
    return round(sum(right) / len(right), 4)


def rates(loaded, name: str, prompts: int, seed: int, size: int = 32) -> dict[str, float]:
    asked = cases(name, prompts, seed)
    answers, given, searched = (
        whole(loaded, asked, seed, size),
        filled(loaded, asked, seed, size, given=True),
        filled(loaded, asked, seed, size, given=False),
    )
    for (_, before, _, behind), *pair in zip(asked, given, searched, strict=True):
        for text in (result.text for result in pair):
            assert text.encode().startswith(before.encode()) and text.encode().endswith(behind.encode())
    return {
        "whole": share(
            text == before + gap + behind for text, (_, before, gap, behind) in zip(answers, asked, strict=True)
        ),
        "given": share(f.gaps == [gap] for f, (_, _, gap, _) in zip(given, asked, strict=True)),
        "searched": share(f.gaps == [gap] for f, (_, _, gap, _) in zip(searched, asked, strict=True)),
        "given_passes": sum(f.passes for f in given) / prompts,
        "searched_passes": sum(f.passes for f in searched) / prompts,
    }


def edit_rates(loaded, name: str, prompts: int, seed: int, size: int = 32) -> dict[str, float]:
    model, tokenizer, sampling = loaded
    r, cut_at, shares = random.Random(f"999 {name}"), random.Random(f"edit {seed} {name}"), {}
    asked = []
    for _ in range(prompts):
        (prompt, right), (_, other) = TASKS[name](r), TASKS[name](r)
        lines, others = right.splitlines(), other.splitlines()
        place = cut_at.randrange(len(lines))
        wrong = [*lines[:place], others[place], *lines[place + 1 :]]
        end = "\n" * right.endswith("\n")
        asked.append((prompt, right, cut("\n".join(wrong) + end, place + 1, place + 1)))
    for strength in STRENGTHS:
        edits = [
            change(
                tokenizer,
                lines,
                prompt=prompt_tokens(tokenizer, prompt),
                ask=Ask(sampling=sampling, seed=seed + i),
                strength=strength,
            )
            for i, (prompt, _, lines) in enumerate(asked)
        ]
        done = infill(model, tokenizer, edits, size=size)
        now = [lines.with_new(f.gaps[0]) for f, (_, _, lines) in zip(done, asked, strict=True)]
        shares[f"{strength}"] = share(new == right for new, (_, right, _) in zip(now, asked, strict=True))
        shares[f"{strength}_passes"] = sum(f.passes for f in done) / prompts
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--edit", action="store_true")
    options = parser.parse_args()
    loaded = load()
    for name in options.tasks:
        runs = [
            (edit_rates if options.edit else rates)(loaded, name, options.prompts, 1000 * seed)
            for seed in range(options.seeds)
        ]
        print(
            json.dumps({name: {key: round(sum(run[key] for run in runs) / len(runs), 4) for key in runs[0]}}),
            flush=True,
        )


if __name__ == "__main__":
    main()
