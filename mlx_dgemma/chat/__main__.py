"""`python -m mlx_dgemma.chat`: a conversation in a terminal, or line by line from a pipe."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import Mistake
from ..terminal.command import Parser, in_a_line, run
from ..terminal.command import note as plain_note
from ..terminal.keyboard import line_editor, line_of_pipe
from ..terminal.options import add_ask, add_max_tokens, add_model, add_stop, check_ask, check_stop, open_model
from ..terminal.process import is_terminal
from ..terminal.tools import add_tools, read_tool_file, tell_unheard
from ..writing.ask import MODES
from ..writing.conversation import Conversation
from .session import ALIASES, COMMANDS, Session
from .show import note

NAME = "mlx_dgemma.chat"
QUOTES = '"""'


def parser() -> Parser:
    parser = Parser(prog=f"python -m {NAME}", description="Talk with a model that denoises its answers.")
    add = parser.add_argument_group("the chat").add_argument
    add("--continue", dest="go_on", action="store_true", help="go on with the last chat, as it was kept")
    add("--load", metavar="FOLDER", help="go on with a chat that /save wrote")
    add("--system", "--system-prompt", help="a system turn before all others")
    add("--thinking", action="store_true", help="let the model think first; its thoughts go to stderr")
    add_tools(add, "; you type their results")
    add_max_tokens(add)
    add_stop(add)
    watch = "on a terminal, show the canvas as it settles (default: --watch)"
    add("--watch", action=argparse.BooleanOptionalAction, default=True, help=watch)
    add("-q", "--quiet", action="store_true", help="no numbers behind an answer")
    add_ask(parser)
    add_model(parser)
    return parser


def check(options: argparse.Namespace) -> None:
    """Mistake where flags contradict each other."""
    check_ask(options)
    check_stop(options)
    saved = "--continue" if options.go_on else "--load" if options.load is not None else None
    if options.go_on and options.load is not None:
        raise Mistake("--continue and --load are two chats: give one")
    if saved and (options.system is not None or options.thinking or options.tools):
        raise Mistake(f"a saved chat has its own --system, --thinking and --tools: leave them out, or {saved}")


def read_text(read_line: Callable[[str], str], prompt: str) -> str:
    """Returns the next line, or all lines from three quotes to three quotes. EOFError: nothing."""
    text = read_line(prompt)
    while text.lstrip().startswith((QUOTES, "/")) and text.count(QUOTES) == 1:
        try:
            text += "\n" + read_line("… ")
        except EOFError:
            break
    return text


def talk(session: Session, read_line: Callable[[str], str]) -> int:
    """Takes line after line, until there is none. Whatever a line meets is told, and the chat goes on. Returns the exit
    code: 2 where a line of a pipe could not be done."""
    code = 0
    while True:
        try:
            session.take(read_text(read_line, session.prompt))
        except EOFError:
            return code
        except KeyboardInterrupt:
            if not session.interactive:
                raise
            session.conversation.close()  # a call that nobody answers
        except Mistake as mistake:
            if session.interactive:
                note(in_a_line(str(mistake)), "red")
            else:
                plain_note(f"{NAME}: {in_a_line(str(mistake))}")
                code = 2


def chat(options: argparse.Namespace) -> int:
    check(options)
    tools = read_tool_file(options.tools)
    model, tokenizer, ask = open_model(NAME, options)
    tell_unheard(NAME, tokenizer, tools)
    conversation = Conversation(model, tokenizer, ask, options.system, options.thinking, tools, options.stop)
    interactive = is_terminal(sys.stdin, sys.stdout)
    session = Session(conversation, watched=options.watch, interactive=interactive, quiet=options.quiet)
    if options.go_on:
        session.go_on()
    elif options.load is not None:
        session.load(options.load)
    if not interactive:
        return talk(session, line_of_pipe)
    note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    commands = {name: () for name in (*COMMANDS, *ALIASES)} | {"/mode": MODES, "/save": Path, "/load": Path}
    return talk(session, line_editor(commands))


def main(arguments: list[str] | None = None) -> int:
    return run(NAME, lambda: chat(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
