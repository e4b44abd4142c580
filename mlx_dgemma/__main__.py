"""`python -m mlx_dgemma`: lists the commands; with the name of one, runs it."""

import importlib
import sys

from .terminal.command import Parser, run, to_stdout

COMMANDS = {
    "generate": "a prompt in, an answer out",
    "chat": "a conversation in a terminal",
    "batch": "a file of requests in, one JSON object a line out",
    "fill": "a text with gaps in, the same text with the gaps filled out",
    "edit": "lines of a file and what to do to them in, a diff out",
    "server": "answers for editors, agents and chat programs, as OpenAI's and others' do",
    "convert": "a checkpoint in, an MLX folder out, quantized or not",
    "train": "a model and examples in, an adapter for one job out",
    "fuse": "an adapter and its model in, one model out",
    "benchmark": "how fast is diffusion here, and left to right?",
    "selfcheck": "is this machine's arithmetic right?",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f".{arguments[0]}.__main__", __package__).main(arguments[1:])
    parser = Parser(prog="python -m mlx_dgemma", description="Texts by denoising, with DiffusionGemma.")
    parser.usage = "python -m mlx_dgemma.COMMAND …, each with --help"
    parser.epilog = "; ".join(f"{name}: {what}" for name, what in COMMANDS.items())
    parser.parse_args(arguments)
    lines = [parser.usage, *(f"  {name:10} {what}" for name, what in COMMANDS.items())]
    return run("mlx_dgemma", lambda: to_stdout("\n".join(lines) + "\n"), divided=False)


if __name__ == "__main__":
    sys.exit(main())
