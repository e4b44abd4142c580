"""--json-schema, --template and --choices, as their user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import schema_rates
from terminals import mistake

PROMPT = ("--prompt", "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old.")
DOCUMENT = '{"name": "Ivan", "age": 43, "job": "clerk", "city": "Kyiv"}'


@pytest.fixture
def person(tmp_path) -> str:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(schema_rates.TASK))
    return str(path)


def test_json_that_a_schema_allows(run, person):
    code, out, err = run(*PROMPT, "--json-schema", person)
    assert (code, out) == (0, DOCUMENT + "\n") and "\n60 tokens in" in err


def test_a_template(run):
    text = '{{"name": "{name}", "age": {age:integer}, "job": "{job:clerk|vet}", "city": "{city}"}}'
    code, out, _ = run(*PROMPT, "--template", text, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["text"] == DOCUMENT
    assert answer["slots"] == {"name": "Ivan", "age": "43", "job": "clerk", "city": "Kyiv"}


def test_choices(run):
    choices = '"{""name"": ""Ivan"", ""age"": 43}",yes,"{""name"": ""Zoe""}"'
    code, out, err = run(*PROMPT, "--choices", choices)
    assert (code, out) == (0, '{"name": "Ivan", "age": 43}\n') and "%" in err
    code, out, _ = run(*PROMPT, "--choices", choices, "--json")
    answer = json.loads(out)
    assert answer["text"] == '{"name": "Ivan", "age": 43}'
    assert list(answer["probabilities"])[1] == "yes" and sum(answer["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--json-schema", "set"), ("set", "#/properties/x/uniqueItems cannot be held")),
        (("--json-schema", "broken"), ("broken is not JSON",)),
        (("--json-schema", "wrong"), ("wrong: no JSON schema", "#/type")),
        (("--json-schema", "missing"), ("missing: no such file",)),
        (("--json-schema", "person.json", "--max-tokens", "20"), ("takes 46 tokens", "room for 20", "max_tokens")),
        (("--json-schema", "person.json", "--thinking"), ("--thinking", "--json-schema")),
        (("--template", "no slots"), ("no slots", "{name}")),
        (("--template", "{a}", "--choices", "a,b"), ("--template and --choices",)),
        (("--choices", "a"), ("2 to 1000 choices",)),
        (("--choices", "a,b", "--watch"), ("--watch",)),
        (("--choices", "a,b", "--preset", "fast"), ("--preset", "--choices", "leave it out")),
        (("--choices", "a,b", "--max-denoising-steps", "3"), ("--max-denoising-steps", "--choices")),
        (("--choices", "a,b", "--max-tokens", "8"), ("--max-tokens", "--choices")),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_mistakes(run, person, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("set").write_text('{"properties": {"x": {"items": {"type": "integer"}, "uniqueItems": true}}}')
    Path("broken").write_text("{")
    Path("wrong").write_text('{"type": "strin"}')
    mistake(run(*PROMPT, *arguments), *words)
