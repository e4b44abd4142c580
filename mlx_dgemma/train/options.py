"""What a training run is asked for: every field is a flag and a key of the YAML file. The words are mlx_lm.lora's."""

from __future__ import annotations

import argparse
import math
import re
import reprlib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checkpoint.adapter import ATTENTION_AND_MLP
from ..errors import Mistake, NotFound, need
from ..seam.learning import Optimizer
from ..terminal.command import Parser, read
from .loss import VARIANTS, Recipe

NAME = "mlx_dgemma.train"
REPORTERS = ("trackio", "wandb", "tensorboard")
ADAM = ("adamw", "adafactor")
LEAST = {"batch_size": 1, "iters": 1, "grad_accumulation_steps": 1, "max_seq_length": 1, "steps_per_eval": 1}
LEAST |= {"steps_per_report": 1, "save_every": 1, "eval_prompts": 0, "seed": 0}


def _option(default: Any, help: str | None = None, **more: Any) -> Any:
    """A field that is a flag; without `help` it is one that `--help` leaves to README. Dicts are of the YAML only."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"yaml": True})
    return field(default=default, metadata={"help": help or argparse.SUPPRESS, **more})


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = _option(None, "folder with train.jsonl, or a data set of the hub", metavar="FOLDER_OR_HUB_ID")
    train: bool = _option(True)  # mlx_lm.lora must be told to
    adapter_path: str = _option("adapters", "what is learnt is written there", metavar="FOLDER")
    resume: bool = _option(False, "go on with the run that --adapter-path holds")
    model: str | None = _option(None, "a checkpoint; without it, the tiny one", metavar="FOLDER_OR_HUB_ID")
    backend: str | None = _option(
        None, "default: torch where there is a CUDA device, else mlx", choices=["mlx", "torch"]
    )
    dtype: str | None = _option(None, "of activations", choices=["float32", "bfloat16", "float16"])
    fine_tune_type: str = _option("lora", "an adapter, or all weights", choices=["lora", "full"])
    num_layers: int = _option(-1, "layers from the end that get an adapter; -1: all", metavar="N")
    batch_size: int = _option(4, "examples at once", metavar="N")
    iters: int = _option(1000, "steps", metavar="N")
    learning_rate: float = _option(1.5e-4, "its highest", metavar="RATE")
    optimizer: str = _option("adamw", choices=ADAM)
    grad_accumulation_steps: int = _option(1, "batches a step", metavar="N")
    max_seq_length: int = _option(2048, "longer examples are left out, and counted", metavar="N")
    mask_prompt: bool = _option(True, "--no-mask-prompt: the causal pass learns prompts, too")
    replay: str | None = _option(None, "what it must not forget: a share of each batch", metavar="FILE:SHARE")
    t_one: float = _option(0.5, "share of examples that begin as pure noise", metavar="SHARE")
    inside: float = _option(0.0)  # share of canvases that begin anywhere in the answer
    objective: str = _option("plain", choices=VARIANTS)
    steps_per_eval: int = _option(200, "steps between two validations", metavar="N")
    val_batches: int = _option(25)  # -1: all
    eval_prompts: int = _option(20, "prompts that are answered at each, and compared", metavar="N")
    steps_per_report: int = _option(10)
    save_every: int = _option(100, "steps between two saves", metavar="N")
    grad_checkpoint: bool | None = _option(None)  # None: from a billion parameters on
    report_to: str | None = _option(None, choices=REPORTERS)
    project_name: str = _option("mlx_dgemma")
    resume_adapter_file: str | None = _option(None)
    test: bool = _option(False)
    test_batches: int = _option(500)
    seed: int = _option(0)
    lora_parameters: dict = _option({})  # keys, rank, scale, dropout
    lr_schedule: dict = _option({})  # name, arguments, warmup, warmup_init
    optimizer_config: dict = _option({})  # adamw: {betas, weight_decay}

    def __post_init__(self) -> None:
        """What is wrong is known before anything is loaded."""
        for name, least in LEAST.items():
            need(vars(self)[name] >= least, f"--{_flag(name)} >= {least}", f"{vars(self)[name]}")
        for name in ("val_batches", "test_batches"):
            need(vars(self)[name] >= 1 or vars(self)[name] == -1, f"--{_flag(name)} >= 1, or -1", f"{vars(self)[name]}")
        need(self.learning_rate > 0, "--learning-rate > 0", f"{self.learning_rate}")
        need(self.objective in VARIANTS, f"objective to be one of {', '.join(VARIANTS)}", f"{self.objective!r}")
        need(self.optimizer in ADAM, f"optimizer to be one of {', '.join(ADAM)}", f"{self.optimizer!r}")
        _known("lora_parameters", self.lora_parameters, {"keys", "rank", "scale", "dropout"})
        _known("lr_schedule", self.lr_schedule, {"name", "arguments", "warmup", "warmup_init"})
        if self.lora_parameters.get("dropout"):
            raise Mistake(f"lora_parameters: dropout {self.lora_parameters['dropout']} is not supported: leave it out")
        need(type(self.rank) is int and self.rank >= 1, "lora_parameters: rank >= 1", f"{self.rank!r}")
        need(_is_number(self.scale), "lora_parameters: scale to be a number", f"{self.scale!r}")
        names = isinstance(self.keys, list) and all(isinstance(key, str) for key in self.keys)
        need(names, "lora_parameters: keys to be a list of names", f"{self.keys!r}")
        self.recipe, self.adam, self.share_of_replay  # noqa: B018

    @property
    def recipe(self) -> Recipe:
        return Recipe(variant=self.objective, t_one=self.t_one, inside=self.inside, mask_prompt=self.mask_prompt)

    @property
    def keys(self) -> list[str]:
        return self.lora_parameters.get("keys", list(ATTENTION_AND_MLP))

    @property
    def rank(self) -> int:
        return self.lora_parameters.get("rank", 16)

    @property
    def scale(self) -> float:
        return self.lora_parameters.get("scale", 2.0)

    @property
    def adam(self) -> Optimizer:
        config = self.optimizer_config.get(self.optimizer, {})
        need(isinstance(config, dict), f"optimizer_config: {self.optimizer} to be keys and values", f"{config!r}")
        _known("optimizer_config", config, {"betas", "weight_decay"})
        given = Optimizer(name=self.optimizer, **config)
        pair = isinstance(given.betas, list | tuple) and len(given.betas) == 2
        fits = pair and all(_is_number(beta) and 0 <= beta < 1 for beta in given.betas)
        need(fits, "optimizer_config: betas to be two numbers from 0 to below 1", f"{given.betas!r}")
        decay = given.weight_decay
        need(_is_number(decay) and decay >= 0, "optimizer_config: weight_decay >= 0", f"{decay!r}")
        return given

    @property
    def share_of_replay(self) -> tuple[str, float] | None:
        """File, and how much of each batch is of it."""
        if self.replay is None:
            return None
        file, _, share = self.replay.rpartition(":")
        try:
            number = float(share)
        except ValueError:
            number = -1.0
        if not file or not 0 <= number < 1:
            raise Mistake(f"--replay needs FILE:SHARE, with a share from 0 to below 1, got {self.replay}")
        return file, number

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _known(what: str, given: dict, names: set[str]) -> None:
    if wrong := set(given) - names:
        raise Mistake(
            f"{what}: {', '.join(sorted(map(str, wrong)))} is unknown: need some of {', '.join(sorted(names))}"
        )


def parser() -> Parser:
    parser = Parser(
        prog=f"python -m {NAME}",
        description="Tune a model on your own examples, by its makers' recipe. Flags and files are mlx_lm.lora's; "
        "README.md of mlx_dgemma/train lists those that are not shown here.",
    )
    parser.add_argument("-c", "--config", metavar="FILE.yaml", help="flags as keys, with _ for -; flags win")
    kinds = {"int": int, "float": float}
    for option in fields(Options):
        if option.metadata.get("yaml"):
            continue
        name, kind, about = f"--{_flag(option.name)}", str(option.type).removesuffix(" | None"), dict(option.metadata)
        if kind == "bool":
            about["action"] = argparse.BooleanOptionalAction if option.default else "store_true"
        else:
            about["type"] = kinds.get(kind, str)
            if about["help"] != argparse.SUPPRESS and option.default is not None:
                about["help"] += f" (default: {option.default})"
        parser.add_argument(name, default=argparse.SUPPRESS, **about)
    return parser


def parse(arguments: list[str] | None) -> Options:
    given = vars(parser().parse_args(arguments))
    config = given.pop("config", None)
    return Options(**{**(_read(Path(config)) if config else {}), **given})


def _read(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise Mistake("--config needs PyYAML, which is not installed: pip install 'mlx_dgemma[train]'") from None

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-5 for a word."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    try:
        values = yaml.load(read(str(path)), Loader)
    except NotFound:
        raise NotFound(f"--config {path}: no such file") from None
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise Mistake(f"--config {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise Mistake(f"--config {path} holds no keys: need lines such as iters: 300")
    return {name: _checked(path, name, value) for name, value in values.items()}


def _checked(path: Path, name: str, value: Any) -> Any:
    known = {option.name: option for option in fields(Options)}
    if name not in known:
        raise Mistake(f"--config {path}: {name} is unknown: need some of {', '.join(known)}")
    option = known[name]
    default = option.default_factory() if option.default is MISSING else option.default
    kinds = {"int": int, "float": (int, float), "bool": bool, "str": str, "dict": dict}
    kind = str(option.type).removesuffix(" | None")
    if value != default and (not isinstance(value, kinds[kind]) or (kind != "bool" and isinstance(value, bool))):
        raise Mistake(f"--config {path}: {name} must be of type {kind}, got {reprlib.repr(value)}")
    return value
