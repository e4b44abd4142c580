"""What is typed into a chat: questions, results of tools, and commands."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.spinner import Spinner

from ..errors import Mistake, NoRoom, need, reason
from ..terminal.command import CUT, on_terminal, to_stdout, waiting
from ..terminal.keyboard import Interrupt
from ..terminal.options import with_option
from ..terminal.watch import Watch
from ..tokens.parts import GeneratedText
from ..tokens.stream import split_thinking
from ..writing.answer import Answer, Piece
from ..writing.ask import MODES
from ..writing.conversation import Conversation
from .chat_file import ChatFile, last
from .show import note, show

KEYS = '''
Ctrl-C stops an answer and keeps its finished blocks; Ctrl-D leaves.
Alt-Enter begins a new line; what is pasted may have many; """ begins a text
of many lines, which ends with """.
Up and Ctrl-R bring back what was typed before; Tab completes commands.
A question that begins with / needs a space before it.
Where the model calls a tool, type or paste what came of it, JSON or text;
Ctrl-C goes on without.
A chat is kept as it goes: --continue takes up the last one.'''
NEARLY = 0.9  # of the context: from there on, the user is warned
SWITCH = {"on": True, "true": True, "off": False, "false": False}


class Session:
    """Takes lines that are typed, for the conversation or as commands, and shows what comes of them."""

    def __init__(self, conversation: Conversation, *, watched: bool, interactive: bool, quiet: bool = False):
        self.conversation, self.interactive, self.quiet = conversation, interactive, quiet
        self.drawn = watched and on_terminal()
        self._file, self._writable = ChatFile(), True

    @property
    def prompt(self) -> str:
        calls = self.conversation.waiting
        return f"what came of {calls[0].name}: " if calls else "> "

    def take(self, line: str) -> None:
        """Does what a line says. Mistake: it cannot be done, and nothing has changed. EOFError: it asks to leave."""
        name, _, argument = line.strip().partition(" ")
        if not name:
            return
        name = ALIASES.get(name, name)
        try:
            if name in COMMANDS and line.startswith("/"):
                COMMANDS[name][0](self, argument.strip())
            elif self.conversation.waiting:
                self.conversation.respond(result(unquoted(line)))
                if not self.conversation.waiting:
                    self.answer()
            elif line.startswith("/"):
                raise Mistake(f"{name} is not a command: /help lists them; a question needs a space before its /")
            else:
                self.conversation.say(unquoted(line))
                self.answer()
        except NoRoom as mistake:
            raise Mistake(f"{mistake}, or /reset to forget all turns, or /undo the last one") from None
        finally:
            self.keep()

    def keep(self) -> None:
        """Writes the chat to its file. Where that cannot be, it is told once."""
        try:
            if self._writable:
                self._file.write(self.conversation)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            self._writable = False
            note(f"this chat is not kept as it goes: {reason(error)}; /save FOLDER saves it")

    def answer(self) -> None:
        """Shows the model's turn, or what follows in it."""
        conversation, unread = self.conversation, self.conversation.unread
        length, turns = len(conversation.tokens), len(conversation.messages)
        watch = Watch(conversation.tokenizer, conversation.how.sampling.max_denoising_steps, drawn=self.drawn)
        with Interrupt() as interrupt:
            with waiting(f"reading {unread} tokens") as shown:
                pieces = self.pieces(interrupt, shown)
                first = list(islice(pieces, 1))
            show(chain(first, pieces), watch)
        if answer := conversation.answer:
            for call in answer.calls:
                to_stdout(f"tool call: {call}\n")
        if not self.quiet:
            forgotten = ", and the question is forgotten" if len(conversation.messages) < turns else ""
            for line in answer.notes if answer else ():
                note(line)
            note(f"{outcome(answer, conversation.how.max_tokens)}{forgotten}; read {unread} of {length} tokens")
        self.warn_of_the_end(length + len(answer.tokens if answer else ()))
        if interrupt.asked and not self.interactive:
            raise KeyboardInterrupt

    def warn_of_the_end(self, used: int) -> None:
        """Says so where the next question may find no room behind the tokens that are `used`."""
        facts = self.conversation.model.facts
        room = facts.max_position_embeddings
        if used + facts.canvas_length > NEARLY * room:
            note(f"the context is nearly full, {used} of {room} tokens: /reset forgets all turns, /undo the last one")

    def pieces(self, interrupt: Interrupt, shown: Spinner) -> Iterator[Piece]:
        """Yields until the answer is done, or Ctrl-C is seen between two passes. `shown` says how much is unread."""
        for left in self.conversation.read():
            shown.update(text=f"reading {left} tokens")
            if interrupt.asked:
                return self.conversation.close()
        with contextlib.closing(self.conversation.write()) as pieces:
            for piece in pieces:
                yield piece
                if interrupt.asked:
                    return None

    def help(self, _: str) -> None:
        for name, (_, argument, text) in COMMANDS.items():
            others = ", ".join(alias for alias, of in ALIASES.items() if of == name)
            note(f"{f'{name} {argument}':19} {text}" + f" (also {others})" * bool(others), "")
        note(KEYS, "")

    def reset(self, _: str) -> None:
        self.conversation.reset()
        self._file.switch()
        note("all turns are forgotten")

    def undo(self, _: str) -> None:
        question = self.conversation.undo()
        note(f"forgotten: {question[:60]}{'…' * (len(question) > 60)}")

    def retry(self, _: str) -> None:
        conversation = self.conversation
        question, how = conversation.undo(), conversation.how
        conversation.how = replace(how, seed=how.seed + 1)
        note(f"seed {conversation.how.seed}")
        conversation.say(question)
        self.answer()

    def system(self, text: str) -> None:
        if text:
            self.conversation.system = unquoted(text) or None
        note(f"system turn: {self.conversation.system or 'none'}")

    def set(self, text: str) -> None:
        """Takes NAME=VALUE, NAME VALUE, or the name of a preset."""
        name, _, value = text.removeprefix("parameter ").replace("=", " ", 1).partition(" ")
        need(bool(name) or not text, "NAME=VALUE", repr(text))
        if name == "system":
            return self.system(value)
        if name == "thinking":
            need(value in SWITCH, "thinking=on or thinking=off", repr(value))
            self.conversation.thinking = SWITCH[value]
        elif name:
            self.conversation.how = with_option(self.conversation.how, name, value.strip())
        how = self.conversation.how
        note(f"{how}, thinking={self.conversation.thinking}" if not name else f"{name}: {value or 'set'}")

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
        self._file.switch()
        self.show_turns()

    def go_on(self) -> None:
        """Takes up the chat that was kept last. Mistake where there is none, or it is another model's."""
        path = last()
        self.conversation.load(path)
        self._file.switch(path, self.conversation.messages)
        self.show_turns()

    def show_turns(self) -> None:
        """Shows what was said before, without thoughts."""
        tokenizer = self.conversation.tokenizer
        for message in self.conversation.messages:
            content = message["content"]
            tokens = content.tokens if isinstance(content, GeneratedText) else tokenizer.encode(content)
            note("> " * (message["role"] == "user") + tokenizer.decode(split_thinking(tokenizer, tokens)[1]))

    def leave(self, _: str) -> None:
        raise EOFError


Command = tuple[Callable[[Session, str], None], str, str]
COMMANDS: dict[str, Command] = {  # name -> method, arguments, help
    "/help": (Session.help, "", "this"),
    "/reset": (Session.reset, "", "forget all turns"),
    "/undo": (Session.undo, "", "forget the last question and its answer"),
    "/retry": (Session.retry, "", "ask the last question again, with the next seed"),
    "/system": (Session.system, "[TEXT]", 'a system turn before all others; "" for none'),
    "/set": (Session.set, "[NAME=VALUE]", "seed, max_tokens, deadline, verify, thinking, or what --preset takes"),
    "/mode": (Session.mode, "[MODE]", "how answers are written"),
    "/steps": (Session.steps, "[N]", "passes a block may take"),
    "/save": (Session.save, "FOLDER", "the turns, and the cache with what the model has read"),
    "/load": (Session.load, "FOLDER", "go on with what was saved"),
    "/quit": (Session.leave, "", "leave, as Ctrl-D does"),
}
ALIASES = {"/?": "/help", "/clear": "/reset", "/regenerate": "/retry", "/exit": "/quit", "/bye": "/quit", "/q": "/quit"}


def folder_of(text: str) -> Path:
    need(bool(text), "a folder", "nothing")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~ of somebody who is not there
        raise Mistake(f"{text}: {error}") from None


def unquoted(text: str) -> str:
    '''Returns what stands between """ and """, or between two quotes; any other text as it is.'''
    bare = text.strip()
    if bare.startswith('"""'):
        return bare.removeprefix('"""').removesuffix('"""').strip("\n")
    return "" if bare == '""' else text


def result(line: str) -> Any:
    """Returns what the line is as JSON, or else the line."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(line)
    return line


def outcome(answer: Answer | None, max_tokens: int) -> str:
    if answer is None or not answer.steps_per_block:
        return "stopped before the first block was done"
    numbers = f"{len(answer.tokens)} tokens, {answer.steps} steps, {answer.seconds:.2f} s"
    if answer.finish_reason is None:
        return f"stopped; what is finished is kept: {numbers}"
    empty = not (answer.text or answer.calls or answer.finish_reason in CUT)
    full = answer.finish_reason == "length" and len(answer.tokens) < max_tokens
    cut = " (cut where the context is full: /reset)" if full else CUT.get(answer.finish_reason, "")
    return "an empty answer: " * empty + numbers + cut
