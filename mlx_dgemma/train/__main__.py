"""`python -m mlx_dgemma.train`: a folder of examples in, an adapter out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import adapter
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.config import ModelConfig, parse_config
from ..checkpoint.folder import read_configs
from ..checkpoint.hub import find
from ..errors import Mistake
from ..load import choose_backend, learner, load
from ..seam.learning import Learner
from ..seam.model import DiffusionModel
from ..terminal.command import note, run, waiting
from ..tokens.tokenizer import Tokenizer
from ..writing.sampling import Sampling
from .data import Encoder, Examples
from .memory import check, in_last_layers
from .options import NAME, Options, parse
from .report import PICTURE, Report
from .run import Data, Run
from .validate import Skill, losses, skill

LARGE = 1_000_000_000  # parameters from which on activations are made again, and not kept


class Tuning:
    """A run with its model."""

    def __init__(self, options: Options, run: Run, model: DiffusionModel, learner: Learner, sampling: Sampling):
        self.options, self.run, self.model, self.learner, self.sampling = options, run, model, learner, sampling
        self.report = Report(options, run.folder, run.done, model.peak_memory, learner.lead)

    def validate(self, step: int) -> None:
        data, options = self.run.data, self.options
        found = None
        if data.valid:
            size = min(options.batch_size, len(data.valid))
            recipe = options.recipe
            found = losses(self.learner, self.run.encoder, data.valid, recipe, size, options.val_batches)
        sets = {"new": data.valid, "known": data.known}
        skills = {name: self.skill(part) for name, part in sets.items() if part and options.eval_prompts}
        self.report.validation(step, found, skills)

    def skill(self, examples: Examples) -> Skill:
        chosen = examples.examples[: self.options.eval_prompts]
        return skill(self.model, self.run.encoder, chosen, self.sampling)

    def learn(self, interrupted: list[int]) -> None:
        if not self.run.done:
            self.validate(0)
        saved = self.run.done
        for step in self.run.steps(self.learner):
            self.report.progress(step)
            last = step.step == self.options.iters or interrupted
            if step.step % self.options.steps_per_eval == 0 or (last and not interrupted):
                self.validate(step.step)
            if step.step % self.options.save_every == 0 or last:
                self.run.save(self.learner, saved := step.step)
            if interrupted:
                self.report.say(f"interrupted: saved at step {saved}; --resume goes on")
                raise KeyboardInterrupt

    def finish(self) -> None:
        if not self.report.lead:
            return
        lines = self.report.summary()
        if self.options.test:
            test, size = self.run.data.test, min(self.options.batch_size, len(self.run.data.test))
            found = losses(self.learner, self.run.encoder, test, self.options.recipe, size, self.options.test_batches)
            lines.append(f"test: loss {found[0]:.3f} (canvas {found[1]:.3f}, text {found[2]:.3f}); {self.skill(test)}")
        self.report.picture()
        note(
            *lines,
            f"{self.run.folder}: adapter, log and {PICTURE}; python -m mlx_dgemma.generate --adapter-path reads it",
        )


@contextmanager
def after_this_step() -> Iterator[list[int]]:
    """Ctrl-C fills the list, so that a step is finished; a second one ends at once."""
    asked: list[int] = []

    def interrupt(number: int, _) -> None:
        signal.signal(signal.SIGINT, before)
        asked.append(number)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def start_of(options: Options, config: ModelConfig) -> adapter.Start | None:
    """What makes the adapter that is learnt; None: all weights are."""
    if options.fine_tune_type == "full":
        return None
    if options.resume_adapter_file:
        path = Path(options.resume_adapter_file)
        stored = adapter.Adapter(adapter.read_floats(path), options.scale, True, str(path))
        return lambda shapes: stored

    def start(shapes: dict[str, adapter.Shape]) -> adapter.Adapter:
        chosen = in_last_layers(shapes, len(config.layers), options.num_layers)
        chosen = {path: shapes[path] for path in chosen}
        return adapter.begin(chosen, options.keys, options.rank, options.scale, options.seed)

    return start


def open_run(options: Options, folder: Path, config: ModelConfig) -> Run:
    """Everything that can be wrong with data and folders is known before a weight is read."""
    encoder = Encoder(Tokenizer(folder, config.max_position_embeddings), config, options.max_seq_length)
    run = Run(options, encoder, Data.read(options, encoder))
    run.check_folder()
    note(*run.data.reports)
    if not run.data.replay:
        note(
            f"{NAME}: without --replay FILE:SHARE what the model could do before is likely to be lost, and nobody will "
            "know: give it examples of that"
        )
    return run


def train(options: Options) -> None:
    folder = find(options.model)
    stored, generation = read_configs(folder)
    config = parse_config(stored, generation)
    if options.fine_tune_type == "full" and (config.quantization or any((config.quantized_paths or {}).values())):
        raise Mistake("all weights of a quantized checkpoint cannot be tuned: --fine-tune-type lora, or a plain folder")
    run = open_run(options, folder, config)
    weights = Checkpoint(folder, config).nbytes()
    checkpoint = options.grad_checkpoint
    if checkpoint is None:
        checkpoint = weights > LARGE
    longest = max(example.length for example in run.data.train.examples)
    check(config, weights, options, longest, checkpoint)
    backend = options.backend or choose_backend()
    with waiting("loading"):
        model, _, sampling = load(folder, backend, options.dtype, divided=False)
        learning = learner(model, backend, start_of(options, config), options.adam, checkpoint=checkpoint)
    run.resume(learning)
    tuning = Tuning(options, run, model, learning, sampling)
    note(f"{NAME}: {learning.count:,} numbers are learnt on {backend}, step {run.done} of {options.iters}")
    with tuning.report.bar, after_this_step() as interrupted:
        if options.train:
            tuning.learn(interrupted)
    tuning.finish()


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: train(parse(arguments)), divided=False)


if __name__ == "__main__":
    sys.exit(main())
