"""Draw README's picture: what --watch shows while the embedded model answers.

python examples/watch_picture.py examples/watch.svg
"""

import io
import sys

from rich.console import Console

from mlx_dgemma import load, stream_generate
from mlx_dgemma.terminal.watch import Watch
from mlx_dgemma.writing.ask import Ask

PROMPT = "Extract JSON of pet, name, job: Xena, a judge from Rome, is 71 years old. Xena has a snail and likes red."
SHOWN = (0, 1, 3)  # passes, and the last


def main(path: str) -> None:
    model, tokenizer, sampling = load()
    watch = Watch(tokenizer, sampling.max_denoising_steps)
    steps = [piece.step for piece in stream_generate(model, tokenizer, PROMPT, Ask(sampling=sampling))]
    shown = [steps[i] for i in SHOWN if i < len(steps) - 1] + [steps[-1]]
    console = Console(record=True, width=76, file=io.StringIO())
    console.print(f"$ python -m mlx_dgemma.generate --watch --prompt '{PROMPT}'")
    for step in shown:
        console.print(watch.picture(step))
        console.print()
    console.save_svg(path, title="mlx_dgemma")


if __name__ == "__main__":
    main(*sys.argv[1:])
