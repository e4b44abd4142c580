"""Completions: a text behind a prompt as it is, or in its gap."""

from collections.abc import Sequence

from ..fill.gap_length import SURE
from ..fill.infill import Infill, fill_prompt, gap_lengths, texts_around
from ..tokens.messages import prompt_tokens
from ..writing.diffuse import check_answer
from .bodies import MOST_PROMPTS, Completion
from .engine import Engine
from .fim import plan_gap, plan_quick_gaps, sentinels
from .openai import CompletionWire
from .plan import Answers, Plan, ask_of, form_of
from .refusal import Refusal
from .tasks import Question


def plan_completion(engine: Engine, body: Completion) -> Plan:
    """Plans a text behind a prompt, or in its gap. Without `raw` the prompt is a question, as in a chat."""
    prompts = _prompts(body.prompt)
    scored = body.logprobs is not None and body.logprobs is not False
    marked = None
    if len(prompts) == 1 and isinstance(prompts[0], str):
        marked = sentinels(prompts[0]) if body.suffix is None else (prompts[0], body.suffix)
    if (body.fill is not None or marked) and (body.echo or scored):
        raise Refusal(400, "echo and logprobs are of a text behind a prompt, not of a gap", "echo")
    if body.fill is not None:
        return plan_fill(engine, body, texts_around(body.fill))
    if len(prompts) > 1 and body.suffix is not None:
        raise Refusal(400, "suffix goes with one prompt", "suffix")
    if marked:
        return plan_gap(engine, body, *marked, longest=body.max_tokens)
    if body.choices:
        raise Refusal(400, "choices are for /v1/chat/completions", "choices")
    if scored and body.stream:
        raise Refusal(400, "logprobs are of the whole text: leave out stream", "logprobs")
    return plan_answers(engine, body, prompts, scored)


def plan_answers(engine: Engine, body: Completion, prompts: Sequence[str | list], scored: bool) -> Answers:
    """Plans answers to each of `prompts`; `scored`: with the log-probability of each token."""
    ask, warnings = ask_of(engine, body, body.max_tokens)
    language, count, questions = form_of(engine, body, ask), body.n or 1, []
    for number, prompt in enumerate(prompts):
        tokens = _tokens(engine, prompt, bool(body.raw))
        check_answer(engine.model, len(tokens), ask)
        echo = None
        if body.echo:
            echo = prompt if isinstance(prompt, str) else engine.alphabet.decode(tokens)
        question = Question(
            tokens=tokens,
            ask=ask,
            count=count,
            first=number * count,
            stops=body.stops,
            language=language,
            drafts=bool(body.drafts),
            scored=scored,
            echo=echo,
        )
        questions.append(question)
    longest = max(len(question.tokens) for question in questions)
    rows = min(count * len(questions), max(engine.places, count))
    return Answers(body, ask, longest, warnings, rows=rows, questions=questions)


def plan_fill(engine: Engine, body: Completion, texts: Sequence[str]) -> Plan:
    """Plans to fill a text with gaps, as the command `fill` does."""
    gap = [body.gap] if isinstance(body.gap, int) else body.gap
    request = Infill(
        prompt=_tokens(engine, body.prompt or fill_prompt(texts), bool(body.raw and body.prompt)),
        texts=texts,
        lengths=gap_lengths(gap, len(texts) - 1),
        heal=bool(body.heal),
        tries=body.tries or SURE,
        longest=body.max_tokens,
    )
    return plan_quick_gaps(engine, body, request, show=lambda filled: (filled.text, {"gaps": filled.gaps}))


def plan_fim(engine: Engine, body: Completion) -> Plan:
    """Plans what Mistral's /v1/fim/completions asks for: a gap in any case."""
    if not isinstance(body.prompt, str):
        raise Refusal(400, "prompt: need a text", "prompt")
    return plan_gap(engine, body, body.prompt, body.suffix or "", longest=body.max_tokens)


def _prompts(prompt: str | list) -> list[str | list]:
    """Returns the prompts of a completion: one text, one list of token ids, or several of either."""
    several = isinstance(prompt, list) and prompt and all(isinstance(part, str | list) for part in prompt)
    if several and len(prompt) > MOST_PROMPTS:
        raise Refusal(400, f"prompt: {MOST_PROMPTS} are taken at once, got {len(prompt)}", "prompt")
    return prompt if several else [prompt]


def _tokens(engine: Engine, prompt: str | list, raw: bool) -> list[int]:
    if not prompt:
        raise Refusal(400, "the prompt is empty: say what you want", "prompt")
    if isinstance(prompt, str):
        tokenizer = engine.tokenizer
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return start + tokenizer.encode(prompt) if raw else prompt_tokens(tokenizer, prompt)
    size = engine.model.facts.vocab_size
    if not all(type(token) is int and 0 <= token < size for token in prompt):
        raise Refusal(400, f"prompt: need texts, or lists of token ids below {size}", "prompt")
    return list(prompt)


ENDPOINTS = {
    "/v1/completions": (Completion, plan_completion, CompletionWire),
    "/v1/fim/completions": (Completion, plan_fim, CompletionWire),
}
