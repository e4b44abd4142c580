"""Conversations -> prompts: the turns of people, programs and the model, as the chat template wants them."""

from collections.abc import Iterable, Sequence

from ..errors import Mistake
from .parts import GeneratedText
from .stream import CHANNEL_CLOSE, CHANNEL_OPEN
from .tokenizer import Tokenizer
from .tools import CALL_CLOSE, CALL_OPEN, QUOTE, RESPONSE_CLOSE, RESPONSE_OPEN

IN_A_TURN = (CHANNEL_OPEN, CHANNEL_CLOSE, CALL_OPEN, CALL_CLOSE, RESPONSE_OPEN, RESPONSE_CLOSE, QUOTE)


def prompt_tokens(
    tokenizer: Tokenizer,
    prompt: str | Sequence[dict],
    *,
    system: str | None = None,
    thinking: bool = False,
    special_tokens: bool = False,
) -> list[int]:
    """Encodes a question, or a conversation [{"role", "content"}, ...], as the chat template writes it.

    Control tokens that it spells are text; with `special_tokens` they are tokens, as in the reference.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    last = messages[-1] if messages else {}
    if isinstance(last, dict) and not str(last.get("content") or "").strip():
        raise Mistake("the prompt is empty: say what you want")
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return tokenizer.chat(messages, thinking=thinking, special_tokens=special_tokens)


def generated_text(tokenizer: Tokenizer, ids: Iterable[int]) -> GeneratedText:
    """Makes the content of an assistant's message from ids: the model's, and `response_tokens` among them.

    Those of thinking channels, tool calls and their results stay control tokens, so that the template can take the
    thinking out and the model sees its calls as it wrote them. Tokens that begin or end a turn or a text are dropped,
    as are all others that text never shows: a turn cannot forge another. A message of a client has a plain str, in
    which nothing is a control token.
    """
    kept = set(map(tokenizer.token_id, IN_A_TURN))
    tokens = [token for token in ids if token in kept or tokenizer.piece(token) is not None]
    return GeneratedText(tokenizer.decode(tokens, skip_special_tokens=False), tokens)


def to_json(messages: Sequence[dict]) -> list[dict]:
    """Records messages with the ids of what the model wrote, for `from_json`."""
    return [
        message | ({"tokens": content.tokens} if isinstance(content := message["content"], GeneratedText) else {})
        for message in messages
    ]


def from_json(tokenizer: Tokenizer, records: Sequence[dict]) -> list[dict]:
    """Reads what `to_json` recorded. It believes the ids: give it no record that a client could have written."""
    contents = [generated_text(tokenizer, r["tokens"]) if "tokens" in r else r["content"] for r in records]
    return [{"role": r["role"], "content": content} for r, content in zip(records, contents, strict=True)]
