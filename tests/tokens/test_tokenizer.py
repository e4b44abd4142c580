"""Text <-> tokens against transformers, on the byte-level tokenizer of the embedded model and on one like Gemma's."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizer_folders import ASTRONAUT, BPE, FOLDERS, copy, random_text

import mlx_dgemma
from mlx_dgemma.errors import Mistake
from mlx_dgemma.tokens.stream import TextStream
from mlx_dgemma.tokens.tokenizer import Tokenizer

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


def test_ids_and_text_equal_transformers(folder, tokenizer, reference):
    auto, draw = reference(folder), random.Random(0)
    assert tokenizer.vocab_size == len(auto)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (auto.bos_token_id, auto.eos_token_id)
    for text in TEXTS + [random_text(draw) for _ in range(200)]:
        assert tokenizer.encode(text) == auto.encode(text, add_special_tokens=False, split_special_tokens=True), text
        ids = tokenizer.encode(text, special_tokens=True)
        assert ids == auto.encode(text, add_special_tokens=False), text
        for skip in (True, False):
            expected = auto.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
        if "<" not in text:
            assert tokenizer.decode(ids) == (text.replace("▁", " ") if folder == BPE else text)
    for _ in range(200):
        ids = [draw.randrange(tokenizer.vocab_size) for _ in range(30)]
        assert tokenizer.decode(ids) == auto.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_a_token_the_config_names_is_special(tmp_path, folder, reference):
    """tokenizer.json may call `<|think|>` an ordinary token; text must not show it all the same."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<|think|>"
    folder = copy(folder, tmp_path, tokenizer=json.dumps(content), config={"think_token": "<|think|>"})
    ids = Tokenizer(folder).encode("a<|think|>b", special_tokens=True)
    assert Tokenizer(folder).decode(ids) == reference(folder).decode(ids, skip_special_tokens=True) == "ab"
    text = TextStream(Tokenizer(folder))
    assert text.push(ids)[1] + text.finish()[1] == "ab"


def test_special_tokens_in_a_text_are_text(tokenizer):
    text = "a<turn|>\n<|turn>system\n<eos><bos><unk><<|think|>>"
    ids = tokenizer.encode(text)
    assert all(tokenizer.piece(token) for token in ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids) == text
    tokens = [token for token in tokenizer.encode(text, special_tokens=True) if tokenizer.piece(token) is None]
    names = ("<turn|>", "<|turn>", "<eos>", "<bos>", "<unk>", "<|think|>")
    assert tokens == [tokenizer.token_id(name) for name in names]


def test_an_added_token_that_is_not_special_is_text(tmp_path, folder, reference):
    """Such are a heading's tag or two line ends in a row: words of the vocabulary, which a text may use."""
    content = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    content.add_tokens(["<h1>", "\n\n"])
    folder = copy(folder, tmp_path, tokenizer=content.to_str())
    tokenizer, text = Tokenizer(folder), "<h1>a<turn|>\n\nb"
    ids = tokenizer.encode(text)
    assert {tokenizer.token_id("<h1>"), tokenizer.token_id("\n\n")} < set(ids)
    assert ids == reference(folder).encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(ids) == text


def test_merges_that_spell_a_special_token(tmp_path):
    """With `ignore_merges` a word is looked up whole, and `<turn|>` is one in the vocabulary."""
    content = json.loads((FOLDERS["bpe"] / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["ignore_merges"] = True
    tokenizer = Tokenizer(copy(BPE, tmp_path, tokenizer=json.dumps(content)))
    assert tokenizer._backend.encode("<turn|>").ids == [tokenizer.token_id("<turn|>")]
    ids = tokenizer.encode("<turn|>")
    assert tokenizer.token_id("<turn|>") not in ids and tokenizer.decode(ids) == "<turn|>"


def test_parts_are_encoded_as_the_text_around_them(tokenizer):
    turn = tokenizer.token_id("<|turn>")
    parts = ["the s", "ky", turn, turn, "", " <|turn>", "x"]
    assert tokenizer.encode_parts(parts) == [
        *tokenizer.encode("the sky"), turn, turn, *tokenizer.encode(" <|turn>x")
    ]  # fmt: skip
    assert tokenizer.decode_parts(tokenizer.encode_parts(parts)) == ["the sky", turn, turn, " <|turn>x"]
    assert tokenizer.split("a<|turn><|turn>b<|turn") == ["a", turn, turn, "b<|turn"]


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
    code = f"import sys, mlx_dgemma.tokens.tokenizer, mlx_dgemma.tokens.messages; print(*{heavy} & set(sys.modules))"
    root = Path(mlx_dgemma.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.slow
def test_a_text_that_is_far_too_long_is_known_soon(folder):
    """10 MB took 41 seconds to be called too long, and 60 MB more memory than there was."""
    tokenizer = Tokenizer(folder, most_tokens=4096)
    started = time.thread_time()
    for text in ("a b" * 20_000_000, "<|turn>" * 9_000_000):
        with pytest.raises(Mistake, match=r"longer than the context: the first 200000 of its \d+ characters"):
            tokenizer.chat([{"role": "user", "content": text}])
        with pytest.raises(Mistake, match="longer than the context"):
            tokenizer.encode(text)
    assert time.thread_time() - started < 8
    text = "word " * 50_000
    ids = Tokenizer(folder).encode(text)
    assert Tokenizer(folder, most_tokens=max(len(ids), 200_000)).encode(text) == ids
