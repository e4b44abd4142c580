"""The flags that commands share, and what they make of them: a model, an `Ask`, a prompt in tokens, one JSON object."""

import argparse
import json
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

from ..checkpoint.folder import adapter_files
from ..checkpoint.hub import find
from ..errors import Mistake
from ..load import join_ranks, load, why_no_gpu
from ..seam.model import DiffusionModel, Draw
from ..tokens.messages import prompt_tokens
from ..tokens.tokenizer import Tokenizer
from ..writing.ask import MODES, Ask
from ..writing.sampling import PRESETS, SAMPLERS, STOPS, Sampling
from .command import at_least, note, waiting

REAL_MODEL = "mlx-community/diffusiongemma-26B-A4B-it-4bit"
Options = dict[str, float | str]


def preset(text: str) -> Options:
    """An argparse type: NAME, NAME=VALUE, or several of these with commas between them; later ones win."""
    options: Options = {}
    known = [field.name for kind in (Sampling, Draw) for field in fields(kind)]
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals and name in PRESETS:
            options |= PRESETS[name]
        elif part == "verify":
            options["verify"] = True
        elif equals and name in known:
            options[name] = _number(value)
        else:
            need = f"{', '.join(PRESETS)}, verify, or NAME=VALUE with one of {', '.join(sorted(known))}"
            raise argparse.ArgumentTypeError(f"need {need}; got {part!r}")
    try:  # what is wrong is known before anything is loaded
        Sampling(**options_of(Sampling, options)), Draw(**options_of(Draw, options))
    except Mistake as mistake:
        raise argparse.ArgumentTypeError(str(mistake)) from None
    return options


class _Preset(argparse.Action):
    """Lays options over those that were given before. `const`: the name of the one option that the flag is for."""

    def __call__(self, parser, namespace, values, option_string=None):
        options = dict(values) if self.const is None else {self.const: values}
        namespace.verify = options.pop("verify", namespace.verify)
        namespace.preset = namespace.preset | options


def options_of(kind: type[Sampling | Draw], options: Options) -> Options:
    """Returns those of `options` that are fields of `kind`."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in options.items() if name in names}


def _number(text: str) -> float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def memory_size(text: str) -> int:
    """An argparse type: GB, as bytes."""
    try:
        size = int(1e9 * float(text))
    except (ValueError, OverflowError):  # OverflowError: inf
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"need a number of GB above 0, got {text!r}")
    return size


def add_model(parser: argparse.ArgumentParser, *, listed: bool = True) -> None:
    """`listed`: whether --help names what few need; `generate`, which has enough flags, takes it too."""
    add = parser.add_argument_group("the model").add_argument
    model = "a checkpoint, ID@REVISION (or --revision) for one commit; without it, or as tiny, one that comes along"
    add("-m", "--model", metavar="FOLDER_OR_HUB_ID", help=model)
    add("--revision", help=argparse.SUPPRESS)
    add("--adapter-path", metavar="FOLDER", help="what python -m mlx_dgemma.train learnt, on top of it")
    add("--backend", choices=["mlx", "torch"], help="default: torch where there is a CUDA device, else mlx")
    dtype = "of activations (default: the checkpoint's); fp8, on torch: of experts and linears too"
    add("--dtype", choices=["float32", "bfloat16", "float16", "fp8"], help=dtype)
    memory = "of weights, a pass and a text: the context that fits (default: the model's, while there is memory)"
    add("--max-memory", type=memory_size, metavar="GB", help=memory if listed else argparse.SUPPRESS)
    # README says what it is for: most machines have one device.
    add("--tensor-parallel", type=at_least(1), metavar="N", help=argparse.SUPPRESS)


def add_ask(parser: argparse.ArgumentParser, *, modes: bool = True) -> None:
    """`modes`: whether the text can be written left to right, too; otherwise `mode` is None, and all of it is kept."""
    add = parser.add_argument_group("how to write it").add_argument
    single = (
        f"{', '.join(PRESETS)}; verify, to check each block by the causal pass and write again what it doubts; single "
        f"options: max_denoising_steps=N, sampler=NAME ({', '.join(SAMPLERS)}), "
        f"stop=NAME ({', '.join(STOPS)}), canvas_length=N or auto, entropy_bound=NATS, …"
    )
    if modes:
        single += "; left to right temp=T, top_p=P, top_k=K, min_p=P. Also as flags: --verify, --temp T, --top-p P, …"
        mode = "denoise, write left to right, or block by block what costs less"
        add("--mode", choices=MODES, default="diffusion", help=mode)
    else:
        parser.set_defaults(mode=None, max_tokens=Ask.max_tokens)
    add("--preset", type=preset, action=_Preset, default={}, metavar="NAME[,OPTION=VALUE…]", help=single)
    add("--max-denoising-steps", type=at_least(1), help=argparse.SUPPRESS)
    for name in ("temp", "top_p", "top_k", "min_p"):
        flags, kind = {f"--{name}", f"--{name.replace('_', '-')}"}, int if name == "top_k" else float
        add(*flags, dest="preset", action=_Preset, const=name, type=kind, help=argparse.SUPPRESS)
    add("--verify", action="store_true", help=argparse.SUPPRESS)
    add("--deadline", type=float, metavar="SECONDS", help="end the text after that time, as it stands")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of all random numbers: same seed, same text")


class _Shown(argparse.Action):
    """--watch and --quiet: more than usual beside the text, or less."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.quiet = option_string in ("-q", "--quiet")
        namespace.watch = not namespace.quiet


def add_shown(parser: argparse.ArgumentParser, add, what: str) -> None:
    shown = f"{what}; or nothing but the text"
    add("--watch", "-q", "--quiet", action=_Shown, dest="watch", nargs=0, default=False, help=shown)
    parser.set_defaults(quiet=False)


def add_max_tokens(add) -> None:
    add("--max-tokens", type=at_least(1), default=Ask.max_tokens, metavar="N", help="cut the text here")


def add_stop(add) -> None:
    add("--stop", action="append", default=[], metavar="TEXT", help="end the text before this; may be given again")


def check_stop(options: argparse.Namespace) -> None:
    """Mistake where a stop is none, or the text has a form."""
    if "" in options.stop:
        raise Mistake("--stop is an empty text: give the one to end before")
    for flag in ("json_schema", "template", "choices"):
        if options.stop and getattr(options, flag, None) is not None:
            flag = f"--{flag.replace('_', '-')}"
            raise Mistake(f"--stop does not go with {flag}, which ends where its form does: leave it out")


def check_ask(options: argparse.Namespace) -> None:
    """Mistake where flags contradict each other. Before anything is loaded."""
    mode = options.mode or "diffusion"
    denoising, drawing = options_of(Sampling, options.preset), options_of(Draw, options.preset)
    if drawing and mode == "diffusion":
        modes = " (--mode ar or auto)" if options.mode else ""
        option = f"{next(iter(drawing))} is of writing left to right{modes}"
        raise Mistake(f"{option}: while a canvas is denoised the temperature falls from t_max to t_min")
    if drawing and not drawing.get("temp"):
        raise Mistake(f"--preset {next(iter(drawing))} is of tokens that are drawn: give temp=T, too")
    if mode == "ar" and (denoising or options.max_denoising_steps):
        name = f"--preset {next(iter(denoising))}" if denoising else "--max-denoising-steps"
        raise Mistake(f"{name} is of denoising: leave it out, or --mode ar")
    if options.verify and mode != "diffusion":
        raise Mistake(f"--verify checks what was denoised: leave it out, or --mode {mode}")
    _ask(options, Sampling())


def _ask(options: argparse.Namespace, sampling: Sampling) -> Ask:
    """Returns what the flags ask for, over the checkpoint's `sampling`."""
    steps = {"max_denoising_steps": options.max_denoising_steps} if options.max_denoising_steps else {}
    return Ask(
        sampling=replace(sampling, **options_of(Sampling, options.preset) | steps),
        max_tokens=options.max_tokens,
        seed=options.seed,
        mode=options.mode or "diffusion",
        verify=options.verify,
        deadline=options.deadline,
        draw=Draw(**options_of(Draw, options.preset)),
    )


def with_option(ask: Ask, name: str, value: str) -> Ask:
    """Returns `ask` with one option changed, as a flag or --preset takes it. Mistake where it cannot be."""
    name = {"temperature": "temp"}.get(name, name)
    try:
        if name in ("seed", "max_tokens"):
            return replace(ask, **{name: at_least(int(name == "max_tokens"))(value)})
        if name == "deadline":
            return replace(ask, deadline=None if value == "none" else float(value))
        if name == "verify":
            return replace(ask, verify=value != "off")
        options = preset(f"{name}={value}" if value else name)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise Mistake(f"{name} {value}: {error}") from None
    drawing = options_of(Draw, options)
    if drawing and ask.mode == "diffusion":
        raise Mistake(f"{name} is of writing left to right: choose --mode ar or auto first")
    sampling = replace(ask.sampling, **options_of(Sampling, options))
    return replace(ask, sampling=sampling, draw=replace(ask.draw, **drawing))


def open_model(name: str, options: argparse.Namespace) -> tuple[DiffusionModel, Tokenizer, Ask]:
    """Loads the model of the command `name`, and returns it with what the flags ask of it."""
    if options.model is None and not options.quiet:
        tiny = "no --model given, so the tiny one that comes along answers: it knows the few tasks that README lists"
        note(f"{name}: {tiny}. The real one: --model {REAL_MODEL}")
    join_ranks(options.tensor_parallel, options.backend)
    folder = find(options.model)  # a download has a progress bar of its own
    if not options.adapter_path and (adapters := adapter_files(folder)):
        note(f"{name}: {', '.join(adapters)} beside the weights is an adapter, and not used: see --adapter-path")
    with waiting("loading"):
        flags = options.model, options.backend, options.dtype, options.adapter_path
        model, tokenizer, sampling = load(*flags, max_memory=options.max_memory)
    if options.max_memory and not options.quiet:
        room = model.facts.max_position_embeddings
        note(f"{name}: --max-memory {options.max_memory / 1e9:g} has room for texts of {room:,} tokens")
    if reason := why_no_gpu(options.backend):
        note(f"{name}: no CUDA device, so torch computes on the CPU: {reason}")
    return model, tokenizer, _ask(options, sampling)


def encode_prompt(
    tokenizer: Tokenizer, options: argparse.Namespace, prompt: str, tools: list[dict] | None = None
) -> list[int]:
    """Encodes a prompt by the chat template, or with --raw as it is: then control tokens in it are tokens."""
    if options.raw:
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return start + tokenizer.encode(prompt, special_tokens=True)
    turns = {"system": options.system, "thinking": options.thinking}
    return prompt_tokens(tokenizer, prompt, tools=tools, **turns)


def to_json(options: argparse.Namespace, result: dict[str, Any]) -> str:
    """Returns one line: the result, with the seed if it has none, and the model."""
    return json.dumps({"seed": options.seed, **result, "model": options.model or "tiny"}, ensure_ascii=False)
