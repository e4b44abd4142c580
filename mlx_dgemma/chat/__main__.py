"""`python -m mlx_dgemma.chat`: a conversation in a terminal, or line by line from a pipe."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from ..errors import Mistake, need
from ..terminal.command import CUT, Parser, on_terminal, run, to_stdout, waiting
from ..terminal.keyboard import Interrupt, line_editor, line_of_pipe
from ..terminal.options import add_ask, add_max_tokens, add_model, check_ask, open_model
from ..terminal.process import is_terminal
from ..terminal.tools import add_tools, read_tool_file, tell_unheard
from ..terminal.watch import Watch
from ..tokens.parts import GeneratedText
from ..tokens.stream import split_thinking
from ..tokens.tokenizer import Tokenizer
from ..writing.answer import Answer, Piece
from ..writing.ask import MODES
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
    add_tools(add, "; you type their results")
    add_max_tokens(add)
    watch = "on a terminal, show the canvas as it settles (default: --watch)"
    add("--watch", action=argparse.BooleanOptionalAction, default=True, help=watch)
    add_ask(parser)
    add_model(parser)
    return parser


def note(text: str, style: str = "dim", end: str = "\n") -> None:
    """Prints on stderr, wrapped if it is a whole line on a terminal."""
    console = Console(stderr=True, highlight=False)
    whole = console.is_terminal and end == "\n"
    console.print(text, style=style, end=end, markup=False, emoji=False, soft_wrap=not whole)


def think(text: str) -> None:
    note(text, "dim italic", end="")


def show(pieces: Iterator[Piece], watch: Watch) -> None:
    """Prints text as blocks finish, and thoughts on stderr; in between, the canvas is drawn."""
    with watch:
        last, last_out = "\n", to_stdout
        for piece in pieces:
            for text, out in ((piece.thinking, think), (piece.text, to_stdout)):
                if not text:
                    continue
                if out != last_out:  # a block of thinking stands apart
                    watch.write("thinking:\n" if out == think else "\n" * (2 - last.endswith("\n")), think)
                watch.write(text, out)
                last, last_out = text, out
            watch.show(piece.step)
        watch.write("" if last.endswith("\n") else "\n", last_out)


class Session:
    """Takes lines that are typed, for the conversation or as commands, and shows what comes of them."""

    def __init__(self, conversation: Conversation, *, watched: bool, interactive: bool):
        self.conversation, self.interactive = conversation, interactive
        self.drawn = watched and on_terminal()

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
        """Shows the model's turn, or what follows in it."""
        conversation, unread = self.conversation, self.conversation.unread
        read, turns = f"read {unread} of {len(conversation.tokens)} tokens", len(conversation.messages)
        watch = Watch(conversation.tokenizer, conversation.how.sampling.max_denoising_steps, drawn=self.drawn)
        with Interrupt() as interrupt:
            with waiting(f"reading {unread} tokens") as status:
                pieces = self.pieces(interrupt, status)
                first = list(islice(pieces, 1))
            show(chain(first, pieces), watch)
        if answer := conversation.answer:
            for call in answer.calls:
                to_stdout(f"tool call: {call}\n")
            for line in answer.notes:
                note(line)
        forgotten = ", and the question is forgotten" if len(conversation.messages) < turns else ""
        note(f"{outcome(answer)}{forgotten}; {read}")
        if interrupt.asked and not self.interactive:
            raise KeyboardInterrupt

    def pieces(self, interrupt: Interrupt, status: Status) -> Iterator[Piece]:
        """Yields until the answer is done, or Ctrl-C is seen between two passes. `status` shows how much is unread."""
        for left in self.conversation.read():
            status.update(f"reading {left} tokens")
            if interrupt.asked:
                return self.conversation.close()
        with contextlib.closing(self.conversation.write()) as pieces:
            for piece in pieces:
                yield piece
                if interrupt.asked:
                    return None

    def help(self, _: str) -> None:
        for name, (_, argument, text) in COMMANDS.items():
            note(f"{f'{name} {argument}':14} {text}", "")
        note(KEYS, "")

    def reset(self, _: str) -> None:
        self.conversation.reset()
        note("all turns are forgotten")

    def mode(self, mode: str) -> None:
        if mode and mode not in MODES:
            raise Mistake(f"{mode} is not a mode: need one of {', '.join(MODES)}")
        self.conversation.how = replace(self.conversation.how, mode=mode or self.conversation.how.mode)
        note(f"mode: {self.conversation.how.mode}, of {', '.join(MODES)}")

    def steps(self, steps: str) -> None:
        how = self.conversation.how
        need(not steps or (steps.isdecimal() and int(steps) > 0), "a number of steps >= 1", repr(steps))
        most = int(steps or how.sampling.max_denoising_steps)
        self.conversation.how = replace(how, sampling=replace(how.sampling, max_denoising_steps=most))
        note(f"at most {most} steps a block")

    def save(self, folder: str) -> None:
        path = folder_of(folder)
        self.conversation.save(path)
        note(f"saved to {path}: go on with /load, or --load at the start")

    def load(self, folder: str) -> None:
        self.conversation.load(folder_of(folder))
        for message in self.conversation.messages:
            text = without_thinking(self.conversation.tokenizer, message["content"])
            note("> " * (message["role"] == "user") + text)

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
    need(bool(text), "a folder", "nothing")
    return Path(text).expanduser()


def without_thinking(tokenizer: Tokenizer, content: str) -> str:
    tokens = content.tokens if isinstance(content, GeneratedText) else tokenizer.encode(content)
    return tokenizer.decode(split_thinking(tokenizer, tokens)[1])


def result(line: str) -> Any:
    """Returns what the line is as JSON, or else the line."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)
    return line


def outcome(answer: Answer | None) -> str:
    if answer is None or not answer.steps_per_block:
        return "stopped before the first block was done"
    numbers = f"{len(answer.tokens)} tokens, {answer.steps} steps, {answer.seconds:.2f} s"
    if answer.finish_reason is None:
        return f"stopped; what is finished is kept: {numbers}"
    empty = not (answer.text or answer.calls or answer.finish_reason in CUT)
    return "an empty answer: " * empty + numbers + CUT.get(answer.finish_reason, "")


def chat(options: argparse.Namespace) -> None:
    check_ask(options)
    if options.load and (options.system is not None or options.thinking or options.tools):
        raise Mistake("a saved chat has its own --system, --thinking and --tools: leave them out, or --load")
    tools = read_tool_file(options.tools)
    model, tokenizer, ask = open_model(NAME, options)
    tell_unheard(NAME, tokenizer, tools)
    conversation = Conversation(model, tokenizer, ask, options.system, options.thinking, tools)
    interactive = is_terminal(sys.stdin, sys.stdout)
    session = Session(conversation, watched=options.watch, interactive=interactive)
    if options.load:
        session.load(options.load)
    read_line = line_of_pipe
    if interactive:
        note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
        read_line = line_editor({name: () for name in COMMANDS} | {"/mode": MODES, "/save": Path, "/load": Path})
    while True:
        try:
            session.take(read_line(session.prompt))
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            conversation.close()  # a call that nobody answers
        except Mistake as mistake:
            if not interactive:
                raise
            note(str(mistake), "red")


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: chat(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
