"""One measurement: ceilings, passes, and answers in every mode, into a report that grows as it goes."""

import datetime
import gc
import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..checkpoint.config import DTYPES
from ..checkpoint.parameters import parameters
from ..errors import Mistake
from ..load import baseline, instruments
from ..terminal import machine
from ..terminal.command import phase
from ..writing.ask import Ask
from .count import Count
from .passes import Passes, check_context, measure_passes
from .report import KEY, VERSION, Report, write_report
from .runs import KINDS, Prompt, Writer, answer_all, as_prompt, baseline_writer, from_file, from_tasks, summary, writer
from .subject import Subject, is_embedded, make_subject


class Measurement:
    """Measures what `settings` ask for. `report` holds what was measured so far, whenever it ends."""

    def __init__(self, settings: Namespace, command: Sequence[str]):
        before = machine.state()
        self.settings = settings
        self.report: Report = {
            KEY: VERSION, "interrupted": False, "command": list(command),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": machine.versions(), "git": machine.revision(), "state": {"before": before, "after": None},
            "settings": dict(vars(settings)), "passes": [], "modes": {}, "missing": machine.missing(before),
        }  # fmt: skip

    def run(self) -> None:
        with phase("loading"):
            subject = self.load()
        check_context(subject.model.facts, max(self.settings.context))
        prompts = self.prompts(subject)
        library = baseline(subject.backend) if self.settings.ar_model else None
        if library:
            with phase(f"loading {self.settings.ar_model}"):  # before hours are spent: it may be none
                library.Baseline(self.settings.ar_model)
            gc.collect()  # both models may not fit
        else:
            self.report["missing"]["AR model"] = "no --ar-model was given"
        try:
            self.measure(subject, prompts)
            if library:
                del subject  # both models may not fit
                gc.collect()
                with phase(f"loading {self.settings.ar_model}"):
                    other = library.Baseline(self.settings.ar_model)
                write = baseline_writer(other)
                self.answer_cold("baseline", write, prompts[0], other.settings)
                self.report["modes"]["baseline"] |= {"bits": other.bits, "library": other.library}
                self.answer("baseline", write, prompts, other.peak_memory)
        except KeyboardInterrupt:
            self.report["interrupted"] = True
            print("interrupted: what was measured is kept", file=sys.stderr)
        self.report["state"]["after"] = machine.state()
        self.save()

    def save(self) -> None:
        """Writes what was measured so far to `--out`: hours may lie before the part that fails or is killed."""
        if self.settings.out:
            write_report(Path(self.settings.out), self.report)

    def load(self) -> Subject:
        settings, start = self.settings, time.perf_counter()
        subject = make_subject(settings)
        tools, config = instruments(subject.backend), subject.model.config
        tools.wait()
        seconds, stored = time.perf_counter() - start, tools.weight_bytes(subject.model)
        dtype = settings.dtype or ((settings.precision or "bf16") if settings.dummy else config.dtype)
        precision = dtype if settings.dummy else f"{dtype}, as it is stored"
        dtype = dtype if dtype in DTYPES else "bfloat16"  # of activations, when weights are narrower
        self.report["settings"] |= {"precision": precision, "dtype": dtype, "sampling": asdict(subject.sampling)}
        self.report |= {
            "config": subject.stored, "load_seconds": seconds, "machine": machine.describe(tools.device()),
            "bits": {name: 8 * stored[name] / count for name, count in parameters(config).items()},
            "weight_bytes": stored, "kv_bytes": 4 if dtype == "float32" else 2,
        }  # fmt: skip
        return subject

    def prompts(self, subject: Subject) -> list[Prompt]:
        """Reads or makes what is to be answered: nothing by random weights."""
        settings, tokenizer, missing = self.settings, subject.tokenizer, self.report["missing"]
        if tokenizer is None:
            missing["answers"] = "random weights have none; steps a block are assumed, not measured"
            return []
        longest = settings.max_tokens or subject.model.facts.canvas_length
        if settings.prompts:
            return from_file(Path(settings.prompts), subject.model, tokenizer, longest)
        if is_embedded(subject.model.config):
            return from_tasks(tokenizer, longest, settings.each)
        missing["solved"] = "right answers are known for the embedded model's tasks alone"
        return [as_prompt(tokenizer, longest, *kind) for kind in KINDS.items()]

    def measure(self, subject: Subject, prompts: list[Prompt]) -> None:
        """Measures cold answers, passes, and answers by denoising and left to right."""
        asks = {"diffusion": Ask(sampling=subject.sampling), "autoregression": Ask(mode="ar")} if prompts else {}
        writers = {mode: writer(subject.model, subject.tokenizer, ask) for mode, ask in asks.items()}
        for mode, write in writers.items():
            self.answer_cold(mode, write, prompts[0], asdict(asks[mode]))
        self.time_passes(subject)
        for mode, write in writers.items():
            self.answer(mode, write, prompts, subject.model.peak_memory)

    def time_passes(self, subject: Subject) -> None:
        tools, report, settings = instruments(subject.backend), self.report, self.settings
        with phase("ceilings of the device"):
            report["ceilings"] = tools.ceilings(report["settings"]["dtype"])
        ceilings = report["ceilings"]["copy_bytes_per_second"], report["ceilings"]["product_flops_per_second"]
        count = Count(subject.model.config, report["bits"], report["kv_bytes"])
        for context, rows in itertools.product(settings.context, settings.batch):
            passes = Passes(subject.model, tools, subject.sampling, context, rows, settings.repeat, settings.seed)
            name = f"passes of {rows} x {context} tokens"
            try:
                with phase(name):
                    report["passes"].append(measure_passes(passes, count, ceilings, settings.steps_per_block))
            except Mistake as error:  # too little memory for this one
                if not report["passes"]:
                    raise
                report["missing"][name] = str(error)
            self.save()

    def answer_cold(self, mode: str, write: Writer, prompt: Prompt, settings: dict) -> None:
        """Answers for the first time in this process."""
        result = {"settings": settings, "cold": None, "runs": [], "summary": None, "peak_memory": None}
        self.report["modes"][mode] = result
        with phase(f"{mode}, cold"):
            result["cold"] = write(prompt, self.settings.seed)

    def answer(self, mode: str, write: Writer, prompts: list[Prompt], peak_memory: Callable[[], int]) -> None:
        """Answers all prompts with every seed. What is there when Ctrl-C comes is summed up."""
        result, cap = self.report["modes"][mode], self.report["settings"]["sampling"]["max_denoising_steps"]
        runs, seeds = result["runs"], range(self.settings.seed, self.settings.seed + self.settings.seeds)
        try:
            with phase(f"{mode}, {len(prompts)} prompts x {len(seeds)} seeds"):
                answer_all([(write, prompt, seed, runs) for seed in seeds for prompt in prompts])
        finally:
            result |= {"summary": summary(runs, cap) if runs else None, "peak_memory": peak_memory()}
