"""Conversations -> prompts: the turns of people, programs and the model, as clients record them and as the chat
template wants them."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from ..errors import Mistake
from .parts import GeneratedText, Parts
from .stream import CHANNEL_CLOSE, CHANNEL_LABEL, CHANNEL_OPEN, open_channel
from .tokenizer import Tokenizer
from .tools import CALL_CLOSE, CALL_OPEN, QUOTE, RESPONSE_CLOSE, RESPONSE_OPEN, read_tools

IN_A_TURN = (CHANNEL_OPEN, CHANNEL_CLOSE, CALL_OPEN, CALL_CLOSE, RESPONSE_OPEN, RESPONSE_CLOSE, QUOTE)
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
_ROLES |= {"developer": "system", "model": "assistant", "function": "tool", "human": "user", "ai": "assistant"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # type -> key
_BLOCKS = ("tool_use", "tool_result", "thinking", "redacted_thinking")  # Anthropic's parts that are no text
_PICTURES = ("image", "image_url", "input_image", "video", "video_url")


class MessageMistake(Mistake):
    """A message that cannot be used. `where` is its place in what was given, as "messages[1].content[0]"."""

    def __init__(self, where: str, problem: str):
        super().__init__(f"{where}: {problem}")
        self.where = where


def prompt_tokens(
    tokenizer: Tokenizer,
    prompt: str | Sequence[dict],
    *,
    system: str | None = None,
    thinking: bool = False,
    tools: Any = None,
    special_tokens: bool = False,
) -> list[int]:
    """Encodes a question, or a conversation, as the chat template writes it.

    Messages are as clients record them: see `template_messages`. Where the last one
    is the assistant's, the answer goes on from its end. `tools` are what the model may call, as `read_tools` takes
    them. Control tokens that any of this spells are text; with `special_tokens` they are tokens, as in the reference.

    Raises:
        Mistake: nothing is asked, or the template refuses this. MessageMistake: a message cannot be used.
    """
    messages = template_messages([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    begun = messages.pop() if messages and messages[-1]["role"] == "assistant" else {}
    if not messages or (messages[-1]["role"] != "tool" and not messages[-1]["content"].strip()):
        raise Mistake("the prompt is empty: say what you want")
    if begun.get("tool_calls"):
        where = f"messages[{len(messages)}].tool_calls"
        raise MessageMistake(where, "the last message calls tools: add a message of role tool with what came of it")
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    flags = {"thinking": thinking, "tools": read_tools(tools) if tools else None, "special_tokens": special_tokens}
    try:
        tokens = tokenizer.chat(messages, **flags)
    except Mistake:  # many templates want turns of user and model by turns
        joined = _joined(messages)
        if len(joined) == len(messages):
            raise
        messages, tokens = joined, tokenizer.chat(joined, **flags)
    if not begun:
        return tokens
    beginning = _beginning(tokenizer, tokens, begun, thinking=thinking, special_tokens=special_tokens)
    return tokenizer.chat(messages, **flags, beginning=beginning)


def hears_tools(tokenizer: Tokenizer, tools: list[dict]) -> bool:
    """Returns whether the chat template tells the model of `tools`, which are as `read_tools` returns them."""
    question = [{"role": "user", "content": "?"}]
    return tokenizer.chat(question, tools=tools) != tokenizer.chat(question)


def template_messages(given: Sequence[dict]) -> list[dict]:
    """Turns messages, as clients record them, into what chat templates want.

    They are OpenAI's, the items of its Responses among them, Anthropic's, Gemini's or LangChain's. `developer` is
    `system`. `content` may be null, missing, or a list of parts of text; it becomes a text. A call's arguments may be a
    JSON string; they become an object. A tool's result may name its call by id, by the tool's name or, where the
    results have the order of the calls, not at all; it gets both. Thoughts (`reasoning_content`, `reasoning` or
    `thinking`) stay. MessageMistake names the message that cannot be used, as one with a picture.
    """
    records = [(f"messages[{i}]", _with_role(record)) for i, record in enumerate(given)]
    turns = [(where, turn) for where, record in records for turn in _without_blocks(record)]
    messages: list[dict] = []
    names: dict[str, str] = {}  # id of a call -> tool
    waiting: list[str] = []  # ids of calls that have no result yet
    for where, message in turns:
        if not isinstance(message, dict):
            need = 'need a list of messages, {"role": ..., "content": ...}'
            raise MessageMistake(where, f"{need}, got {message!r:.80}")
        if "role" not in message and "type" in message:
            raise MessageMistake(where, f"need a message, a call or its output, got {message!r:.80}")
        if (role := _ROLES.get(str(message.get("role")))) is None:
            raise MessageMistake(f"{where}.role", f"need one of {', '.join(_ROLES)}, got {message.get('role')!r:.80}")
        turn = {"role": role, "content": _message_text(message, where)}
        if role == "assistant":
            thoughts = next(filter(None, map(message.get, ("reasoning_content", "reasoning", "thinking"))), None)
            turn |= {"reasoning_content": thoughts} if isinstance(thoughts, str) else {}
            if calls := _calls(message, where, len(names)):
                names |= {call["id"]: call["function"]["name"] for call in calls}
                turn = _with_calls(turn, calls, messages)
                waiting = [call["id"] for call in turn["tool_calls"]]
        elif role == "tool":
            turn |= _answered_call(message, where, names, waiting)
        messages.append(turn)
    return messages


def _with_calls(turn: dict, calls: list[dict], messages: list[dict]) -> dict:
    """Returns the turn with its calls. Calls behind calls, as Responses list them, join that turn, which leaves
    `messages`."""
    if messages and messages[-1].get("tool_calls") and turn == {"role": "assistant", "content": ""}:
        turn = messages.pop()
    return turn | {"tool_calls": [*turn.get("tool_calls", ()), *calls]}


def _with_role(message: Any) -> Any:
    """Returns an item of OpenAI's Responses, or a message of Gemini's or LangChain's, as one with role and content."""
    if not isinstance(message, dict):
        return message
    kind = message.get("type")
    if kind == "function_call":
        return {"role": "assistant", "tool_calls": [{"id": message.get("call_id"), "function": message}]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": message.get("call_id"), "content": message.get("output")}
    if "role" not in message and isinstance(kind, str) and kind in _ROLES:
        message = {"role": kind, **(message["data"] if isinstance(message.get("data"), dict) else message)}
    if message.get("content") is None and isinstance(message.get("parts"), list):
        message = {"role": "user", **message, "content": [_anthropic_block(part) for part in message["parts"]]}
    return message


def _anthropic_block(part: Any) -> Any:
    """Returns a part of Gemini's as a block of Anthropic's."""
    if not isinstance(part, dict) or "type" in part:
        return part
    if isinstance(call := part.get("functionCall", part.get("function_call")), dict):
        return {"type": "tool_use", "id": call.get("id"), "name": call.get("name"), "input": call.get("args")}
    if isinstance(result := part.get("functionResponse", part.get("function_response")), dict):
        content = json.dumps(result.get("response"), ensure_ascii=False)
        return {"type": "tool_result", "tool_use_id": result.get("id"), "name": result.get("name"), "content": content}
    if "inlineData" in part or "inline_data" in part:
        return {"type": "image"}
    return {"type": "thinking", "thinking": part.get("text")} if part.get("thought") else {"type": "text", **part}


def _without_blocks(message: Any) -> list[Any]:
    """Returns the messages of OpenAI's that one of Anthropic's stands for, whose calls, results and thoughts are blocks
    of its content; any other as it is."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(message, dict) and message.get("type") == "reasoning":  # thoughts of OpenAI's, which are not shown
        return []
    blocks: dict[str, list[dict]] = {kind: [] for kind in _BLOCKS}
    parts = content if isinstance(content, list) else []
    for part in parts:
        if isinstance(part, dict) and part.get("type") in _BLOCKS:
            blocks[part["type"]].append(part)
    results = [{"role": "tool", "tool_call_id": b.get("tool_use_id"), **b} for b in blocks["tool_result"]]
    calls = [{"id": b.get("id"), "function": {**b, "arguments": b.get("input")}} for b in blocks["tool_use"]]
    thoughts = "".join(block["thinking"] for block in blocks["thinking"] if isinstance(block.get("thinking"), str))
    if results and len(results) == len(parts):
        return results
    more = ({"tool_calls": calls} if calls else {}) | ({"reasoning_content": thoughts} if thoughts else {})
    return [*results, message | more if more else message]


def _message_text(message: dict, where: str) -> str:
    """Returns the text of a message."""
    content = message.get("content")
    if message.get("images"):  # Ollama's
        raise MessageMistake(f"{where}.images", "this reads text only, no pictures: leave them out")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise MessageMistake(f"{where}.content", f"need a text or a list of parts, got {content!r:.80}")
    return "".join(_part_text(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if str(kind) in _BLOCKS:
        return ""
    if str(kind) in _PICTURES:
        raise MessageMistake(where, f"this reads text only, no pictures: leave out the part of type {kind!r}")
    text = part.get(_TEXT_PARTS.get(str(kind))) if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise MessageMistake(where, f'need {{"type": "text", "text": …}}, got {part!r:.80}')
    return text


def _calls(message: dict, where: str, before: int) -> list[dict]:
    """Returns the calls of an assistant's message, each with an id, and its arguments as an object."""
    calls = message.get("tool_calls")
    if calls is None and message.get("function_call"):  # OpenAI's of 2023
        calls = [{"function": message["function_call"]}]
    if not isinstance(calls, list | None):
        raise MessageMistake(f"{where}.tool_calls", f"need a list of calls, got {calls!r:.80}")
    read = []
    for i, call in enumerate(calls or []):
        place, function = f"{where}.tool_calls[{i}]", call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise MessageMistake(place, f'need {{"function": {{"name": …, "arguments": …}}}}, got {call!r:.80}')
        arguments = _arguments(function.get("arguments", function.get("args")), f"{place}.function.arguments")
        function = {"name": function["name"], "arguments": arguments}
        read.append({"id": str(call.get("id") or f"call {before + i}"), "type": "function", "function": function})
    return read


def _arguments(given: Any, where: str) -> dict:
    arguments = given or {}
    if isinstance(given, str) and given.strip():
        with suppress(ValueError, RecursionError):
            arguments = json.loads(given)
    if not isinstance(arguments, dict):
        raise MessageMistake(where, f"need an object, or one as a JSON string, got {given!r:.80}")
    return arguments


def _answered_call(message: dict, where: str, names: dict[str, str], waiting: list[str]) -> dict:
    """Returns id and name of the call that a tool's message has the result of, and takes it from those `waiting`."""
    identifier, name = message.get("tool_call_id"), message.get("name") or message.get("tool_name")
    if identifier is None:
        like = [call for call in waiting if name is None or names[call] == name]
        if not like:
            return {"name": name} if isinstance(name, str) else {}
        identifier = like[0]
    call = str(identifier)
    if call not in names:
        raise MessageMistake(f"{where}.tool_call_id", f"no call before it has the id {identifier!r:.80}")
    if call in waiting:
        waiting.remove(call)
    return {"tool_call_id": call, "name": names[call]}


def _joined(messages: list[dict]) -> list[dict]:
    """Joins turns of one role that follow each other, but not those of tools and their calls."""
    kinds = [message["role"] if message.keys() == {"role", "content"} else i for i, message in enumerate(messages)]
    runs = groupby(zip(kinds, messages, strict=True), lambda turn: turn[0])
    turns = [[message for _, message in run] for _, run in runs]
    return [turn[0] | {"content": "\n\n".join(message["content"] for message in turn)} for turn in turns]


def _beginning(tokenizer: Tokenizer, prompt: list[int], begun: dict, *, thinking: bool, special_tokens: bool) -> Parts:
    """Returns what follows on the prompt: the part of the answer that the assistant's last message has already."""
    content: str = begun["content"]
    answer = tokenizer.split(content) if special_tokens else [content]
    if isinstance(content, GeneratedText):
        answer = tokenizer.decode_parts(content.tokens)
    opening, closing = map(tokenizer.token_id, (CHANNEL_OPEN, CHANNEL_CLOSE))
    opened, thoughts = bool(open_channel(tokenizer, prompt)), begun.get("reasoning_content") if thinking else None
    if opening is None or closing is None or not (opened or thoughts):
        return answer
    channel = [*([] if opened else [opening, CHANNEL_LABEL]), f"{thoughts}\n"] if thoughts else []
    return [*channel, *([closing] if content else []), *answer]


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
