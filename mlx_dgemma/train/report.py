"""How a run is going: lines and a bar on stderr, log.jsonl, a tracker, and a picture at the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ..checkpoint.folder import is_file
from ..checkpoint.memory import gigabytes
from ..errors import Mistake
from ..terminal.command import note, read
from ..terminal.live import Bar
from .options import Options
from .run import Progress
from .validate import Skill

LOG, PICTURE = "log.jsonl", "training.svg"
Track = Callable[[int, dict[str, float]], None]


class Report:
    def __init__(self, options: Options, folder: Path, done: int, peak: Callable[[], int], lead: bool):
        """`lead`: False in a process that neither writes nor speaks."""
        self.options, self.folder, self.peak, self.lead = options, folder, peak, lead
        self.track, self.lines = tracker(options) if lead else _no_track, self._earlier(done)
        self.since, self.trained, self.recent = time.perf_counter(), 0, []
        columns = (BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Bar(*columns, hidden=not (lead and sys.stderr.isatty()))
        self.task = self.bar.add_task("", total=options.iters, completed=done)

    def _earlier(self, done: int) -> list[dict[str, Any]]:
        """The lines of the log up to step `done`, which a resumed run goes on from."""
        file = self.folder / LOG
        lines = read(str(file)).splitlines() if done and is_file(file) else []
        try:
            return [line for line in map(json.loads, lines) if line["step"] <= done]
        except (json.JSONDecodeError, KeyError, TypeError, RecursionError):
            raise Mistake(f"--resume: {file} is damaged: take it away, and the log begins anew") from None

    def _log(self, step: int, numbers: dict[str, Any]) -> None:
        if not self.lead:
            return
        self.lines.append({"step": step, **numbers})
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (self.folder / LOG).write_text(text, encoding="utf-8")
        self.track(step, {name: value for name, value in numbers.items() if isinstance(value, float | int)})

    def say(self, line: str) -> None:
        if not self.lead:
            return
        if self.bar.disable:
            note(line)
        else:
            self.bar.console.print(line, highlight=False, soft_wrap=True)

    def progress(self, step: Progress) -> None:
        self.recent.append(step)
        self.trained += step.tokens
        self.bar.update(self.task, completed=step.step, description=f"loss {step.losses[0]:.3f}")
        if step.step % self.options.steps_per_report and step.step != self.options.iters:
            return
        seconds, count = time.perf_counter() - self.since, len(self.recent)
        loss, canvas, text = (sum(one.losses[i] for one in self.recent) / count for i in range(3))
        speed, left = sum(one.tokens for one in self.recent) / seconds, self.options.iters - step.step
        self.say(
            f"step {step.step}: loss {loss:.3f} (canvas {canvas:.3f}, text {text:.3f}), rate {step.rate:.1e}, "
            f"norm {step.norm:.2f}, {speed:,.0f} tokens a second, {gigabytes(self.peak())}, "
            f"{left * seconds / count / 60:.0f} min left"
        )
        numbers = {"train_loss": loss, "canvas_loss": canvas, "text_loss": text, "learning_rate": step.rate}
        numbers |= {"gradient_norm": step.norm, "tokens_per_second": speed, "iterations_per_second": count / seconds}
        self._log(step.step, numbers | {"trained_tokens": self.trained, "peak_memory": self.peak() / 1e9})
        self.recent, self.since = [], time.perf_counter()

    def validation(self, step: int, losses: list[float] | None, skills: dict[str, Skill]) -> None:
        numbers: dict[str, float] = {}
        if losses:
            numbers |= dict(zip(("val_loss", "val_canvas_loss", "val_text_loss"), losses, strict=True))
            self.say(f"step {step}: validation {losses[0]:.3f} (canvas {losses[1]:.3f}, text {losses[2]:.3f})")
        for name, skill in skills.items():
            self.say(f"step {step}: {name} {skill}")
            numbers |= {f"{name} {kind}": value for kind, value in vars(skill).items()}
        if numbers:
            self._log(step, numbers)
        self.since = time.perf_counter()  # the seconds of a step are without it

    def summary(self) -> list[str]:
        """What the run changed: the first and the last validation."""
        said = []
        for name in ("new", "known"):
            rows = [line for line in self.lines if f"{name} solved" in line]
            if len(rows) < 2:
                continue
            first, last = (
                Skill(*(row[f"{name} {kind}"] for kind in Skill.__annotations__)) for row in (rows[0], rows[-1])
            )
            said.append(f"{name}: before {first}; now {last}")
            if name == "known" and last.solved < first.solved - 0.1:
                said.append("much of what was known is forgotten: give --replay a larger share")
            if last.passes > first.passes and self.options.t_one < 0.5:
                said.append(f"{name}: it takes more passes than before: --t-one 0.5 lowers them")
        return said

    def picture(self) -> None:
        """Draw the log. Without matplotlib there is none."""
        try:
            import matplotlib
        except ModuleNotFoundError:
            self.say("no picture: pip install matplotlib")
            return
        matplotlib.use("agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
        titles = ("loss", "solved", "passes a block")
        drawn = ({"canvas_loss": "canvas", "text_loss": "text"}, {}, {})
        for kind in ("new", "known"):
            drawn[1].update({f"{kind} solved": f"{kind}, denoised", f"{kind} left_to_right": f"{kind}, left to right"})
            drawn[2][f"{kind} passes"] = kind
        for panel, title, names in zip(axes, titles, drawn, strict=True):
            for name, label in names.items():
                points = [(line["step"], line[name]) for line in self.lines if name in line]
                if points:
                    panel.plot(*zip(*points, strict=True), label=label, marker="o" if title != "loss" else None)
            panel.set(title=title, xlabel="step", ylim=(0, None))
            if panel.lines:
                panel.legend(frameon=False)
        figure.savefig(self.folder / PICTURE)
        plt.close(figure)


def _no_track(step: int, numbers: dict[str, float]) -> None:
    """Nobody wants to know."""


def tracker(options: Options) -> Track:
    if options.report_to is None:
        return _no_track
    try:
        if options.report_to == "tensorboard":
            from tensorboardX import SummaryWriter

            writer = SummaryWriter(str(Path(options.adapter_path) / "tensorboard"))
            return lambda step, numbers: [writer.add_scalar(name, value, step) for name, value in numbers.items()]
        if options.report_to == "wandb":
            import wandb as library
        else:
            import trackio as library
    except ModuleNotFoundError as error:
        raise Mistake(f"--report-to {options.report_to} needs {error.name}: pip install {error.name}") from None
    library.init(project=options.project_name, config=options.as_dict())
    return lambda step, numbers: library.log(numbers, step=step)
