"""`python -m mlx_dgemma.chat`: a conversation in a terminal, or line by line from a pipe."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Mistake
from ..terminal.command import Parser, run, to_stdout, waiting
from ..terminal.keyboard import Interrupt, Pipe, Terminal
from ..terminal.options import add_ask, add_max_tokens, add_model, ask, check_ask, opened
from ..writing.ask import MODES

if TYPE_CHECKING:
    from ..tokens.tokenizer import Tokenizer
    from ..writing.answer import Answer, Piece
    from ..writing.conversation import Conversation

NAME = "mlx_dgemma.chat"
KEYS = """
Ctrl-C stops an answer and keeps its finished blocks; Ctrl-D leaves.
Alt-Enter begins a new line; what is pasted may have many.
Up and Ctrl-R bring back what was typed before; Tab completes commands.
A question that begins with / needs a space before it.
Where the model calls a tool, type or paste what came of it, JSON or text;
Ctrl-C goes on without."""


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Talk with a model that denoises its answers.")
    add = parser.add_argument_group("the chat").add_argument
    add("--load", metavar="FOLDER", help="go on with a chat that /save wrote")
    add("--system", help="a system turn before all others")
    add("--thinking", action="store_true", help="let the model think first; its thoughts go to stderr")
    add("--tools", metavar="FILE.json", help="a list of functions that the model may call; you type their results")
    add_max_tokens(add)
    watch = {"action": argparse.BooleanOptionalAction, "default": True}
    add("--watch", **watch, help="on a terminal, show the canvas as it settles (default: --watch)")
    add_ask(parser)
    add_model(parser)
    return parser


class Screen:
    """Answers go to stdout; thoughts and notes to stderr."""

    def __init__(self, watched: bool):
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.watched = watched and sys.stdout.isatty() and sys.stderr.isatty()

    def note(self, text: str, style: str = "dim", end: str = "\n") -> None:
        """Prints it, wrapped if it is a whole line on a terminal."""
        whole = self.console.is_terminal and end == "\n"
        self.console.print(text, style=style, end=end, markup=False, emoji=False, soft_wrap=not whole)

    def show(self, pieces: Iterator[Piece], conversation: Conversation) -> None:
        """Shows text as blocks finish; in between, the canvas."""
        with contextlib.ExitStack() as stack:
            watch, write = None, lambda text, out: out(text)
            if self.watched:
                from ..terminal.watch import Watch

                steps = conversation.how.sampling.max_denoising_steps
                watch = stack.enter_context(Watch(conversation.tokenizer, steps))
                write = watch.write
            last, last_out = "\n", to_stdout
            for piece in pieces:
                for text, out in ((piece.thinking, self.think), (piece.text, to_stdout)):
                    if not text:
                        continue
                    if out != last_out:  # a block of thinking stands apart
                        write("thinking:\n" if out == self.think else "\n" * (2 - last.endswith("\n")), self.think)
                    write(text, out)
                    last, last_out = text, out
                if watch:
                    watch.show(piece.step)
            write("" if last.endswith("\n") else "\n", last_out)

    def think(self, text: str) -> None:
        self.note(text, "dim italic", end="")


class Session:
    """Lines that are typed: for the conversation, or commands."""

    def __init__(self, conversation: Conversation, screen: Screen, interactive: bool):
        self.conversation, self.screen, self.interactive = conversation, screen, interactive

    @property
    def prompt(self) -> str:
        calls = self.conversation.waiting
        return f"what came of {calls[0].name}: " if calls else "> "

    def take(self, line: str) -> None:
        """Mistake: the line cannot be done, and nothing has changed. EOFError: it asks to leave."""
        name, _, argument = line.strip().partition(" ")
        if not name:
            return
        if name in COMMANDS and line.startswith("/"):
            COMMANDS[name][0](self, argument.strip())
        elif self.conversation.waiting:
            self.conversation.respond(result(line))
            if not self.conversation.waiting:
                self.answer()
        elif line.startswith("/"):
            raise Mistake(f"{name} is not a command: /help lists them; a question needs a space before its /")
        else:
            self.conversation.say(line)
            self.answer()

    def answer(self) -> None:
        """The model's turn, or what follows in it, on the screen."""
        conversation, unread = self.conversation, self.conversation.unread
        read, turns = f"read {unread} of {len(conversation.tokens)} tokens", len(conversation.messages)
        with Interrupt() as interrupt:
            with waiting(f"reading {unread} tokens") as update:
                pieces = self.pieces(interrupt, update)
                first = list(islice(pieces, 1))
            self.screen.show(chain(first, pieces), conversation)
        for call in conversation.answer.calls if conversation.answer else []:
            print(f"tool call: {call}", flush=True)
        for note in conversation.answer.notes if conversation.answer else []:
            self.screen.note(note)
        forgotten = ", and the question is forgotten" if len(conversation.messages) < turns else ""
        self.screen.note(f"{outcome(conversation.answer)}{forgotten}; {read}")
        if interrupt.asked and not self.interactive:
            raise KeyboardInterrupt

    def pieces(self, interrupt: Interrupt, update: Callable[[str], None]) -> Iterator[Piece]:
        """Yields until the answer is done, or Ctrl-C is seen between two passes. `update` shows how much is unread."""
        for left in self.conversation.read():
            update(f"reading {left} tokens")
            if interrupt.asked:
                return self.conversation.close()
        with contextlib.closing(self.conversation.write()) as pieces:
            for piece in pieces:
                yield piece
                if interrupt.asked:
                    return None

    def help(self, _: str) -> None:
        for name, (_, argument, what) in COMMANDS.items():
            self.screen.note(f"{f'{name} {argument}':14} {what}", "")
        self.screen.note(KEYS, "")

    def reset(self, _: str) -> None:
        self.conversation.reset()
        self.screen.note("all turns are forgotten")

    def mode(self, mode: str) -> None:
        if mode and mode not in MODES:
            raise Mistake(f"{mode} is not a mode: need one of {', '.join(MODES)}")
        how = self.conversation.how
        if how.verify and mode in MODES[1:]:
            raise Mistake(f"--verify checks what was denoised: start the chat without it for mode {mode}")
        self.conversation.how = replace(how, mode=mode or how.mode)
        self.screen.note(f"mode: {self.conversation.how.mode}, of {', '.join(MODES)}")

    def steps(self, steps: str) -> None:
        how = self.conversation.how
        if steps and not (steps.isdecimal() and int(steps)):
            raise Mistake(f"need a number of steps >= 1, got {steps!r}")
        most = int(steps or how.sampling.max_denoising_steps)
        self.conversation.how = replace(how, sampling=replace(how.sampling, max_denoising_steps=most))
        self.screen.note(f"at most {most} steps a block")

    def save(self, folder: str) -> None:
        path = folder_of(folder)
        self.conversation.save(path)
        self.screen.note(f"saved to {path}: go on with /load, or --load at the start")

    def load(self, folder: str) -> None:
        self.conversation.load(folder_of(folder))
        for message in self.conversation.messages:
            text = shown(self.conversation.tokenizer, message["content"])
            self.screen.note("> " * (message["role"] == "user") + text)

    def leave(self, _: str) -> None:
        raise EOFError


COMMANDS = {  # name -> method, arguments, help
    "/help": (Session.help, "", "this"),
    "/reset": (Session.reset, "", "forget all turns"),
    "/mode": (Session.mode, "[MODE]", "how answers are written"),
    "/steps": (Session.steps, "[N]", "passes a block may take"),
    "/save": (Session.save, "FOLDER", "the turns, and the cache with what the model has read"),
    "/load": (Session.load, "FOLDER", "go on with what was saved"),
    "/quit": (Session.leave, "", "leave, as Ctrl-D does"),
}


def folder_of(text: str) -> Path:
    if not text:
        raise Mistake("need a folder")
    return Path(text).expanduser()


def shown(tokenizer: Tokenizer, content: str) -> str:
    """Returns the text of a message, without its thinking."""
    from ..tokens.parts import GeneratedText
    from ..tokens.stream import split_thinking

    tokens = content.tokens if isinstance(content, GeneratedText) else tokenizer.encode(content)
    return tokenizer.decode(split_thinking(tokenizer, tokens)[1])


def result(line: str) -> Any:
    """Returns what the line says as JSON, or else the line."""
    try:
        return json.loads(line)
    except ValueError:
        return line


def outcome(answer: Answer | None) -> str:
    if answer is None or not answer.steps_per_block:
        return "stopped before the first block was done"
    numbers = f"{len(answer.tokens)} tokens, {answer.steps} steps, {answer.seconds:.2f} s"
    if answer.finish_reason is None:
        return f"stopped; what is finished is kept: {numbers}"
    if answer.finish_reason == "length":
        return f"{numbers}, cut at the length asked for"
    if answer.finish_reason == "deadline":
        return f"{numbers}, as it stood at the deadline"
    return numbers if answer.text or answer.calls else f"an empty answer: {numbers}"


def read_tools(path: str) -> list[dict]:
    try:
        tools = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Mistake(f"--tools {path}: {error}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and "function" in tool for tool in tools):
        raise Mistake(f'--tools {path}: need a list of {{"type": "function", "function": {{"name": …}}}}')
    return tools


def open_conversation(options: argparse.Namespace) -> Conversation:
    """Checks and reads what the flags name, then loads the model."""
    check_ask(options)
    if options.load and (options.system is not None or options.thinking or options.tools):
        raise Mistake("a saved chat has its own --system, --thinking and --tools: leave them out, or --load")
    tools = read_tools(options.tools) if options.tools else None
    model, tokenizer, sampling = opened(NAME, options)
    from ..writing.conversation import Conversation

    return Conversation(model, tokenizer, ask(options, sampling), options.system, options.thinking, tools)


def chat(options: argparse.Namespace) -> None:
    conversation = open_conversation(options)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    following = {"/mode": MODES, "/save": Path, "/load": Path}
    keyboard = Terminal({name: following.get(name, ()) for name in COMMANDS}) if interactive else Pipe()
    session = Session(conversation, Screen(options.watch), interactive)
    if options.load:
        session.load(options.load)
    if interactive:
        session.screen.note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    while True:
        try:
            session.take(keyboard.line(session.prompt))
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            conversation.close()  # a call that nobody answers
        except Mistake as mistake:
            if not interactive:
                raise
            session.screen.note(str(mistake), "red")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return run(NAME, lambda: chat(options))


if __name__ == "__main__":
    sys.exit(main())
