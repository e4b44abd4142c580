"""The chat template against transformers, and templates that must be refused."""

import json
import resource
import sys
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizer_folders import ASTRONAUT, BPE, TINY, copy

from mlx_dgemma.errors import Mistake
from mlx_dgemma.tokens.stream import split_thinking
from mlx_dgemma.tokens.tokenizer import Tokenizer

CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": f"  Hi {ASTRONAUT}<eos> \n"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<|channel>thought\neasy<channel|>2", "tool_calls": None},
        {"role": "user", "content": "And \"2\" + '2'?"},
    ],
]
PLAIN = [  # no special token is written in these: what counts as one makes no difference
    [{"role": "user", "content": "Why is the sky blue? <a href='x|y'> | <b>"}],
    [{"role": "system", "content": " Be <brief>.\n"}, {"role": "user", "content": f"  Hi {ASTRONAUT}<|turn \n"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2, of course |>", "tool_calls": None},
        {"role": "user", "content": "turn> And \"2\" + '2'?"},
    ],
]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("messages", CHATS + PLAIN)
def test_chat_equals_transformers(folder, tokenizer, reference, messages, thinking):
    auto = reference(folder)
    for prompt in (True, False):
        expected = auto.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=prompt, enable_thinking=thinking
        )
        flags = {"thinking": thinking, "add_generation_prompt": prompt}
        assert tokenizer.chat(messages, **flags, special_tokens=True) == expected
        if messages in PLAIN:
            assert tokenizer.chat(messages, **flags) == expected


def test_tools_are_declared_as_in_the_reference(tmp_path, folder, reference):
    """Tokens stand in the template's text and in its strings, in macros and behind escapes."""
    template = (
        '{% macro quoted(text) %}{{ "<|\\"|>" + text + \'<|"|>\' }}{% endmacro %}{{ bos_token }}'
        "{% for t in tools or [] %}<|tool>{{ t.function.name }}{{ quoted(t.function.description) }}<tool|>{% endfor %}"
        "{% for m in messages %}{% set role = {'assistant': 'model'}[m.role] or m.role %}{{- '<|turn>' + role + '\n' }}"
        "{% for c in m.tool_calls or [] %}<|tool_call>call:{{ c.function.name }}{{ '{' }}{% for k, v in "
        "c.function.arguments | dictsort %}{{ k }}:{{ quoted(v) if v is string else v }}{% endfor %}}<tool_call|>"
        "{% endfor %}{{ m.content or '' | trim }}{{ '<turn|>\n' }}{% endfor %}"
    )
    folder = copy(folder, tmp_path, template=template)
    tools = [{"type": "function", "function": {"name": "weather", "description": "of a <city>\n", "parameters": {}}}]
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "O|slo>", "days": 2}}}]
    messages = [{"role": "user", "content": "Cold?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    expected = reference(folder).apply_chat_template(messages, tools=tools, return_dict=False)
    assert Tokenizer(folder).chat(messages, tools=tools, add_generation_prompt=False) == expected


def test_a_template_has_the_helpers_of_transformers(tmp_path, reference):
    template = (
        "{% for m in messages %}\n  {% if loop.first %}\n{% continue %}\n  {% endif %}\n"
        "{{ m | tojson }}{{ m | tojson(indent=1, sort_keys=true) }}{{ strftime_now('%Y') }}\n{% endfor %}\n"
        "{{ bos_token }}{{ eos_token }}{{ think_token }}{{ sep_token }}{{ tools is none }}{{ enable_thinking }}\n"
    )
    folder = copy(BPE, tmp_path, template=template)
    messages = [{"role": "user", "content": "x"}, {"role": "user", "content": "<b>é & 'ü'</b>", "tool_calls": None}]
    expected = reference(folder).apply_chat_template(messages, return_dict=False, enable_thinking=True)
    assert Tokenizer(folder).chat(messages, thinking=True, add_generation_prompt=False) == expected


@pytest.mark.parametrize("as_list", [False, True])
def test_the_template_may_stand_in_the_config(tmp_path, reference, as_list):
    template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    folder = copy(BPE, tmp_path, template=None, config={"chat_template": listed if as_list else template})
    messages = [{"role": "user", "content": "hello"}]
    expected = reference(folder).apply_chat_template(messages, return_dict=False)
    assert (
        Tokenizer(folder).chat(messages) == expected == Tokenizer(folder).encode("<bos>hello<eos>", special_tokens=True)
    )


@pytest.mark.parametrize("as_list", [False, True])
def test_the_template_may_stand_in_chat_template_json(tmp_path, as_list):
    """As processors wrote it until 2025. The file of today comes first, the config last."""
    template = "{{ bos_token }}json{{ messages[0]['content'] }}"
    listed = [{"name": "default", "template": template}, {"name": "rag", "template": "no"}]
    folder = copy(BPE, tmp_path, template=None, config={"chat_template": "config"})
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": listed if as_list else template}))
    messages = [{"role": "user", "content": "hello"}]
    assert Tokenizer(folder).decode(Tokenizer(folder).chat(messages)) == "jsonhello"
    (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfjinja")
    assert Tokenizer(folder).decode(Tokenizer(folder).chat(messages)) == "jinja"


def real_words(folder: Path) -> Tokenizer:
    """A tokenizer of whole words that have the ids of the published checkpoint."""
    ids = {"<bos>": 2, "<|turn>": 105, "<turn|>": 106, "<|channel>": 100, "<channel|>": 101, "<|think|>": 98}
    special = list(ids)
    ids |= {"user": 2364, "model": 4368, "thought": 45518, "\n": 107, "Why": 11355, "▁is": 563, "▁the": 506}
    ids |= {"▁sky": 7217, "▁blue": 3730, "?": 236881, "<unk>": 3}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    words.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"▁?\w+|\n|\?"), "isolated")
    words.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    words.add_special_tokens(special)
    return Tokenizer(copy(BPE, folder, tokenizer=words.to_str()))


def test_the_golden_prompt(tmp_path):
    """The ids that the published model is given for a question when it is not to think."""
    golden = [2, 105, 2364, 107, 11355, 563, 506, 7217, 3730, 236881, 106, 107, 105, 4368, 107, 100, 45518, 107, 101]
    tokenizer = real_words(tmp_path)
    assert tokenizer.chat([{"role": "user", "content": "Why is the sky blue?"}]) == golden
    assert split_thinking(tokenizer, golden[12:]) == ([], [105, 4368, 107])
    assert split_thinking(tokenizer, [100, 45518, 107, 11355, 101, 563, 506, 106]) == ([11355], [563, 506, 106])


def test_no_template(tmp_path):
    tokenizer = Tokenizer(copy(BPE, tmp_path, template=None))
    assert not tokenizer.has_chat_template and Tokenizer(BPE).has_chat_template
    with pytest.raises(ValueError, match=r"has no chat template.*--raw"):
        tokenizer.chat(CHATS[0])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "SecurityError.*__class__"),
        ("{{ cycler.__init__.__globals__.os.getcwd() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError.*append"),
        ("{{ messages[0].update({'role': 'model'}) }}", "SecurityError.*update"),
        ("{{ range(1000000000) | list }}", "OverflowError"),
        ("{{ raise_exception('roles must\n alternate') }}", "TemplateError: roles must alternate$"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{{ nothing.at_all }}", "UndefinedError.*nothing"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include 'other' %}", "TypeError|TemplateNotFound"),
    ],
)
def test_a_hostile_or_broken_template_is_refused(tmp_path, template, message):
    tokenizer = Tokenizer(copy(TINY, tmp_path, template=template))
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer.chat(messages)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert messages == [{"role": "user", "content": "Hi"}]


ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "writes": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "a list in a list": "{% set x = range(9999) | list %}{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "a loop that calls itself": "{% for a in [[1]] * 9 recursive %}{{ loop([[1]] * 9) }}{% endfor %}",
    "calls that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "times": "{{ 'a' * 10 ** 10 }}",
    "plus": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "tilde": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a block": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}{{ n.x }}",
    "a macro": "{% macro f(n) %}{% if n %}{% set x = f(n - 1) %}{{ x }}{{ x }}{% else %}ab{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "join": "{{ ([messages[0].content * 90000] * 99999) | join }}",
    "join of a method": "{{ ''.join([messages[0].content * 90000] * 99999) }}",
    "join of an attribute": "{{ [{'a': messages[0].content * 90000}] * 99999 | join(attribute='a') }}",
    "sum": "{{ [[1] * 99999] * 99999 | sum(start=[]) | length }}",
    "replace": "{{ ('a' * 99999).replace('', 'b' * 99999) | length }}",
    "replace as a filter": "{{ 'a' * 99999 | replace('a', 'b' * 99999) }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "indent": "{{ ('\n' * 99999) | indent(99999) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "format as a filter": "{{ '%9999999999d' | format(1) }}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "tojson": "{{ [[1] * 9999] * 9 | tojson(indent=99999) }}",
    "strftime": "{{ strftime_now('%9999999999Y') }}",
    "powers": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "batch": "{{ [1] | batch(10 ** 10, 1) | list }}",
    "itself": "{{ messages | string * 10 ** 9 }}",
    "long": "{# " + "x" * 600_000 + " #}",
    "nested": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.sample(5)
def test_a_template_that_does_not_end_is_refused_soon(tmp_path, what):
    started = time.thread_time()
    with pytest.raises(Mistake, match="chat template in") as caught:
        Tokenizer(copy(TINY, tmp_path, template=ENDLESS[what])).chat([{"role": "user", "content": "Hi"}])
    assert time.thread_time() - started < 2 and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3_000_000 or sys.platform == "darwin"


@pytest.mark.slow
def test_long_conversations_are_within_the_bounds(tmp_path):
    template = "{% for m in messages %}{{ m.role ~ m.content | replace('x', 'yy') }}{{ m | tojson }}{% endfor %}"
    tokenizer = Tokenizer(copy(TINY, tmp_path, template=template))
    messages = [{"role": "user", "content": "x" * 3000}] * 50
    assert len(tokenizer.chat(messages)) > 50 * 9000
    # Gemma's looks back from each message to all before it.
    template = (
        "{% for m in messages %}{% set n = namespace(role=0) %}{% for j in range(loop.index0 - 1, -1, -1) %}"
        "{% if not n.role and messages[j].role == 'tool' %}{% set n.role = j %}{% endif %}{% endfor %}{% endfor %}x"
    )
    tokenizer = Tokenizer(copy(TINY, tmp_path, template=template))
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "x"}] * 400)) == "x"


def test_the_template_refuses_an_unknown_role():
    with pytest.raises(ValueError, match='must be of user or model, not "tool"'):
        Tokenizer(BPE).chat([{"role": "user", "content": "Hi"}, {"role": "tool", "content": "x"}])


@pytest.mark.parametrize("messages", [[], ["Hi"], "Hi"])
def test_messages_must_be_messages(tokenizer, messages):
    with pytest.raises(ValueError, match="need a list of messages"):
        tokenizer.chat(messages)


def test_the_config_is_optional(tmp_path):
    """Gemma's names stand in: a prompt without <bos> would quietly be a worse one."""
    messages = CHATS[0]
    expected = Tokenizer(TINY).chat(messages)
    tokenizer = Tokenizer(copy(TINY, tmp_path, config=None))
    assert tokenizer.chat(messages) == expected
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")
