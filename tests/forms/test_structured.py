"""--json-schema, --template and --choices, as their user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import schema_rates

from mlx_dgemma.generate.__main__ import main

PROMPT = ("--prompt", "Extract JSON: Ivan, a clerk from Kyiv, is 43 years old.")
DOCUMENT = '{"name": "Ivan", "age": 43, "job": "clerk", "city": "Kyiv"}'


@pytest.fixture
def run(capfd):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capfd.readouterr()
        return code, out, "".join(line for line in err.splitlines(True) if "no --model given" not in line)

    return call


@pytest.fixture
def person(tmp_path) -> str:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(schema_rates.TASK))
    return str(path)


def test_json_that_a_schema_allows(run, person):
    code, out, err = run(*PROMPT, "--json-schema", person)
    assert (code, out) == (0, DOCUMENT + "\n") and err.startswith("60 tokens in")


def test_many_prompts_with_one_schema(run, person, tmp_path):
    lines = [PROMPT[1], "Sort: Lima, Kyiv", "Extract JSON: The vet Zoe (31) lives in Oslo."]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
    options = ("--json-schema", person, "--max-tokens", "100", "--max-denoising-steps", "8")
    code, out, _ = run("--prompts", str(tmp_path / "p.jsonl"), *options)
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    assert code == 0 and all(schema_rates.valid(schema_rates.TASK, text) for text in texts)
    assert texts[0] == DOCUMENT


def test_a_template(run):
    text = '{{"name": "{name}", "age": {age:integer}, "job": "{job:clerk|vet}", "city": "{city}"}}'
    code, out, _ = run(*PROMPT, "--template", text, "--json")
    found = json.loads(out)
    assert code == 0 and found["text"] == DOCUMENT
    assert found["slots"] == {"name": "Ivan", "age": "43", "job": "clerk", "city": "Kyiv"}


def test_choices(run):
    choices = '"{""name"": ""Ivan"", ""age"": 43}",yes,"{""name"": ""Zoe""}"'
    code, out, err = run(*PROMPT, "--choices", choices)
    assert (code, out) == (0, '{"name": "Ivan", "age": 43}\n') and "%" in err
    code, out, _ = run(*PROMPT, "--choices", choices, "--json")
    found = json.loads(out)
    assert found["text"] == '{"name": "Ivan", "age": 43}'
    assert list(found["probabilities"])[1] == "yes" and sum(found["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--json-schema", "multiple"), ("multiple", "#/properties/x/multipleOf cannot be held")),
        (("--json-schema", "broken"), ("broken is not JSON",)),
        (("--json-schema", "wrong"), ("wrong: no JSON schema", "#/type")),
        (("--json-schema", "missing"), ("missing: no such file",)),
        (("--json-schema", "person.json", "--max-tokens", "20"), ("takes 46 tokens", "room for 20", "max_tokens")),
        (("--json-schema", "person.json", "--thinking"), ("--thinking", "--json-schema")),
        (("--template", "no slots"), ("no slots", "{name}")),
        (("--template", "{a}", "--choices", "a,b"), ("--template and --choices",)),
        (("--choices", "a"), ("2 to 1000 choices",)),
        (("--choices", "a,b", "--watch"), ("--watch",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_mistakes(run, person, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("multiple").write_text('{"properties": {"x": {"type": "integer", "multipleOf": 3}}}')
    Path("broken").write_text("{")
    Path("wrong").write_text('{"type": "strin"}')
    code, out, err = run(*PROMPT, *arguments)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1, err
    for word in words:
        assert word in err, err


def test_the_example():
    example = Path(__file__).parents[2] / "examples" / "schema.py"
    assert len(example.read_text().splitlines()) < 40
    found = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=True)
    assert found.stdout == "{'name': 'Tess', 'age': 40, 'job': 'vet', 'city': 'Accra'}\n"
