"""Tools that must be called: every text that may be written is a call that is read as it was meant, and a call that is
right stays as it is."""

from __future__ import annotations

import json
import random
import shutil
from itertools import product

import jsonschema
import numpy as np
import pytest
import schema_rates
from fakes import FakeModel, facts
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scripted import BPE

from mlx_dgemma.errors import Mistake
from mlx_dgemma.forms import schema
from mlx_dgemma.forms.automaton import Budget
from mlx_dgemma.forms.calls import calls
from mlx_dgemma.forms.language import Language, begin_within
from mlx_dgemma.forms.lattice import Vocabulary
from mlx_dgemma.forms.notation import CALLS, END, QUOTE, THOUGHT, THOUGHT_END, call_open
from mlx_dgemma.seam.model import Text
from mlx_dgemma.tokens.tokenizer import Tokenizer
from mlx_dgemma.tokens.tools import CALL_OPEN, RESPONSE_OPEN, CallStream, ToolCall
from mlx_dgemma.writing.answer import Answer
from mlx_dgemma.writing.ask import Ask
from mlx_dgemma.writing.batch import run
from mlx_dgemma.writing.sampling import Sampling

TEMPLATE = """{% macro argument(value) %}
{%- if value is string %}{{ '<|"|>' + value + '<|"|>' }}
{%- elif value is boolean %}{{ 'true' if value else 'false' }}
{%- elif value is mapping %}{{ '{' }}
{%- for key, inner in value | dictsort %}{{ ',' if not loop.first }}{{ key }}:{{ argument(inner) }}{% endfor %}{{ '}' }}
{%- elif value is sequence %}[
{%- for inner in value %}{{ ',' if not loop.first }}{{ argument(inner) }}{% endfor %}]
{%- else %}{{ value }}{% endif %}{% endmacro %}
{%- for m in messages %}{% for c in m.tool_calls or [] %}{{ '<|tool_call>call:' + c.function.name }}
{{- argument(c.function.arguments) + '<tool_call|>' }}{% endfor %}{% endfor %}"""
TOKENIZER = Tokenizer(BPE)
SHAPE = facts(vocab_size=TOKENIZER.vocab_size, canvas_length=64, max_position_embeddings=4096, stop_ids=(1, 6, 17))
VOCABULARY = Vocabulary(TOKENIZER, TOKENIZER.vocab_size)
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "Unit": {"enum": ["C", "F"]}},
    "required": ["city", "days"],
}
SETTINGS = settings(
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
RANDOMS = st.randoms(use_true_random=False)


def tool(name: str, parameters: dict) -> dict:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def language(*tools: dict, several: bool = False, thinking: bool = False, model=None) -> Language:
    automaton = calls(tools, several=several, thinking=thinking, budget=Budget())
    return Language(model or FakeModel([], SHAPE), VOCABULARY, automaton, CALLS)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, special_tokens=True)


def read(tokens) -> list[ToolCall]:
    return CallStream(TOKENIZER).push(tokens)[1]


def parameters(draw: random.Random) -> dict:
    """A schema of arguments: members of any name, and a map."""
    names = draw.sample(schema_rates.WORDS, draw.randint(0, 3))
    properties = {name: schema_rates.random_schema(draw, 2) for name in names}
    if draw.random() < 0.4:
        properties["map"] = {"type": "object", "additionalProperties": schema_rates.random_schema(draw, 1)}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if draw.random() < 0.6],
    }


@pytest.mark.slow
@SETTINGS
@given(RANDOMS)
def test_every_text_of_the_language_is_read_as_a_document_of_its_schema(draw):
    """Tokens are drawn, not bytes: the ways through a vocabulary, control tokens among them."""
    made = [parameters(draw) for _ in range(2)]
    held = language(tool("f", made[0]), tool("g.2", made[1]), several=True)
    for _ in range(5):
        tokens, state, room = [], 0, int(held.lattice.left[0]) + draw.randint(0, 40)
        while state != held.lattice.end:
            token = int(draw.choice(held.lattice.following(state, room - len(tokens)).ids))
            state = held.lattice.walk(state, [token])
            tokens.append(token)
        made_calls = read(tokens)
        assert tokens.count(ids(CALL_OPEN)[0]) == len(made_calls) >= 1 and len(tokens) <= room
        for call in made_calls:
            jsonschema.validate(call.arguments, made["fg".index(call.name[0])])


@pytest.fixture(scope="module")
def templated(tmp_path_factory):
    folder = shutil.copytree(BPE, tmp_path_factory.mktemp("calls") / "bpe")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Tokenizer(folder)


@pytest.mark.slow
@SETTINGS
@given(draw=RANDOMS)
def test_what_the_template_writes_of_a_document_is_in_the_language(templated, draw):
    made = parameters(draw)
    documents, held = schema.automaton(made), language(tool("f", made))
    for _ in range(8):
        document = json.loads(schema_rates.sampled(documents, draw))
        call = {"type": "function", "function": {"name": "f", "arguments": document}}
        tokens = templated.chat([{"role": "assistant", "tool_calls": [call]}], add_generation_prompt=False)
        if read(tokens) != [ToolCall("f", document)] or not documents.matches(json.dumps(document).encode()):
            continue  # a name that cannot be read back; a number of more digits than are written
        text = VOCABULARY.text(tokens)
        assert held.lattice.automaton.matches(text), text
        assert VOCABULARY.encode(text) == tokens
        assert call_open("f") + CALLS.written(document) + END == text


@pytest.mark.parametrize(
    "name", ["a:b", "", " a", "a ", "{", "x,y", "[0]", '"a"', "\xa0", "Größe", "a b", "天空", "1", "None"]
)
def test_any_name_of_a_member_is_read_back(name):
    held = language(tool("f", {"type": "object", "properties": {name: {"const": "x"}}, "required": [name]}))
    assert read(held.lattice.ending(0).tolist()) == [ToolCall("f", {name: "x"})]


@pytest.mark.parametrize("null", ["null", "None"])
@pytest.mark.parametrize("of", [{"type": ["null", "boolean"]}, {"enum": ["x", None]}])
def test_null_is_as_templates_of_any_date_write_it(null, of):
    held = language(tool("f", {"type": "object", "properties": {"n": of}}))
    assert held.lattice.automaton.matches(call_open("f") + b"{n:%b}" % null.encode() + END)


def test_no_text_is_a_control_token():
    """The vocabulary has a piece for each byte."""
    held = language(tool("f", {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}))
    inside = held.lattice.walk(0, ids('<|tool_call>call:f{n:<|"|>'))
    for byte in range(0xF8, 0x100):
        assert held.lattice.walk(inside, [TOKENIZER.token_id(f"<0x{byte:02X}>")]) < 0
    assert held.lattice.walk(inside, [*TOKENIZER.encode('<|"|>}<tool_call|>'), *ids('<|"|>}<tool_call|>')]) >= 0
    with pytest.raises(Mistake, match="half a character"):
        language(tool("f", {"type": "object", "properties": {"n": {"const": "\udcfa"}}, "required": ["n"]}))
    with pytest.raises(Mistake, match="no call can have this name"):
        language(tool("f{}", {"type": "object"}))
    assert QUOTE not in '"<|"|>"\U0010ffff'.encode()


PROMPT = [2, 5]


class Says(FakeModel):
    """It says what it is told to; left to right, where that may not stand, whatever may."""

    def __init__(self, said: bytes, **more):
        super().__init__([], SHAPE, **more)
        self.said = np.array([*VOCABULARY.encode(said), TOKENIZER.token_id(RESPONSE_OPEN), *[0] * 512])

    def _predict(self, row):
        at, row.cache.passes = len(row.cache.tokens) + len(row.pending) - len(PROMPT), 0
        self.script = [(self.said[at : at + len(row.canvas)], [])]
        return super()._predict(row)

    def autoregress(self, continuations, draw):
        [text] = continuations
        text.cache.tokens += text.pending.tokens.tolist()
        token = int(self.said[len(text.cache.tokens) - len(PROMPT)])
        if text.allowed is not None and token not in text.allowed.ids:
            token = int(text.allowed.ids[0])
        text.cache.tokens.append(token)
        yield [token]


def answered(mode: str, said: bytes, *tools: dict, max_tokens: int = 256, deadline=None, **options) -> Answer:
    clock = iter(range(1000))
    model = Says(said, clock=lambda: next(clock))
    ask = Ask(mode=mode, max_tokens=max_tokens, deadline=deadline, sampling=Sampling(max_denoising_steps=8))
    answer = Answer(SHAPE, TOKENIZER, max_tokens, PROMPT)
    for step in run(model, [begin_within(model, Text(PROMPT), ask, language(*tools, model=model, **options))]):
        answer.add(step)
    return answer


def written(*made: ToolCall) -> bytes:
    return b"".join(call_open(call.name) + CALLS.written(call.arguments) + END for call in made)


OSLO, TIME = ToolCall("weather", {"city": 'O"slo <|"|>\n', "days": 2}), ToolCall("time", {})
TOOLS = tool("weather", WEATHER), tool("time", {"type": "object", "properties": {}})
HMM = THOUGHT + b"thought\nIt may be cold {there}, or not. " * 9 + THOUGHT_END  # more than a canvas
MODES = pytest.mark.parametrize("mode", ["diffusion", "ar"])


RIGHT = written(OSLO)
SAID = {
    "as the template": RIGHT,
    "in another order": RIGHT.replace(b"{", b"{days:2, ").replace(b"\xfa,days:2", b"\xfa,wind:1"),
    "in JSON's quotes": RIGHT.replace(b'\xfaO"slo <|"|>\n\xfa', json.dumps(OSLO.arguments["city"]).encode()),
    "behind words": b"I shall look. " + RIGHT,
}


@pytest.mark.parametrize("tools", [TOOLS[:1], TOOLS])
@pytest.mark.parametrize(("mode", "said"), [*product(("diffusion", "ar"), SAID)][:-1])  # which it is not let say
def test_a_call_that_is_meant_is_made(mode, tools, said):
    answer = answered(mode, SAID[said], *tools)
    assert (answer.calls, answer.text, answer.finish_reason) == ([OSLO], "", "stop")


@MODES
def test_thoughts_stand_before_a_call_and_are_free(mode):
    answer = answered(mode, HMM + RIGHT, *TOOLS, thinking=True)
    assert answer.calls == [OSLO] and answer.thinking.count("It may be cold {there}, or not. ") == 9
    answer = answered(mode, RIGHT, *TOOLS, thinking=True)
    assert (answer.calls, answer.thinking, answer.text) == ([OSLO], "", "")


@MODES
def test_several_calls_are_made_where_they_may_be(mode):
    said = written(OSLO, TIME)
    assert answered(mode, said, *TOOLS, several=True).calls == [OSLO, TIME]
    assert answered(mode, said, *TOOLS).calls == [OSLO]


@MODES
@pytest.mark.parametrize("said", ["It is four degrees there.", '{"city": "Oslo", "days": 2}', ""])
def test_whatever_is_said_a_tool_is_called(mode, said):
    answer = answered(mode, said.encode(), TOOLS[0])
    [call] = answer.calls
    jsonschema.validate(call.arguments, WEATHER)
    assert (answer.text, answer.finish_reason) == ("", "stop")


@MODES
def test_a_call_is_whole_at_its_last_token_and_at_a_deadline(mode):
    least = int(language(*TOOLS[:1], thinking=True).lattice.left[0])
    for more in ({"max_tokens": least}, {"max_tokens": least + 64}, {"deadline": 2}):
        answer = answered(mode, HMM * 9, TOOLS[0], thinking=True, **more)
        [call] = answer.calls
        jsonschema.validate(call.arguments, WEATHER)
        assert answer.text == "" and answer.finish_reason == ("deadline" if "deadline" in more else "stop")
