"""Which mode is faster on a machine: from its bandwidth, its FLOP rates and the counted work, or from a report.

Both modes are taken at the machine's ceilings, so each number is an upper bound and their ratio an estimate. What was
measured, by others or in a report, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.config import ModelConfig, parse_config
from ..errors import Mistake
from ..load import gigabytes
from ..terminal.command import Parser, at_least
from .count import PRECISIONS, BreakEven, Count, precision, tokens_per_second
from .report import equal, plain, print_lines, read_report

HERE = Path(__file__).parent
SHAPE = "26b-a4b"  # of which there are measurements
PASSES = {"step": "denoise", "commit": "commit", "token": "token"}  # what it is called here, and in Count
STEPS = (4, 8, 12, 16, 24, 32, 48)
WORKLOADS = {  # steps a full canvas takes: what was seen of the published model, see README
    "JSON, short answers": (2, 5),
    "maths, code": (10, 20),
    "prose": (20, 35),
}


@dataclass(frozen=True)
class Device:
    """A machine as `devices.toml` has it: bytes and FLOPs a second, bytes."""

    name: str
    bandwidth: float
    flops: dict[str, float]  # by what is multiplied
    memory: float
    sources: dict[str, str]
    measured: tuple[dict[str, Any], ...] = ()

    def flops_for(self, precision: str) -> float:
        """Of products at this precision: fp8 weights with fp8 numbers where the machine can, all others as bf16."""
        return self.flops.get(precision, self.flops["bf16"])


def devices() -> dict[str, Device]:
    """By the name that --device takes."""
    table = tomllib.loads((HERE / "devices.toml").read_text(encoding="utf-8"))
    measured = table.pop("measured")
    return {
        key: Device(
            name=entry["name"],
            bandwidth=entry["bandwidth"]["value"] * 1e9,
            flops={kind: value * 1e12 for kind, value in entry["flops"].items() if isinstance(value, float)},
            memory=entry["memory"] * 1e9,
            sources={name: f"{entry[name]['kind']}: {entry[name]['source']}" for name in ("bandwidth", "flops")},
            measured=tuple(one for one in measured if one["device"] == key),
        )
        for key, entry in table.items()
    }


def device(name: str) -> Device:
    """Mistake with the list if it is none of them."""
    known = devices()
    if name not in known:
        raise Mistake(f"--device {name!r} is not one we know; need one of {', '.join(known)}")
    return known[name]


def shape(name: str) -> dict[str, Any]:
    """config.json of a published model. Mistake with the list if there is none of this name."""
    from ..checkpoint.folder import read_json
    from ..load import TINY

    shapes = {file.stem: file for file in HERE.glob("*.json")} | {"tiny": TINY / "config.json"}
    if name not in shapes:
        raise Mistake(f"{name!r} is no published shape that we know; need one of {', '.join(sorted(shapes))}")
    return read_json(shapes[name])


def published(name: str) -> ModelConfig:
    return parse_config(shape(name))


def prediction(
    count: Count, context: int, bytes_per_second: float, flops_per_second: float, rows: int = 1
) -> dict[str, Any]:
    """Both modes at these ceilings, `rows` sequences behind `context` tokens each: seconds, tokens a second of all, the
    break-even."""
    passes = {name: getattr(count, work)(context, rows) for name, work in PASSES.items()}
    seconds = {name: work.seconds(bytes_per_second, flops_per_second) for name, work in passes.items()}
    canvas, step = count.config.canvas_length, passes["step"]
    even = BreakEven.of(canvas, **seconds)
    return {
        "seconds": seconds,
        "bound_by": "bytes" if step.total_bytes / bytes_per_second > step.total_flops / flops_per_second else "FLOPs",
        "autoregression": rows / seconds["token"],
        "diffusion": {n: tokens_per_second(canvas, n, seconds["step"], seconds["commit"], rows) for n in STEPS},
        "break_even": {"steps": even.steps, "tokens_per_forward": even.tokens_per_forward},
    }


def advice(steps: float) -> dict[str, str]:
    """Workload -> the faster mode, where diffusion wins below `steps` a block."""

    def mode(fewest: int, most: int) -> str:
        return "diffusion" if most < steps else "autoregression" if fewest > steps else "either"

    return {name: mode(*usual) for name, usual in WORKLOADS.items()}


def pair(canvas: int, step: float, commit: float, token: float, **about: Any) -> dict[str, Any]:
    """Both modes as they were measured: seconds of a step, a commit and a token, and their break-even."""
    even = BreakEven.of(canvas, step, commit, token)
    return {"step": step, "token": token, "steps": even.steps, "tokens_per_forward": even.tokens_per_forward, **about}


def predict_device(options: argparse.Namespace) -> dict[str, Any]:
    machine, config = device(options.device), published(options.shape)
    count = Count(config, precision(options.precision))
    found = prediction(count, options.context, machine.bandwidth, machine.flops_for(options.precision))
    needed = count.resident + count.token(options.context).bytes["attention"]
    measured = [  # by others, who do not tell what a commit takes
        pair(config.canvas_length, one["step"], 0.0, 1 / one["tokens_per_second"], source=one["source"])
        for one in machine.measured
        if one["precision"] == options.precision and options.shape == SHAPE
    ]
    return {
        "device": options.device, "name": machine.name, "sources": machine.sources, "context": options.context,
        "rows": 1, "precision": options.precision, "needed_memory": needed, "memory": machine.memory, **found,
        "measured": measured, **advised(found, measured),
    }  # fmt: skip


def predict_report(path: Path) -> dict[str, Any]:
    """From the ceilings that a report measured, beside what it measured of the passes."""
    report = read_report(path)
    if not report["passes"]:
        raise Mistake(f"{path}: no passes were measured in it; run the benchmark to its end")
    ceilings, point = report["ceilings"], report["passes"][0]
    count = Count(parse_config(report["config"]), report["bits"], report["kv_bytes"])
    rates = ceilings["copy_bytes_per_second"], ceilings["product_flops_per_second"]
    found = prediction(count, point["context"], *rates, rows=point["rows"])
    seconds = {name: point[name]["seconds"]["median"] for name in ("step", "commit", "token")}
    measured = [pair(count.config.canvas_length, **seconds, source=str(path))]
    return {
        "device": None, "name": report["machine"]["device"]["name"], "context": point["context"],
        "rows": point["rows"], "precision": report["settings"]["precision"], **found,
        "measured": measured, **advised(found, measured),
    }  # fmt: skip


def advised(found: dict[str, Any], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """By what was measured, where something was."""
    steps = measured[0]["steps"] if measured else found["break_even"]["steps"]
    return {"advised_by": "measured" if measured else "predicted", "advice": advice(steps)}


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is said of a prediction: figure, value."""
    seconds = {name: f"{plain(1e3 * value)} ms" for name, value in found["seconds"].items()}
    behind = f"{found['context']:,} tokens of context" + (f", {found['rows']} at once" if found["rows"] > 1 else "")
    said = [("machine", f"{found['name']}, {found['precision']}, {behind}")]
    said += [(f"  {name}", source) for name, source in found.get("sources", {}).items()]
    if "memory" in found:
        room = "" if found["needed_memory"] <= found["memory"] else ": does not fit, the figures are of a larger one"
        said.append(("memory", f"{gigabytes(found['needed_memory'])} of {gigabytes(found['memory'])}{room}"))
    said += [
        ("denoise step", f"{seconds['step']}, bound by {found['bound_by']}"),
        ("commit", seconds["commit"]),
        ("left to right", f"{plain(found['autoregression'])} tokens/s, {seconds['token']} a token"),
        ("diffusion", f"tokens/s {', '.join(f'{plain(rate)} at {n} steps' for n, rate in found['diffusion'].items())}"),
        ("break-even", equal(found["break_even"])),
    ]
    for one in found["measured"]:
        beside = (
            f"step {plain(1e3 * one['step'])} ms ({seconds['step']} predicted), token {plain(1e3 * one['token'])} ms "
        )
        said.append(("measured", f"{beside}({seconds['token']}), break-even {equal(one)}; {one['source']}"))
    said.append(("faster, as " + found["advised_by"], ""))
    return said + [
        (f"  {workload}, {'-'.join(map(str, WORKLOADS[workload]))} steps", mode)
        for workload, mode in found["advice"].items()
    ]


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
    found = predict_device(options) if options.device else predict_report(Path(options.report))
    if options.json:
        print(json.dumps(found))
    else:
        print_lines(lines(found))
    return 0
