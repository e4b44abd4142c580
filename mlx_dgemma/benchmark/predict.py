"""Predicts which mode is faster on a machine, from its bandwidth, its FLOP rates and the counted work, or a report.

Both modes are taken at the machine's ceilings, so each number is an upper bound and their ratio an estimate. What was
measured, by others or in a report, stands beside it.
"""

import argparse
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.config import parse_config
from ..checkpoint.memory import gigabytes
from ..errors import Mistake
from ..terminal.command import Parser, at_least
from .count import PRECISIONS, Count, break_even, tokens_per_second
from .report import ms, plain, print_table, read_report
from .subject import published

DEVICES = Path(__file__).with_name("devices.toml")
SHAPE = "26b-a4b"  # of which there are measurements
STEPS = (4, 8, 12, 16, 24, 32, 48)
WORKLOADS = {  # steps a full canvas takes, as others saw them with the published model
    "JSON, short answers": (2, 5),
    "maths, code": (10, 20),
    "prose": (20, 35),
}


@dataclass(frozen=True)
class Device:
    name: str
    bandwidth: float  # bytes a second
    flops: dict[str, float]  # FLOPs a second, by what is multiplied
    memory: float  # bytes
    sources: dict[str, str]
    measured: list[dict[str, Any]]  # both modes as others measured them

    def flops_for(self, precision: str) -> float:
        """Returns the rate of products: fp8 weights with fp8 numbers where the machine can, all others as bf16."""
        return self.flops.get(precision, self.flops["bf16"])


def devices() -> dict[str, Device]:
    """Reads all of them, by the name that --device takes."""
    table = tomllib.loads(DEVICES.read_text(encoding="utf-8"))
    measured = table.pop("measured")
    return {
        key: Device(
            entry["name"],
            entry["bandwidth"]["value"] * 1e9,
            {kind: value * 1e12 for kind, value in entry["flops"].items() if isinstance(value, float)},
            entry["memory"] * 1e9,
            {name: f"{entry[name]['kind']}: {entry[name]['source']}" for name in ("bandwidth", "flops")},
            [pair for pair in measured if pair["device"] == key],
        )
        for key, entry in table.items()
    }


def device(name: str) -> Device:
    """Raises Mistake with the list if it is none of them."""
    known = devices()
    if name not in known:
        raise Mistake(f"--device {name!r} is not known; need one of {', '.join(known)}")
    return known[name]


def prediction(
    count: Count, context: int, bytes_per_second: float, flops_per_second: float, rows: int = 1
) -> dict[str, Any]:
    """Predicts both modes at these ceilings, `rows` sequences behind `context` tokens each: seconds of the passes,
    tokens a second of all sequences, the break-even."""
    step, canvas = count.denoise(context, rows), count.config.canvas_length
    passes = {"step": step, "commit": count.commit(context, rows), "token": count.token(context, rows)}
    seconds = {name: work.seconds(bytes_per_second, flops_per_second) for name, work in passes.items()}
    by_bytes = step.total_bytes / bytes_per_second > step.total_flops / flops_per_second
    return {
        "context": context,
        "rows": rows,
        "seconds": seconds,
        "bound_by": "bytes" if by_bytes else "FLOPs",
        "autoregression": rows / seconds["token"],
        "diffusion": {n: tokens_per_second(canvas, n, seconds["step"], seconds["commit"], rows) for n in STEPS},
        "break_even": break_even(canvas, **seconds),
    }


def advice(steps: float) -> dict[str, str]:
    """Names the faster mode for each workload, where diffusion wins below `steps` a block."""
    return {
        name: "diffusion" if most < steps else "autoregression" if least > steps else "either"
        for name, (least, most) in WORKLOADS.items()
    }


def predict_device(options: argparse.Namespace) -> dict[str, Any]:
    machine, config = device(options.device), published(options.shape)
    count = Count(config, PRECISIONS[options.precision])
    measured = []
    for pair in machine.measured if options.shape == SHAPE else ():
        if pair["precision"] == options.precision:
            step, token = pair["step"], 1 / pair["tokens_per_second"]
            even = break_even(config.canvas_length, step, 0.0, token)  # nobody tells what a commit takes
            measured.append({"step": step, "token": token, **even, "source": pair["source"]})
    predicted = prediction(count, options.context, machine.bandwidth, machine.flops_for(options.precision))
    needed = count.resident + count.token(options.context).bytes["attention"]
    about = {"device": options.device, "name": machine.name, "sources": machine.sources, "precision": options.precision}
    return about | {"memory": machine.memory, "needed_memory": needed, "measured": measured} | predicted


def predict_report(path: Path) -> dict[str, Any]:
    """Predicts from the ceilings that a report measured, beside what it measured of the passes."""
    report = read_report(path)
    if not report["passes"]:
        raise Mistake(f"{path}: no passes were measured in it; run the benchmark to its end")
    ceilings, point = report["ceilings"], report["passes"][0]
    count = Count(parse_config(report["config"]), report["bits"], report["kv_bytes"])
    rates = ceilings["copy_bytes_per_second"], ceilings["product_flops_per_second"]
    about = {"name": report["machine"]["device"]["name"], "precision": report["settings"]["precision"]}
    step, token = (point[name]["seconds"]["median"] for name in ("step", "token"))
    measured = [{"step": step, "token": token, **point["break_even"], "source": str(path)}]
    return about | {"measured": measured} | prediction(count, point["context"], *rates, point["rows"])


def equal(even: dict[str, Any]) -> str:
    """Says where both modes are equally fast."""
    if even["steps"] < 1:
        return "none: not even one step a block would be few enough for diffusion"
    return f"{plain(even['steps'])} steps a block = {plain(even['tokens_per_forward'])} tokens per forward"


def lines(predicted: dict[str, Any]) -> list[tuple[str, str]]:
    """Writes a prediction as lines of a figure and its value."""
    seconds = {name: f"{ms(value)} ms" for name, value in predicted["seconds"].items()}
    rows = f", {predicted['rows']} at once" if predicted["rows"] > 1 else ""
    about = f"{predicted['name']}, {predicted['precision']}, {predicted['context']:,} tokens of context{rows}"
    lines = [("machine", about), *((f"  {name}", source) for name, source in predicted.get("sources", {}).items())]
    if "memory" in predicted:
        needed, memory = predicted["needed_memory"], predicted["memory"]
        fits = "" if needed <= memory else ": does not fit, the figures are of a larger one"
        lines.append(("memory", f"{gigabytes(needed)} of {gigabytes(memory)}{fits}"))
    speeds = ", ".join(f"{plain(speed)} at {steps} steps" for steps, speed in predicted["diffusion"].items())
    lines += [
        ("denoise step", f"{seconds['step']}, bound by {predicted['bound_by']}"),
        ("commit", seconds["commit"]),
        ("left to right", f"{plain(predicted['autoregression'])} tokens/s, {seconds['token']} a token"),
        ("diffusion", f"tokens/s {speeds}"),
        ("break-even", equal(predicted["break_even"])),
    ]
    for pair in predicted["measured"]:
        step, token = (f"{name} {ms(pair[name])} ms ({seconds[name]} predicted)" for name in ("step", "token"))
        lines.append(("measured", f"{step}, {token}, break-even {equal(pair)}; {pair['source']}"))
    lines.append((f"faster, as {predicted['advised_by']}", ""))
    for name, (least, most) in WORKLOADS.items():
        lines.append((f"  {name}, {least}-{most} steps", predicted["advice"][name]))
    return lines


def parser() -> Parser:
    parser = Parser(
        prog="python -m mlx_dgemma.benchmark predict",
        description="Tokens a second of both modes at a machine's ceilings, and which to use. Nothing is measured.",
    )
    add = parser.add_argument
    add("--device", metavar="NAME", help=f"one of {', '.join(devices())}")
    add("--report", metavar="FILE.json", help="take the ceilings that this report measured instead")
    add("--precision", choices=list(PRECISIONS), default="4bit", help="of the weights")
    add("--context", type=at_least(0), default=512, metavar="N", help="tokens before the canvas")
    add("--shape", default=SHAPE, metavar="NAME", help="a published shape")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def command(options: argparse.Namespace) -> int:
    if (options.device is None) == (options.report is None):
        raise Mistake(f"need --device NAME or --report FILE.json; devices: {', '.join(devices())}")
    predicted = predict_device(options) if options.device else predict_report(Path(options.report))
    even, by = (
        (*predicted["measured"], predicted["break_even"])[0],
        "measured" if predicted["measured"] else "predicted",
    )
    predicted |= {"advised_by": by, "advice": advice(even["steps"])}  # by what was measured, where something was
    print(json.dumps(predicted)) if options.json else print_table(("", ""), lines(predicted), left=2)
    return 0
