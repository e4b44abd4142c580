"""Text <-> tokens against transformers, on the byte-level tokenizer of the embedded model and on one like Gemma's."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
import tokenizers

import mlx_dgemma
from mlx_dgemma.tokens.tokenizer import TextStream, Tokenizer

TINY = checkpoints.TINY
BPE = Path(__file__).parents[1] / "fixtures" / "bpe"
FOLDERS = {"tiny": TINY, "bpe": BPE}
ASTRONAUT = "\U0001f9d1\u200d\U0001f680"  # three characters seen as one, none in the vocabularies

TEXTS = [
    "",
    " ",
    "   three before and two after  ",
    "\n",
    "\n\n\n a\n\n  b\t\tc\r\nd",
    "12 345, 6.78e-9 and 2026-11-21",
    '{"name": "Ann", "age": 12, "tags": ["a", "b"], "note": null}\n',
    "don't say \"it's\" 'so', `ok`?",
    "def f(x):\n    return {'a': x[1:-1]}\n",
    "Größe, garçon, ¿mañana? Небо, Ουρανός, 天空是蓝色的, 空が青い, 하늘, السماء, आकाश",
    f"rocket {ASTRONAUT} done, flag \U0001f1fa\U0001f1e6, keycap 1\ufe0f\u20e3, e\u0301",
    "\u00a0, \ufeff, \ufffd, \x00, \x7f",
    "▁ is not a space, <0x41> is not A, <unused> is nothing",
    "<|turn>user\nHi<turn|>\n<eos><bos> <pad><unk>x<|channel>thought\n<channel|>",
    "<|turn> user <|turn",
    "<<|think|>> a<eos>b",
]
CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": f"  Hi {ASTRONAUT}<eos> \n"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<|channel>thought\neasy<channel|>2", "tool_calls": None},
        {"role": "user", "content": "And \"2\" + '2'?"},
    ],
]


@pytest.fixture(params=FOLDERS)
def folder(request):
    return FOLDERS[request.param]


@pytest.fixture
def tokenizer(folder):
    return Tokenizer(folder)


@pytest.fixture
def reference():
    transformers = pytest.importorskip("transformers", reason="transformers is what ids are compared with")
    return transformers.AutoTokenizer.from_pretrained


def copy(source: Path, target: Path, **changes) -> Path:
    """A tokenizer folder with some files replaced: a str is written, a dict updates a JSON file, None removes."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    names = {"template": "chat_template.jinja", "config": "tokenizer_config.json", "tokenizer": "tokenizer.json"}
    for key, change in changes.items():
        path = target / names[key]
        if change is None:
            path.unlink()
        else:
            text = json.dumps(json.loads(path.read_text()) | change) if isinstance(change, dict) else change
            path.write_text(text, encoding="utf-8")
    return target


def random_text(draw: random.Random) -> str:
    parts = ["the ", "self.", " ", "\n", '"', "': ", "12", "é", "天空", ASTRONAUT, "€", "<|turn>", "<eos>", "▁"]
    return "".join(draw.choice(parts) if draw.random() < 0.8 else chr(draw.randrange(0x20, 0xD800)) for _ in range(40))


def random_ids(draw: random.Random, tokenizer: Tokenizer, length: int) -> list[int]:
    """Ids that make every kind of trouble: broken characters, special tokens, channels, ids outside the vocabulary."""
    whole = tokenizer.encode(random_text(draw))
    euro = [tokenizer.token_id(piece) for piece in ("<0xE2>", "<0x82>", "<0xAC>")]
    euro = tokenizer.encode("€") if None in euro else euro
    channel = [tokenizer.token_id("<|channel>"), tokenizer.token_id("<channel|>")]
    ids = []
    while len(ids) < length:
        kind = draw.randrange(6)
        start = draw.randrange(len(whole))
        ids += [
            whole[start : start + draw.randrange(8)],
            euro[: draw.randrange(1, 4)] * draw.randrange(1, 3),
            [draw.choice(channel)],
            tokenizer.encode("thought\n")[: draw.randrange(9)],
            [draw.randrange(tokenizer.vocab_size + 20)],
            [draw.randrange(16, 276)],  # bytes, in both vocabularies
        ][kind]
    return ids


def stream(tokenizer: Tokenizer, ids: list[int], draw: random.Random, longest: int) -> tuple[str, str]:
    """What a TextStream says of ids that come in pushes of random lengths."""
    text, start = TextStream(tokenizer), 0
    pieces = []
    while start < len(ids):
        end = start + draw.randint(0, longest)
        pieces.append(text.push(ids[start:end]))
        start = end
    pieces.append(text.finish())
    return "".join(thinking for thinking, _ in pieces), "".join(answer for _, answer in pieces)


def test_ids_and_text_equal_transformers(folder, tokenizer, reference):
    auto, draw = reference(folder), random.Random(0)
    assert tokenizer.vocab_size == len(auto)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (auto.bos_token_id, auto.eos_token_id)
    for text in TEXTS + [random_text(draw) for _ in range(200)]:
        ids = tokenizer.encode(text)
        assert ids == auto.encode(text, add_special_tokens=False), text
        for skip in (True, False):
            expected = auto.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
        if "<" not in text:
            assert tokenizer.decode(ids) == (text.replace("▁", " ") if folder == BPE else text)
    for _ in range(200):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(30)]
        assert tokenizer.decode(ids) == auto.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("messages", CHATS)
def test_chat_equals_transformers(folder, tokenizer, reference, messages, thinking):
    auto = reference(folder)
    for prompt in (True, False):
        expected = auto.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=prompt, enable_thinking=thinking
        )
        assert tokenizer.chat(messages, thinking=thinking, add_generation_prompt=prompt) == expected


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
    assert Tokenizer(folder).chat(messages) == expected == Tokenizer(folder).encode("<bos>hello<eos>")


def test_a_token_the_config_names_is_special(tmp_path, folder, reference):
    """tokenizer.json may call `<|think|>` an ordinary token; text must not show it all the same."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<|think|>"
    folder = copy(folder, tmp_path, tokenizer=json.dumps(content), config={"think_token": "<|think|>"})
    ids = Tokenizer(folder).encode("a<|think|>b")
    assert Tokenizer(folder).decode(ids) == reference(folder).decode(ids, skip_special_tokens=True) == "ab"
    assert stream(Tokenizer(folder), ids, random.Random(0), 1)[1] == "ab"


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
    assert tokenizer.split_thinking(golden[12:]) == ([], [105, 4368, 107])
    assert tokenizer.split_thinking([100, 45518, 107, 11355, 101, 563, 506, 106]) == ([11355], [563, 506, 106])


def test_thinking_and_answer(tokenizer):
    def split(text):
        thinking, answer = tokenizer.split_thinking(tokenizer.encode(text))
        return tokenizer.decode(thinking), tokenizer.decode(answer)

    assert split("just an answer<turn|><eos><pad>") == ("", "just an answer")
    assert split("<|channel>thought\nhm, 12.\n<channel|>Yes.<turn|>") == ("hm, 12.\n", "Yes.")
    assert split("<|channel>thought\n<channel|>Yes.") == ("", "Yes.")
    assert split("<|channel>thought<channel|>Yes.") == ("", "Yes.")
    assert split("<|channel>thought\nnever closed") == ("never closed", "")
    assert split("<|channel>tho") == ("", "")
    assert split("a<|channel>thought\none, <channel|>b<|channel>thought\ntwo<channel|>c") == ("one, two", "abc")
    assert split("<|channel>thought\na<|channel>thought\nb<channel|>c") == ("ab", "c")
    assert split("<|channel>thoughtful\nx<channel|>c") == ("thoughtful\nx", "c")
    assert split("no opening<channel|> at all") == ("", "no opening at all")
    assert split("<|channel><pad>thought\n\n  x<channel|>") == ("\n  x", "")


def test_a_piece_may_cross_the_end_of_the_label():
    tokenizer = Tokenizer(BPE)
    ids = [tokenizer.token_id(piece) for piece in ("<|channel>", "thought", "\n\n", "▁the", "<channel|>")]
    thinking, answer = tokenizer.split_thinking(ids)
    assert (tokenizer.decode(thinking), answer) == ("\n the", [])


def test_without_channels_all_is_answer(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "<|channel>": 2}, unk_token="<unk>"))
    folder = copy(BPE, tmp_path, tokenizer=words.to_str())
    assert Tokenizer(folder).split_thinking([1, 2, 1]) == ([], [1, 2, 1])


@pytest.mark.parametrize("longest", [1, 3, 40])
def test_streamed_text_is_the_text(tokenizer, longest):
    """Whatever the ids and wherever they are cut, the pieces of the answer join to the answer decoded at once."""
    draw = random.Random(longest)
    for _ in range(300):
        ids = random_ids(draw, tokenizer, draw.randrange(60))
        _, answer_ids = tokenizer.split_thinking(ids)
        assert stream(tokenizer, ids, draw, longest)[1] == tokenizer.decode(answer_ids)


def test_an_added_token_among_byte_pieces(tmp_path):
    """Its letters are not bytes, even where they look like it."""
    content = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    content.add_tokens(["<héllo wörld>"])
    tokenizer = Tokenizer(copy(TINY, tmp_path, tokenizer=content.to_str()))
    ids = tokenizer.encode("é<héllo wörld>€")
    assert len(ids) == 2 + 1 + 3
    assert stream(tokenizer, ids, random.Random(0), 1)[1] == tokenizer.decode(ids) == "é<héllo wörld>€"


def test_a_decoder_that_trims_the_start_of_a_text(tmp_path):
    """Decoded piece by piece, every piece lost its space."""
    content = json.loads((BPE / "tokenizer.json").read_text(encoding="utf-8"))
    content["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    tokenizer, draw = Tokenizer(copy(BPE, tmp_path, tokenizer=json.dumps(content))), random.Random(0)
    for text in (" the sky is blue", "  12 a  b", random_text(draw).replace("<", "")):
        ids = tokenizer.encode(text)
        assert stream(tokenizer, ids, draw, 2)[1] == tokenizer.decode(ids)


def test_streamed_thinking_is_the_thinking(tokenizer):
    draw = random.Random(1)
    for _ in range(100):
        thinking, answer = (random_text(draw).replace("<", "") for _ in range(2))
        ids = tokenizer.encode(f"<|channel>thought\n{thinking}<channel|>{answer}<turn|>")
        expected = tuple(tokenizer.decode(tokenizer.encode(text)) for text in (thinking, answer))
        assert stream(tokenizer, ids, draw, 5) == expected


def test_thinking_ends_before_the_answer_begins(tokenizer):
    """A character spelt in bytes at the end of the thinking came out with the last words of the answer."""
    text = TextStream(tokenizer)
    assert text.push(tokenizer.encode(f"<|channel>thought\nx{ASTRONAUT}<channel|>yes")) == (f"x{ASTRONAUT}", "yes")


def test_a_character_is_never_cut(tokenizer):
    draw = random.Random(2)
    for _ in range(50):
        text = TextStream(tokenizer)
        written = f"{ASTRONAUT} {random_text(draw)}€".replace("<", "").replace("\ufffd", "")
        pieces = [text.push([token])[1] for token in tokenizer.encode(written)]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + text.finish()[1] == tokenizer.decode(tokenizer.encode(written))


def test_only_an_unfinished_character_is_held(tokenizer):
    text = TextStream(tokenizer)
    assert text.push(tokenizer.encode("Größe: 12 ")) == ("", "Größe: 12 ")
    face = tokenizer.encode("\U0001f92a")
    assert len(face) == 4
    assert [text.push([token]) for token in face[:3]] == [("", "")] * 3
    assert text.push([face[3], *tokenizer.encode("!")]) == ("", "\U0001f92a!")
    assert text.push(face[:2]) == ("", "")
    assert text.finish()[1] == tokenizer.decode(face[:2])
    assert set(tokenizer.decode(face[:2])) == {"\ufffd"}


def test_special_tokens_are_never_shown(tokenizer):
    draw = random.Random(3)
    ids = tokenizer.encode("<bos>a<|turn>b<turn|><eos><pad><pad><|think|>c")
    assert stream(tokenizer, ids, draw, 2) == ("", "abc")


@pytest.mark.parametrize("text", ["the sky is blue, " * 200, "\U0001f92a" * 200, "<|channel>" + "<pad>" * 200 + "x"])
def test_a_push_costs_what_is_pushed(monkeypatch, text):
    """The text so far was decoded again at every push."""
    tokenizer, decoded = Tokenizer(BPE), []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: decoded.append(len(ids)) or decode(ids))
    ids = tokenizer.encode(text)
    stream(tokenizer, ids, random.Random(0), 1)
    assert sum(decoded) <= 3 * len(ids)


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


def test_the_template_refuses_an_unknown_role():
    with pytest.raises(ValueError, match='must be of user or model, not "tool"'):
        Tokenizer(BPE).chat([{"role": "user", "content": "Hi"}, {"role": "tool", "content": "x"}])


@pytest.mark.parametrize("messages", [[], ["Hi"], "Hi"])
def test_messages_must_be_messages(tokenizer, messages):
    with pytest.raises(ValueError, match="need a list of messages"):
        tokenizer.chat(messages)


def test_a_lone_surrogate_is_named(tokenizer):
    with pytest.raises(ValueError, match="ud83d' at character 2"):
        tokenizer.encode("ab\ud83d")


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json: copy"):
        Tokenizer(tmp_path)
    broken = [
        ({"tokenizer": "version https://git-lfs"}, r"tokenizer\.json is not JSON .*LFS"),
        ({"tokenizer": "[]"}, r"tokenizer\.json must hold a JSON object, got list"),
        ({"tokenizer": '{"model": {}}'}, r"tokenizer\.json is no usable tokenizer .*: update"),
        ({"config": "{"}, r"tokenizer_config\.json is not JSON"),
        ({"config": "[1]"}, r"tokenizer_config\.json must hold a JSON object, got list"),
    ]
    for changes, message in broken:
        with pytest.raises(ValueError, match=message) as caught:
            Tokenizer(copy(BPE, tmp_path, **changes))
        assert "\n" not in str(caught.value)
    copy(BPE, tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8"):
        Tokenizer(tmp_path)


def test_the_config_is_optional(tmp_path):
    """Gemma's names stand in: a prompt without <bos> would quietly be a worse one."""
    messages = CHATS[0]
    expected = Tokenizer(TINY).chat(messages)
    tokenizer = Tokenizer(copy(TINY, tmp_path, config=None))
    assert tokenizer.chat(messages) == expected
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")


def test_settings_of_a_training_run_are_ignored(tmp_path, reference):
    content = tokenizers.Tokenizer.from_file(str(BPE / "tokenizer.json"))
    content.enable_truncation(max_length=3)
    content.enable_padding(length=64)
    content.post_processor = tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    folder = copy(BPE, tmp_path, tokenizer=content.to_str())
    text = "the sky is blue, because"
    expected = Tokenizer(BPE).encode(text)
    assert Tokenizer(folder).encode(text) == expected == reference(folder).encode(text, add_special_tokens=False)


def test_importing_is_cheap():
    heavy = "{'transformers', 'torch', 'mlx', 'jinja2'}"
    code = f"import sys, mlx_dgemma.tokenizer; print(*{heavy} & set(sys.modules))"
    root = Path(mlx_dgemma.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
