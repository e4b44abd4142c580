"""One measurement: ceilings, passes, and answers in every mode, into a report that grows as it goes."""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ..checkpoint.config import ModelConfig, parse_config
from ..errors import Mistake, NotFound
from ..load import check_memory, choose_backend, is_hub_id
from ..terminal.command import progress
from . import machine
from .count import Count, parameters, precision
from .passes import Passes, check_context, measure_passes, tools
from .predict import published, shape
from .prompts import Prompt, from_file, from_kinds, from_tasks
from .report import KEY, VERSION
from .runs import Run, Writer, diffuse_prompt, summary, timed_run, write_prompt

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Says on stderr what is being measured, and then how long it took."""
    print(f"{name} …", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def backend_module(backend: str, name: str) -> ModuleType:
    """One of a backend's modules. Mistake if its framework is not installed."""
    try:
        return importlib.import_module(f"..{backend}_backend.{name}", __package__)
    except ModuleNotFoundError as error:
        raise Mistake(
            f"--backend {backend} needs {error.name}, which is not installed: see README, Installing"
        ) from error


def is_embedded(config: ModelConfig) -> bool:
    """The embedded model's shape, however its weights are stored: that one knows the tasks."""
    own = published("tiny")
    return parameters(config) == parameters(own) and config.canvas_length == own.canvas_length


class Measurement:
    """`report` holds what was measured so far, whenever it ends."""

    def __init__(self, options: argparse.Namespace, command: Sequence[str]):
        self.options = options
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "out", "plot")}
        self.report: dict[str, Any] = {
            KEY: VERSION,
            "interrupted": False,
            "command": list(command),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": machine.versions(),
            "git": machine.revision(),
            "state": {"before": machine.state(), "after": None},
            "settings": settings,
            "passes": [],
            "modes": {},
        }
        self.report["missing"] = machine.missing(self.report["state"]["before"])

    def run(self) -> None:
        self.load()
        self.check()
        try:
            self.cold()
            self.ceilings()
            for context in self.options.context:
                for rows in self.options.batch:
                    self.passes(context, rows)
            self.answers()
            self.baseline()
        except KeyboardInterrupt:
            self.report["interrupted"] = True
            print("interrupted: what was measured is kept", file=sys.stderr)
        self.report["state"]["after"] = machine.state()

    def load(self) -> None:
        with phase("loading"):
            start = time.perf_counter()
            self.model, self.tokenizer, self.sampling = (self.dummy if self.options.dummy else self.loaded)()
            self.tools = tools(self.model)
            self.tools.wait()
        self.config, stored = self.model.config, self.tools.weight_bytes(self.model)
        weights, dtype = parameters(self.config), self.options.dtype or self.options.precision or self.config.dtype
        bits = {name: 8 * stored[name] / weights[name] for name in weights}
        named = self.options.precision or f"{dtype}, as it is stored"
        dtype = dtype if dtype in ITEM else "bfloat16"  # of activations, when weights are narrower
        self.report["settings"] |= {"precision": named, "dtype": dtype, "sampling": asdict(self.sampling)}
        self.report |= {
            "load_seconds": time.perf_counter() - start, "machine": machine.describe(self.tools.device()),
            "bits": bits, "weight_bytes": stored, "kv_bytes": ITEM[dtype],
        }  # fmt: skip
        self.count = Count(self.config, bits, ITEM[dtype])

    def loaded(self) -> tuple:
        from ..checkpoint.folder import read_configs
        from ..load import find, load

        folder = find(self.options.model)
        self.report["config"] = read_configs(folder)[0]
        chosen = {"backend": self.options.backend} if self.options.backend else {}
        model, tokenizer, sampling = load(folder, dtype=self.options.dtype, **chosen)
        steps = self.options.max_denoising_steps
        return model, tokenizer, replace(sampling, max_denoising_steps=steps) if steps else sampling

    def check(self) -> None:
        """What was asked for, before any of it is measured."""
        check_context(self.config, max(self.options.context))
        self.asked = [] if self.options.dummy else self.prompts()
        path = self.options.ar_model
        if path is None:
            self.report["missing"]["AR model"] = "no --ar-model was given"
        elif Path(path).is_dir() or is_hub_id(path):
            self.other = backend_module(self.report["machine"]["device"]["backend"], "baseline")
        else:
            raise NotFound(f"--ar-model {path}: no such folder, and no hub id either")

    def dummy(self) -> tuple:
        from ..writing.sampling import parse_sampling

        self.report["config"] = shape(self.options.dummy)
        config, backend = parse_config(self.report["config"]), self.options.backend or choose_backend()
        if backend == "mlx":  # torch asks its device
            needed = Count(config, precision(self.options.precision)).resident
            check_memory(int(needed), f"random weights of {self.options.dummy} in {self.options.precision}")
        make = getattr(backend_module(backend, "dummy"), f"dummy_{backend}")
        self.report["missing"]["answers"] = "random weights have none; steps a block are assumed, not measured"
        return make(config, self.options.precision, self.options.seed, self.options.peaked), None, parse_sampling(None)

    def ceilings(self) -> None:
        with phase("ceilings of the device"):
            self.report["ceilings"] = self.tools.ceilings(self.report["settings"]["dtype"])

    def passes(self, context: int, rows: int) -> None:
        passes = Passes(self.model, self.sampling, context, rows, self.options.repeat, self.options.seed)
        with phase(f"passes of {rows} x {context} tokens"):
            found = measure_passes(passes, self.count, self.report["ceilings"], self.options.steps_per_block)
        self.report["passes"].append(found)

    def prompts(self) -> list[Prompt]:
        longest = self.options.max_tokens or self.config.canvas_length
        if self.options.prompts:
            return from_file(Path(self.options.prompts), self.model, self.tokenizer, longest)
        if is_embedded(self.config):
            return from_tasks(self.tokenizer, longest, self.options.each)
        self.report["missing"]["solved"] = "right answers are known for the embedded model's tasks alone"
        return from_kinds(self.tokenizer, longest)

    def writers(self) -> dict[str, Writer]:
        return {
            "diffusion": diffuse_prompt(self.model, self.tokenizer, self.sampling),
            "autoregression": write_prompt(self.model, self.tokenizer, self.sampling),
        }

    def cold(self) -> None:
        """The first answers of the process, diffusion's before the other's."""
        if not self.asked:
            return
        settings = {"diffusion": asdict(self.sampling), "autoregression": {"temp": 0}}
        with phase("cold answers"):
            for name, write in self.writers().items():
                self.begin(name, write, settings[name])

    def begin(self, name: str, write: Writer, settings: dict[str, Any]) -> None:
        found = {"settings": settings, "cold": None, "runs": [], "summary": None, "peak_memory": None}
        self.report["modes"][name] = found
        found["cold"] = write(self.asked[0], self.options.seed)

    def answers(self) -> None:
        if self.asked:
            for name, write in self.writers().items():
                self.warm(name, write, self.model.peak_memory)

    def warm(self, name: str, write: Writer, peak_memory: Callable[[], int]) -> None:
        """All prompts with every seed. What is there when Ctrl-C comes is summed up."""
        found = self.report["modes"][name]
        runs: list[Run] = found["runs"]
        seeds = range(self.options.seed, self.options.seed + self.options.seeds)
        start = time.perf_counter()
        print(f"{name}: {len(self.asked)} prompts x {len(seeds)} seeds", file=sys.stderr, flush=True)
        try:
            with progress(len(seeds) * len(self.asked)) as bar:
                for seed in seeds:
                    for prompt in self.asked:
                        runs.append(write(prompt, seed))
                        bar()
        finally:
            if runs:
                found["summary"] = summary(runs, self.sampling.max_denoising_steps)
            found["peak_memory"] = peak_memory()
            told = f"  {sum(run['tokens'] for run in runs)} tokens, {time.perf_counter() - start:.1f} s"
            print(told, file=sys.stderr, flush=True)

    def baseline(self) -> None:
        """Another model, left to right, by the library that is the field's own for it."""
        if not self.options.ar_model:
            return
        del self.model, self.tokenizer  # both may not fit
        gc.collect()
        with phase(f"loading {self.options.ar_model}"):
            other = self.other.Baseline(self.options.ar_model)

        def write(prompt: Prompt, seed: int) -> Run:
            tokens = other.prompt_tokens(prompt.messages, prompt.thinking)
            asked = replace(prompt, tokens=tokens)
            return timed_run(asked, seed, other.write(tokens, prompt.max_tokens, seed), other.text)

        self.begin("baseline", write, other.settings)
        self.report["modes"]["baseline"] |= {"bits": other.bits, "library": other.library}
        self.warm("baseline", write, other.peak_memory)
