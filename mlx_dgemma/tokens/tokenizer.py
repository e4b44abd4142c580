"""Text <-> tokens: the vocabulary of a checkpoint folder.

Ids agree with transformers' AutoTokenizer; it is not used, because importing it takes seconds.
"""

import functools
import json
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers

from ..checkpoint.description import OBJECT, TOKENIZER_CONFIG
from ..checkpoint.folder import is_file, read_bytes, read_json
from ..errors import Mistake, NoRoom, NotFound
from .parts import GeneratedText, Parts, check_unicode, marked
from .references import without_references
from .template import ChatTemplate, read_template

PART, CUT_PIECES = 200_000, 100  # characters that are counted at a time; tokens that a cut may add at most
BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")  # byte fallback: one byte of a character that is not in the vocabulary


class Tokenizer:
    """The tokenizer of a checkpoint folder.

    `special_tokens` maps the names that a chat template may use ("bos_token", ...) to their text. `bos_token`,
    `eos_token` and their ids are None where the folder names none.
    """

    def __init__(self, folder: str | Path, most_tokens: int | None = None):
        """Reads tokenizer.json and, where there are any, tokenizer_config.json and the chat template. A text that has
        more than `most_tokens` is a Mistake, known before all of it is encoded.

        NotFound: there is no tokenizer.json. Mistake: one of the files cannot be used.
        """
        self.folder, self._most_tokens = Path(folder), most_tokens
        self._backend = _load_backend(self.folder / "tokenizer.json")
        path = self.folder / "tokenizer_config.json"
        config = read_json(path, TOKENIZER_CONFIG) if is_file(path) else {}
        template = read_template(self.folder, config)
        self.special_tokens = _special_tokens(config, self._backend)
        # transformers: a token that the config names is special, whatever tokenizer.json says of it.
        added = self._backend.get_added_tokens_decoder()
        named = {i: t for t in self.special_tokens.values() if (i := self.token_id(t)) is not None}
        self._backend.add_special_tokens([t for i, t in named.items() if i not in added or not added[i].special])
        self._special = named | {i: token.content for i, token in added.items() if token.special}
        self._special_ids = {text: i for i, text in self._special.items()}
        longest_first = sorted(map(re.escape, self._special_ids), key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        unknown = self.token_id(self.special_tokens.get("unk_token", ""))
        self._control_ids = self._special.keys() - {unknown}  # the unknown token stands for a character of the text
        self._backend.encode_special_tokens = True  # as text: `split` takes out those that count as tokens
        self.bos_token, self.eos_token = map(self.special_tokens.get, ("bos_token", "eos_token"))
        self.bos_token_id, self.eos_token_id = self.token_id(self.bos_token or ""), self.token_id(self.eos_token or "")
        self.vocab_size: int = self._backend.get_vocab_size()
        self.last_id: int = max([self.vocab_size - 1, *added])
        self.is_byte_level: bool = isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel)
        self.has_chat_template: bool = template is not None
        self._template = None
        if template is not None:
            self._template = ChatTemplate(template, self.folder, self.special_tokens, self.split)

    def token_id(self, token: str) -> int | None:
        """Returns the id of one token by its exact text, None where the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def piece(self, token: int) -> str | None:
        """Returns what the vocabulary writes for an id ("▁the", "<0xE2>"); None for special and unknown ids, which
        text never shows."""
        return None if token in self._special else self._backend.id_to_token(token)

    def spelling(self, vocab_size: int) -> list[bytes]:
        """Returns the bytes that each id adds to a text; b"" for ids that text never shows, and for a byte piece where
        another id writes the same."""
        letters = byte_of_letter() if self.is_byte_level else {}
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

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Returns the ids of `text`, none added. Special tokens written in it are text, letter by letter; with
        `special_tokens` they become their ids. ValueError: not valid Unicode."""
        return self.encode_parts(self.split(text) if special_tokens else [text])

    def encode_parts(self, parts: Parts) -> list[int]:
        """Returns the ids of text (str) and tokens (int); text that no token parts is encoded together."""
        ids: list[int] = []
        for is_text, run in groupby(parts, key=lambda part: isinstance(part, str)):
            if is_text:
                ids += self._encode_text("".join(run))
            else:
                ids += run
        return ids

    def split(self, text: str) -> Parts:
        """Splits `text` at the special tokens written in it."""
        pieces = self._special_pattern.split(text)  # text and tokens in turn
        return [self._special_ids[piece] if i % 2 else piece for i, piece in enumerate(pieces) if piece]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of `ids`; bytes that make no character become U+FFFD, ids outside the vocabulary nothing."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def decode_parts(self, ids: Iterable[int]) -> Parts:
        """Returns the text between special tokens, and those tokens."""
        parts: Parts = []
        for is_special, run in groupby(ids, key=self._special.__contains__):
            if is_special:
                parts += run
            else:
                parts.append(self.decode(run))
        return parts

    def chat(
        self,
        messages: list[dict],
        *,
        thinking: bool = False,
        add_generation_prompt: bool = True,
        tools: list[dict] | None = None,
        special_tokens: bool = False,
        beginning: Parts = (),
    ) -> list[int]:
        """Returns the ids of a conversation, [{"role": "user", "content": "..."}, ...], as the chat template writes it.

        `tools` are what the model may call, [{"type": "function", "function": {"name": ..., ...}}, ...]; what their
        schemas refer to is put in its place, for templates do not look it up. `beginning` is what the answer has.
        Control tokens come from the template's literals, and from the ids of a GeneratedText: `<turn|>` in any other
        string of messages and tools is text. ValueError: there is no template, it refuses these messages, or it does
        what its sandbox forbids.
        """
        if self._template is None:
            remedy = "add chat_template.jinja to the folder, or give the text as it is with --raw"
            raise Mistake(f"the tokenizer in {self.folder} has no chat template: {remedy}")
        if not messages or not all(isinstance(message, dict) for message in messages):
            raise Mistake(f'need a list of messages, {{"role": ..., "content": ...}}, got {messages!r:.80}')
        for content in (message.get("content") for message in messages):
            if isinstance(content, str):
                self._check_length(content)
        # A copy made of plain JSON: the template, which is foreign code, never holds an object of ours. A key without
        # a value is dropped, as transformers does: templates ask whether a key is there.
        plain = json.loads(json.dumps([{k: v for k, v in m.items() if v is not None} for m in messages]))
        # `enable_thinking` is always given: where it is left out, some templates and tools take it for on.
        flags = {"add_generation_prompt": add_generation_prompt, "enable_thinking": thinking}
        flags |= {"tools": tools and [_for_template(tool) for tool in tools]}
        flags = json.loads(json.dumps(flags))
        if special_tokens:  # transformers: a token that a message spells counts as that token
            return self.encode_parts([*self.split(self._template.text(plain, flags)), *beginning])
        check_unicode(json.dumps([plain, flags], ensure_ascii=False))  # or a message could hold marks
        for message, copied in zip(messages, plain, strict=True):
            if isinstance(content := message.get("content"), GeneratedText):
                copied["content"] = marked(self.decode_parts(content.tokens))
        return self.encode_parts([*self._template.parts(plain, flags), *beginning])

    def _check_length(self, text: str) -> None:
        """Raises Mistake where a text has more tokens than the model has places for, once enough of it is counted."""
        if self._most_tokens is None or len(text) <= max(PART, self._most_tokens):
            return
        count = 0
        for start in range(0, len(text), PART):
            part = text[start : start + PART]
            check_unicode(part)
            count += len(self._backend.encode(part, add_special_tokens=False).ids) - CUT_PIECES
            if count > self._most_tokens:
                few = f"the first {start + PART} of its {len(text)} characters alone do not fit in {self._most_tokens}"
                raise NoRoom(f"the prompt is longer than the context: {few} tokens; shorten it")

    def _encode_text(self, text: str) -> list[int]:
        self._check_length(text)
        check_unicode(text)
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids):
            return ids
        # The vocabulary's merges spelled a special token after all: its characters then, each for itself.
        return [i for token in ids for i in (self._letters(token) if token in self._control_ids else [token])]

    def _letters(self, token: int) -> list[int]:
        letters = self._special[token]
        return [i for letter in letters for i in self._backend.encode(letter, add_special_tokens=False).ids]


def _for_template(tool: Any) -> Any:
    """Returns a tool with what its schema refers to in its place."""
    function = tool.get("function") if isinstance(tool, dict) else None
    schema = function.get("parameters") if isinstance(function, dict) else None
    if not isinstance(schema, dict) or '"$ref"' not in json.dumps(schema):
        return tool
    return tool | {"function": function | {"parameters": without_references(schema)}}


@functools.cache
def byte_of_letter() -> dict[str, int]:
    """Returns GPT-2's alphabet for bytes: printable Latin-1 stands for itself, the rest follow from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    if not is_file(path):
        raise NotFound(f"{path.parent} has no tokenizer.json: copy it from the checkpoint the weights are of")
    data = read_bytes(path)
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises nothing narrower
        read_json(path, OBJECT)  # if it is not even an object, that is the message
        raise Mistake(f"{path} is no usable tokenizer ({error}): update tokenizers, or fetch it again") from error
    # A file may carry the settings of a training run; cutting or padding a prompt is never wanted here.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(config: dict[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str]:
    """Returns name -> text. transformers: GemmaTokenizer, whose defaults stand in for what the config leaves out."""
    names = [n for n in ("bos", "eos", "pad", "unk", "mask") if backend.token_to_id(f"<{n}>") is not None]
    tokens = {f"{name}_token": f"<{name}>" for name in names}
    extra = config.get("extra_special_tokens")
    for name, value in (config | (extra if isinstance(extra, dict) else {})).items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens
