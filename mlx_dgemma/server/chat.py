"""Chats: messages, tools and forms -> a plan of answers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..forms.notation import JSON
from ..tokens.messages import prompt_tokens
from ..tokens.tokenizer import Tokenizer
from ..tokens.tools import read_tools
from ..writing.batch import PIECE
from ..writing.diffuse import check_answer
from .bodies import Chat
from .engine import Engine
from .plan import Answers, Plan, ask_of, form_of
from .prefixes import common
from .refusal import Refusal
from .tasks import Question

OFF = {"none", "minimal", "instant", "off"}  # levels of thinking that are none


def plan_chat(engine: Engine, body: Chat) -> Plan:
    """Plans an answer to messages. Refusal, or Mistake, where it cannot be given."""
    tools = read_tools(body.tools) if body.tools and body.tool_choice != "none" else []
    ask, warnings = ask_of(engine, body, body.max_completion_tokens or body.max_tokens)
    forced, thinking = forced_tools(tools, body.tool_choice), thinks(body)
    most_calls = 1 if (body.model_extra or {}).get("parallel_tool_calls") is False else None
    several = body.tool_choice == "required" and most_calls is None
    calls = partial(engine.languages.of_calls, forced, ask.max_tokens, several=several, thinking=thinking)
    language = form_of(engine, body, ask, calls if forced else None)
    as_json = language is not None and language.notation is JSON
    if thinking and (as_json or body.choices):
        warnings.append("thinking has no effect: the text has a form from its first token on")
        thinking = False
    if tools and not engine.hears_tools:
        warnings.append("tools: the chat template of this model does not tell it of them")
    flags = {"thinking": thinking, "tools": tools or None}
    tokens = prompt_tokens(engine.tokenizer, body.messages, **flags)
    check_answer(engine.model, len(tokens), ask)
    if body.choices and body.stream:
        raise Refusal(400, "choices are given at once: leave out stream", "stream")
    if body.logprobs and body.stream:
        warnings.append("logprobs has no effect in a stream: they are of the whole text")
    question = Question(
        tokens=tokens,
        ask=ask,
        count=body.n or 1,
        stops=body.stops,
        language=language,
        mark=mark_of(engine.tokenizer, body.messages, tokens, flags),
        drafts=bool(body.drafts or body.diffusing),
        scored=bool(body.logprobs) and not body.stream,
        tool=_only_name(forced) if as_json and forced else None,
        most_calls=most_calls,
    )
    return Answers(body, ask, len(tokens), warnings, rows=body.n or 1, questions=[question])


def thinks(body: Chat) -> bool:
    """Returns whether the model is to think first."""
    reasoning = (body.model_extra or {}).get("reasoning")
    levels = [body.reasoning_effort, reasoning.get("effort") if isinstance(reasoning, dict) else None]
    level = next((level for level in levels if isinstance(level, str)), None)
    switches = [body.thinking, (body.chat_template_kwargs or {}).get("enable_thinking")]
    return next((bool(switch) for switch in switches if switch is not None), level is not None and level not in OFF)


def mark_of(tokenizer: Tokenizer, messages: Sequence[Any], tokens: Sequence[int], flags: dict) -> int:
    """Returns how many tokens the system's turns and the tools have: other prompts begin so, too."""
    system = [i for i, message in enumerate(messages) if message.get("role") in ("system", "developer")]
    if len(tokens) < PIECE or not (system or flags["tools"]):
        return 0
    other = [message for i, message in enumerate(messages) if i in system]
    return common(tokens, prompt_tokens(tokenizer, [*other, {"role": "user", "content": "\u2060"}], **flags))


def forced_tools(tools: list[dict], choice: str | dict | None) -> list[dict]:
    """Returns the tools of which one must be called; none where the model may choose."""
    if isinstance(choice, dict):
        function = choice.get("function")
        name = (function if isinstance(function, dict) else choice).get("name")
        chosen = [tool for tool in tools if tool["function"]["name"] == name]
        if not chosen:
            raise Refusal(400, f"tool_choice: there is no tool {name!r:.80}", "tool_choice")
        return chosen
    if choice not in (None, "auto", "none", "required"):
        raise Refusal(400, f"tool_choice: need auto, none, required or a tool, got {choice!r:.80}", "tool_choice")
    if choice == "required" and not tools:
        raise Refusal(400, "tool_choice: there are no tools to choose from", "tool_choice")
    return tools if choice == "required" else []


def _only_name(tools: list[dict]) -> str:
    """Returns the name of the only tool; "" where there are several."""
    return tools[0]["function"]["name"] if len(tools) == 1 else ""
