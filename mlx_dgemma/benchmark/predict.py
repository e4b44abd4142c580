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

from ..command import Parser, at_least
from ..config import ModelConfig, parse_config
from ..load import gigabytes
from ..mistake import Mistake
from .count import PRECISIONS, BreakEven, Count, precision, tokens_per_second
from .report import read_report

HERE = Path(__file__).parent
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
    from ..checkpoint import read_json
    from ..load import TINY

    shapes = {file.stem: file for file in HERE.glob("*.json")} | {"tiny": TINY / "config.json"}
    if name not in shapes:
        raise Mistake(f"{name!r} is no published shape that we know; need one of {', '.join(sorted(shapes))}")
    return read_json(shapes[name])


def published(name: str) -> ModelConfig:
    return parse_config(shape(name))


def prediction(count: Count, context: int, bytes_per_second: float, flops_per_second: float) -> dict[str, Any]:
    """Both modes at these ceilings, one sequence behind `context` tokens: seconds, tokens a second, the break-even."""
    passes = {"step": count.denoise(context), "commit": count.commit(context), "token": count.token(context)}
    seconds = {name: work.seconds(bytes_per_second, flops_per_second) for name, work in passes.items()}
    canvas, step = count.config.canvas_length, passes["step"]
    even = BreakEven.of(canvas, **seconds)
    return {
        "seconds": seconds,
        "bound_by": "bytes" if step.total_bytes / bytes_per_second > step.total_flops / flops_per_second else "FLOPs",
        "autoregression": 1 / seconds["token"],
        "diffusion": {n: tokens_per_second(canvas, n, seconds["step"], seconds["commit"]) for n in STEPS},
        "break_even": {"steps": even.steps, "tokens_per_forward": even.tokens_per_forward},
    }


def advice(steps: float) -> dict[str, str]:
    """Workload -> the faster mode, where diffusion wins below `steps` a block."""

    def mode(fewest: int, most: int) -> str:
        return "diffusion" if most < steps else "autoregression" if fewest > steps else "either"

    return {name: mode(*usual) for name, usual in WORKLOADS.items()}


def measured_pairs(device: Device, canvas: int) -> list[dict[str, Any]]:
    """What others measured on `device`, with the break-even of it: tokens per forward, the commit left out."""
    return [
        {**pair, "tokens_per_forward": pair["step"] * pair["tokens_per_second"],
         "steps": canvas / (pair["step"] * pair["tokens_per_second"])}
        for pair in device.measured
    ]  # fmt: skip


def predict_device(options: argparse.Namespace) -> dict[str, Any]:
    machine, config = device(options.device), published(options.shape)
    count = Count(config, precision(options.precision))
    found = prediction(count, options.context, machine.bandwidth, machine.flops_for(options.precision))
    needed = count.resident + sum(count.token(options.context).bytes[name] for name in ("attention",))
    return {
        "device": options.device, "name": machine.name, "sources": machine.sources, "context": options.context,
        "precision": options.precision, "needed_memory": needed, "memory": machine.memory,
        "fits": needed <= machine.memory, **found, "advice": advice(found["break_even"]["steps"]),
        "measured": measured_pairs(machine, config.canvas_length),
    }  # fmt: skip


def predict_report(path: Path) -> dict[str, Any]:
    """From the ceilings that a report measured, beside what it measured of the passes."""
    report = read_report(path)
    try:
        ceilings, point = report["ceilings"], report["passes"][0]
    except (KeyError, IndexError, TypeError):
        raise Mistake(f"{path}: no passes were measured in it; run the benchmark to its end") from None
    count = Count(parse_config(report["config"]), report["bits"], report["kv_bytes"])
    rates = ceilings["copy_bytes_per_second"], ceilings["product_flops_per_second"]
    found = prediction(count, point["context"], *rates)
    seconds = {name: point[name]["seconds"]["median"] for name in ("step", "commit", "token")}
    even = BreakEven.of(count.config.canvas_length, **seconds)
    pair = {"step": seconds["step"], "commit": seconds["commit"], "tokens_per_second": 1 / seconds["token"],
            "steps": even.steps, "tokens_per_forward": even.tokens_per_forward, "source": str(path)}  # fmt: skip
    return {"device": None, "name": report["machine"]["device"]["name"], "context": point["context"],
            "precision": report["settings"]["precision"], **found, "advice": advice(even.steps),
            "measured": [pair]}  # fmt: skip


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is said of a prediction: figure, value."""
    seconds, even = found["seconds"], found["break_even"]
    said = [("machine", f"{found['name']}, {found['precision']}, {found['context']:,} tokens of context")]
    said += [(f"  {name}", source) for name, source in found.get("sources", {}).items()]
    if "fits" in found:
        room = "" if found["fits"] else ": does not fit, the figures are of a machine with more"
        said.append(("memory", f"{gigabytes(found['needed_memory'])} of {gigabytes(found['memory'])}{room}"))
    said += [
        ("denoise step", f"{1e3 * seconds['step']:.3g} ms, bound by {found['bound_by']}"),
        ("commit", f"{1e3 * seconds['commit']:.3g} ms"),
        ("autoregression", f"{found['autoregression']:.4g} tokens/s ({1e3 * seconds['token']:.3g} ms a token)"),
        ("diffusion", ", ".join(f"{rate:.4g} at {n} steps" for n, rate in found["diffusion"].items()) + " tokens/s"),
        ("break-even", f"{even['steps']:.1f} steps a block = {even['tokens_per_forward']:.1f} tokens per forward"),
    ]
    for pair in found["measured"]:
        beside = f"step {1e3 * pair['step']:.4g} ms (predicted {1e3 * seconds['step']:.3g}), autoregression "
        beside += f"{pair['tokens_per_second']:.4g} tokens/s ({found['autoregression']:.4g}), break-even "
        beside += f"{pair['steps']:.1f} steps = {pair['tokens_per_forward']:.1f} tokens per forward; {pair['source']}"
        said.append(("measured", beside))
    return said + [(f"{workload} ({'-'.join(map(str, WORKLOADS[workload]))} steps)", mode)
                   for workload, mode in found["advice"].items()]  # fmt: skip


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
    add("--shape", default="26b-a4b", metavar="NAME", help="a published shape")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def command(options: argparse.Namespace) -> int:
    from .report import print_lines

    if (options.device is None) == (options.report is None):
        raise Mistake(f"need --device NAME or --report FILE.json; devices: {', '.join(devices())}")
    found = predict_device(options) if options.device else predict_report(Path(options.report))
    if options.json:
        print(json.dumps(found))
    else:
        print_lines(lines(found))
    return 0
