"""A training run: what it learns from, its steps, and where it is saved.

Batches and noise are functions of the seed and the step. So a run that is resumed needs no more than weights, the
optimizer's state and the number of the step, and comes to the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..checkpoint import adapter, adapter_folder
from ..checkpoint.description import ADAPTER
from ..checkpoint.folder import read_header, read_json
from ..errors import Mistake
from ..seam.learning import Learner
from .data import Encoder, Examples, batches, read_lines, read_split
from .loss import Example, loss_of, noised
from .options import Options
from .schedule import schedule

STATE = "state.safetensors"
FREE = {"adapter_path", "resume", "report_to", "project_name", "steps_per_report", "steps_per_eval", "val_batches"}
FREE |= {"eval_prompts", "save_every", "test", "test_batches", "backend", "train", "grad_checkpoint"}


@dataclass(frozen=True)
class Data:
    train: Examples
    valid: Examples | None
    test: Examples | None
    replay: Examples | None
    known: Examples | None  # kept aside of what is replayed: is it forgotten?

    @classmethod
    def read(cls, options: Options, encoder: Encoder) -> Data:
        """Mistake names what is missing, or the line that is wrong."""
        if options.data is None:
            raise Mistake("--data is missing: give a folder with train.jsonl, or a data set of the hub")
        splits = {}
        for name in ("train", "valid", "test"):
            records = read_split(options.data, name)
            splits[name] = None if records is None else encoder.examples(f"{name} of {options.data}", records)
        if not splits["train"]:
            left = splits["train"].report if splits["train"] is not None else "it has no train.jsonl"
            raise Mistake(f"--data {options.data}: nothing to learn from: {left}")
        if options.test and not splits["test"]:
            raise Mistake(f"--test: {options.data} has no test.jsonl, or no example in it")
        replay = known = None
        if options.share_of_replay:
            file = Path(options.share_of_replay[0])
            replay, known = encoder.examples(str(file), read_lines(file)).split(options.eval_prompts)
        return cls(replay=replay, known=known or None, **splits)

    @property
    def fingerprint(self) -> str:
        return " ".join(part.fingerprint for part in (self.train, self.replay) if part)

    @property
    def reports(self) -> list[str]:
        return [part.report for part in (self.train, self.valid, self.test, self.replay) if part]


@dataclass(frozen=True)
class Progress:
    """A step that is done."""

    step: int  # from 1
    losses: list[float]  # all, of canvases, of texts
    norm: float
    rate: float
    tokens: int  # of texts and canvases, learnt from


class Run:
    def __init__(self, options: Options, encoder: Encoder, data: Data):
        self.options, self.encoder, self.data = options, encoder, data
        self.folder = Path(options.adapter_path).expanduser()
        self.rate = schedule(options.lr_schedule, options.learning_rate, options.iters)
        share = options.share_of_replay[1] if options.share_of_replay else 0.0
        self.replayed = round(share * options.batch_size)
        self.done = 0
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Mistake where a file has fewer examples than a batch takes of it."""
        for part, size in (
            (self.data.train, self.options.batch_size - self.replayed),
            (self.data.replay, self.replayed),
        ):
            if part is not None:
                next(batches(part, size, 0))

    def config(self) -> dict[str, Any]:
        """adapter_config.json: mlx-lm reads fine_tune_type, num_layers and lora_parameters of it."""
        options = self.options
        lora = {"keys": options.keys, "rank": options.rank, "scale": options.scale, "dropout": 0.0}
        return options.as_dict() | {"lora_parameters": lora}

    def check_folder(self) -> None:
        """Mistake where --adapter-path holds something else than this run, or there is nothing to go on with."""
        path, options = self.folder / STATE, self.options
        if not options.resume:
            with self._written():
                self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                advice = "give --resume to go on with it, or another folder" if path.exists() else "give another folder"
                raise Mistake(f"--adapter-path {self.folder} is not empty: {advice}")
            return
        try:
            read_header(path)  # a pipe would be waited for
            with safe_open(path, "np") as file:
                about = file.metadata()
            stored = read_json(self.folder / adapter.CONFIG, ADAPTER)
            self.done, learnt_from = int(about["step"]), about["data"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise Mistake(f"--resume: {self.folder} holds no run to go on with: {error}") from None
        if learnt_from != self.data.fingerprint:
            raise Mistake(f"--resume: the run in {self.folder} learnt from other data than {options.data} now holds")
        other = [name for name, value in json.loads(json.dumps(self.config())).items() if stored.get(name) != value]
        if other := [name for name in other if name not in FREE]:
            raise Mistake(f"--resume: {other[0]} was {stored.get(other[0])!r} in the run that {self.folder} holds")

    def resume(self, learner: Learner) -> None:
        if not self.done:
            return
        try:
            learner.resume(self.folder / STATE)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise Mistake(f"--resume: {self.folder / STATE} is damaged, or another program's: {error}") from None

    def save(self, learner: Learner, step: int) -> None:
        if not learner.lead:
            return
        numbered, part = self.folder / f"{step:07}_{adapter.FILE}", self.folder / f"{adapter.FILE}.part"
        with self._written():
            self.folder.mkdir(parents=True, exist_ok=True)
            adapter_folder.write_config(self.folder, self.config())
            learner.export(numbered)
            shutil.copyfile(numbered, part)
            part.replace(self.folder / adapter.FILE)
            about = {"step": str(step), "data": self.data.fingerprint}
            learner.save(self.folder / STATE, about)  # last: it says all is there

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            what = getattr(error, "strerror", None) or error
            raise Mistake(f"--adapter-path {self.folder} cannot be written: {what}") from None

    def steps(self, learner: Learner) -> Iterator[Progress]:
        """Learn, from where the run is. Mistake where a loss is not finite, which names the example."""
        options, facts, recipe = self.options, self.encoder.facts, self.options.recipe
        micro, every = 0, options.grad_accumulation_steps
        for step, chosen in enumerate(self._batches()):
            if step == options.iters:
                return
            if step < self.done:
                micro += every
                continue
            drawn = []
            for examples in chosen:
                rng = np.random.default_rng([options.seed, 1, micro])
                drawn.append(noised([example for example, _ in examples], facts, self.encoder.fill, recipe, rng))
                micro += 1
            rate = self.rate(step)
            losses, norm = learner.step([loss_of(one, facts, recipe) for one in drawn], rate)
            if not np.isfinite([*losses, norm]).all():
                self._explain(learner, step + 1, [pair for examples in chosen for pair in examples])
            tokens = sum(example.length + facts.canvas_length for examples in chosen for example, _ in examples)
            self.done = step + 1
            yield Progress(step + 1, losses, norm, rate, tokens)

    def _batches(self) -> Iterator[list[list[tuple[Example, str]]]]:
        """The examples of each step, batch by batch, and where they stand. In a batch the short ones come first: a
        backend that pads does so among neighbours."""
        parts, options = [(self.data.train, self.options.batch_size - self.replayed)], self.options
        parts += [(self.data.replay, self.replayed)] if self.replayed else []
        streams = [(part, batches(part, size, options.seed)) for part, size in parts]
        while True:
            chosen = [
                [(part.examples[i], part.where[i]) for part, stream in streams for i in next(stream)]
                for _ in range(options.grad_accumulation_steps)
            ]
            yield [sorted(batch, key=lambda pair: pair[0].length) for batch in chosen]

    def _explain(self, learner: Learner, step: int, examples: list[tuple[Example, str]]) -> None:
        facts, recipe = self.encoder.facts, self.options.recipe
        for example, where in examples:
            drawn = noised([example], facts, self.encoder.fill, recipe, np.random.default_rng(0))
            if not np.isfinite(learner.losses(loss_of(drawn, facts, recipe))).all():
                raise Mistake(f"the loss is not finite at step {step}, first of {where}: lower --learning-rate")
        what = "a gradient is not finite, or a loss is with its noise"
        raise Mistake(
            f"{what}, at step {step}, one of {', '.join(where for _, where in examples)}: lower --learning-rate"
        )
