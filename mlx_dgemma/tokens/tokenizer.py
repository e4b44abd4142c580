"""Text <-> tokens: the vocabulary, the chat template, the thinking channel, and text as it streams.

Ids agree with transformers' AutoTokenizer; it is not used, because importing it takes seconds.
"""

import codecs
import functools
import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import tokenizers

from ..checkpoint.folder import read_json
from ..errors import Mistake, NotFound

CHANNEL_OPEN, CHANNEL_CLOSE = "<|channel>", "<channel|>"
CHANNEL_LABEL = "thought\n"  # the first line of a thinking channel names it and is no part of what was thought
BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")  # byte fallback: one byte of a character that is not in the vocabulary


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    `special_tokens` maps the names that a chat template may use ("bos_token", ...) to their text. `bos_token`,
    `eos_token` and their ids are None where the folder names none.
    """

    def __init__(self, folder: str | Path):
        """Reads tokenizer.json and, where there are any, tokenizer_config.json and chat_template.jinja.

        FileNotFoundError: there is no tokenizer.json. ValueError: one of the files cannot be used.
        """
        self._folder = Path(folder)
        self._backend = _load_backend(self._folder / "tokenizer.json")
        config = _load_json(path) if (path := self._folder / "tokenizer_config.json").is_file() else {}
        self._template = _load_template(self._folder, config)
        self.special_tokens = _special_tokens(config, self._backend)
        # transformers: a token that the config names is special, whatever tokenizer.json says of it.
        added = self._backend.get_added_tokens_decoder()
        named = {i: t for t in self.special_tokens.values() if (i := self.token_id(t)) is not None}
        self._special_ids = {i for i, token in added.items() if token.special} | set(named)
        self._backend.add_special_tokens([t for i, t in named.items() if i not in added or not added[i].special])
        self.bos_token, self.eos_token = map(self.special_tokens.get, ("bos_token", "eos_token"))
        self.bos_token_id, self.eos_token_id = self.token_id(self.bos_token or ""), self.token_id(self.eos_token or "")
        self.vocab_size: int = self._backend.get_vocab_size()
        self.has_chat_template: bool = self._template is not None
        self.is_byte_level: bool = isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel)

    def token_id(self, token: str) -> int | None:
        """The id of one token by its exact text, None where the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def piece(self, token: int) -> str | None:
        """What the vocabulary writes for an id ("▁the", "<0xE2>"); None for what text never shows: special, unknown."""
        return None if token in self._special_ids else self._backend.id_to_token(token)

    def spelling(self, vocab_size: int) -> list[bytes]:
        """The bytes that each id adds to a text; b"" for what text never shows, and for a byte piece where another id
        writes the same."""
        letters = _byte_of_letter() if self.is_byte_level else {}
        spelt, seen = [b""] * vocab_size, set()
        pieces = [(i, piece) for i in range(min(vocab_size, self.vocab_size)) if (piece := self.piece(i))]
        for i, piece in sorted(pieces, key=lambda known: bool(BYTE_PIECE.fullmatch(known[1]))):
            if self.is_byte_level and letters.keys() >= set(piece):
                text = bytes(map(letters.get, piece))
            elif BYTE_PIECE.fullmatch(piece):
                text = bytes([int(piece[3:5], 16)])
            else:
                text = piece.replace("▁", " ").encode()
            if text not in seen:
                seen.add(text)
                spelt[i] = text
        return spelt

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, none added; special tokens written in it become their ids. ValueError: not valid Unicode."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            surrogate = re.search("[\ud800-\udfff]", text)
            if surrogate is None:
                raise
            where = f"{surrogate.group()!a} at character {surrogate.start()}"
            raise Mistake(f"text must be valid Unicode, got half a character, {where}: remove it") from error

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that make no character become U+FFFD, ids outside the vocabulary nothing."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def chat(
        self,
        messages: list[dict],
        *,
        thinking: bool = False,
        add_generation_prompt: bool = True,
        tools: list[dict] | None = None,
    ) -> list[int]:
        """Ids of a conversation, [{"role": "user", "content": "..."}, ...], as the model's chat template writes it.

        `tools` are what the model may call, [{"type": "function", "function": {"name": ..., ...}}, ...].
        As in the reference, a special token inside a message counts as that token. ValueError: there is no template,
        it refuses these messages, or it does what its sandbox forbids.
        """
        if self._template is None:
            remedy = "add chat_template.jinja to the folder, or give the text as it is with --raw"
            raise Mistake(f"the tokenizer in {self._folder} has no chat template: {remedy}")
        if not messages or not all(isinstance(message, dict) for message in messages):
            raise Mistake(f'need a list of messages, {{"role": ..., "content": ...}}, got {messages!r:.80}')
        # A copy made of plain JSON: the template, which is foreign code, never holds an object of ours. A key without
        # a value is dropped, as transformers does: templates ask whether a key is there.
        plain = json.loads(json.dumps([{k: v for k, v in m.items() if v is not None} for m in messages]))
        # `enable_thinking` is always given: where it is left out, some templates and tools take it for on.
        flags = {"add_generation_prompt": add_generation_prompt, "enable_thinking": thinking, "tools": tools}
        return self.encode(self._render(plain, json.loads(json.dumps(flags))))

    def split_thinking(self, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        """Generated ids -> (thinking, answer), each in order, without the channels' delimiters and label lines.

        A channel that was never closed is all thinking; a vocabulary without channels has only answers.
        """
        return _Channels(self).push(ids)

    def _render(self, messages: list[dict], flags: dict[str, Any]) -> str:
        import jinja2

        try:
            return self._compiled.render(messages=messages, documents=None, **flags, **self.special_tokens)
        except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            # Its own complaint, a fault in it, what the sandbox forbids, or what one of its expressions raised.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise Mistake(f"the chat template in {self._folder} failed, {reason}") from error

    @functools.cached_property
    def _compiled(self):
        """The template in a sandbox, with the helpers that transformers gives to templates."""
        import jinja2.ext  # here, because it takes longer to import than all else in this module
        import jinja2.sandbox

        def raise_exception(message):
            raise jinja2.TemplateError(message)

        def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # jinja2's escapes HTML
            options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators}
            return json.dumps(value, sort_keys=sort_keys, **options)

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        return environment.from_string(self._template)


class TextStream:
    """Text of ids as they are generated: the pieces of the answer, joined, are the answer decoded at once.

    A character is never cut: bytes that a later id may still join are held back. The cost of a push is that of the
    ids pushed, however much went before.
    """

    def __init__(self, tokenizer: Tokenizer):
        text = _ByteLevelText if tokenizer.is_byte_level else _PieceText
        self._channels = _Channels(tokenizer)
        self._thinking, self._answer = text(tokenizer), text(tokenizer)

    def push(self, ids: Iterable[int]) -> tuple[str, str]:
        """(thinking, answer): the text that these ids complete; either may be empty."""
        thinking_ids, answer_ids = self._channels.push(ids)
        thinking = self._thinking.push(thinking_ids)
        if not self._channels.inside:
            thinking += self._thinking.finish()  # or its last character would come after the answer
        return thinking, self._answer.push(answer_ids)

    def finish(self) -> tuple[str, str]:
        """(thinking, answer): what was held back; a character that stayed unfinished comes as U+FFFD."""
        return self._thinking.finish(), self._answer.finish()


class _Channels:
    """Sorts ids, as they come, into thinking and answer."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        ends = tokenizer.token_id(CHANNEL_OPEN), tokenizer.token_id(CHANNEL_CLOSE)
        self._open, self._close = (None, None) if None in ends else ends  # half a channel would never close
        self.inside = False
        self._label: list[int] | None = None  # ids that may yet become the label line; None once that is decided

    def push(self, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        thinking, answer = [], []
        for token in map(int, ids):
            if token in (self._open, self._close):
                self.inside = token == self._open
                self._label = [] if self.inside else None
            elif not self.inside:
                answer.append(token)
            elif self._label is None or self._tokenizer.piece(token) is None:
                thinking.append(token)
            else:
                thinking += self._after_label(token)
        return thinking, answer

    def _after_label(self, token: int) -> list[int]:
        """Takes one more id of the first line; returns those now known to be thinking."""
        label = [*self._label, token]
        text = self._tokenizer.decode(label)
        if text != CHANNEL_LABEL and CHANNEL_LABEL.startswith(text):
            self._label = label
            return []
        self._label = None
        if not text.startswith(CHANNEL_LABEL):
            return label
        # A piece may cross the end of the label ("\n\n"): what it holds beyond is thinking, under other ids.
        return self._tokenizer.encode(text[len(CHANNEL_LABEL) :])


class _PieceText:
    """Text of pieces that hold whole characters, apart from runs of byte pieces.

    A run is held until it ends: the decoder takes all of it for UTF-8 or, if one byte is wrong, none of it. The piece
    before is decoded along and cut off again, because some decoders trim the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the last id that went out and is no byte
        self._held: list[int] = []  # byte pieces

    def push(self, ids: list[int]) -> str:
        settled, last = 0, []
        for token in ids:
            if (piece := self._tokenizer.piece(token)) is not None:
                self._held.append(token)
                if not BYTE_PIECE.fullmatch(piece):
                    settled, last = len(self._held), [token]
        text = self._release(settled)
        self._before = last or self._before
        return text

    def finish(self) -> str:
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        if count == 0:  # and nothing is copied, or a long run would cost its square
            return ""
        ready, self._held = self._held[:count], self._held[count:]
        return self._tokenizer.decode(self._before + ready)[len(self._tokenizer.decode(self._before)) :]


class _ByteLevelText:
    """Text of pieces that spell bytes, one letter a byte, and so may end inside a character."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: list[int]) -> str:
        letters = _byte_of_letter()
        text = bytearray()
        for piece in filter(None, map(self._tokenizer.piece, ids)):
            # Not all letters of the alphabet: an added token, written as it is.
            text += bytes(map(letters.get, piece)) if letters.keys() >= set(piece) else piece.encode()
        return self._utf8.decode(text)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet for bytes: printable Latin-1 stands for itself, the rest follow in order from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise NotFound(f"{path.parent} has no tokenizer.json: copy it from the checkpoint the weights are of")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        _load_json(path)  # if it is not even JSON, that is the message
        raise Mistake(f"{path} is no usable tokenizer ({error}): update tokenizers, or fetch it again") from error
    # A file may carry the settings of a training run; cutting or padding a prompt is never wanted here.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _load_json(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise Mistake(f"{path} must hold a JSON object, got {type(value).__name__}: fetch the file again")
    return value


def _load_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise Mistake(f"{path} is not UTF-8 text ({error}): fetch the file again") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(config: dict[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str]:
    """Name -> text. transformers: GemmaTokenizer, whose defaults stand in for what the config leaves out."""
    names = [n for n in ("bos", "eos", "pad", "unk", "mask") if backend.token_to_id(f"<{n}>") is not None]
    tokens = {f"{name}_token": f"<{name}>" for name in names}
    extra = config.get("extra_special_tokens")
    for name, value in (config | (extra if isinstance(extra, dict) else {})).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens
