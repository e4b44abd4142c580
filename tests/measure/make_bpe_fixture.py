"""Makes tests/fixtures/bpe/tokenizer.json: a small tokenizer built the way Gemma's is.

    python tests/measure/make_bpe_fixture.py

Byte-pair pieces with byte fallback, spaces written as "▁", and no pre-tokenizer that keeps merges inside words: pieces
cross quotes, digits and newlines, which is what makes JSON and code hard to cut at token borders. It learns from
Python's own library and documentation, from JSON made here and from sentences in this file; run twice on one version
of Python and `tokenizers`, it writes the same bytes (another version has another library; the committed file is of
Python 3.11 and tokenizers 0.23). The tests read the committed file; run this only to change it. The two small files
beside it, tokenizer_config.json and chat_template.jinja, are written by hand.
"""

import inspect
import json
import random
from collections import Counter
from importlib import import_module
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUT = Path(__file__).parents[1] / "fixtures" / "bpe" / "tokenizer.json"
PIECES = 8000
LONGEST_PIECE = 14  # characters; without a limit whole phrases of the library become pieces
CHUNK = 300  # characters: what is trained on at a time, so that merges cross lines at an affordable cost
SPECIAL = [
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>"),
    *("<|image|>", "<|image>", "<image|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"),
    *("<tool_response|>", '<|"|>'),
]
TEMPLATE_WORDS = ("user", "model", "system", "developer", "assistant", "thought")
MODULES = (
    "argparse ast calendar collections csv dataclasses datetime decimal difflib fractions functools heapq inspect "
    "json.decoder json.encoder pathlib random re statistics string tarfile textwrap typing unittest.mock zipfile"
)
SENTENCES = (
    "Der Himmel ist blau, weil die Luft das blaue Licht stärker streut. Größe, Straße, Übung, schön.",
    "Le ciel est bleu parce que l'air diffuse la lumière. Où êtes-vous ? Ça va très bien, garçon !",
    "El cielo es azul porque el aire dispersa la luz. ¿Cómo estás? Mañana, niño, corazón.",
    "O céu é azul porque o ar espalha a luz. Não, amanhã, coração, português.",
    "Небо голубое, потому что воздух рассеивает свет. Как дела? Хорошо, спасибо.",
    "Ο ουρανός είναι μπλε επειδή ο αέρας σκεδάζει το φως.",
    "天空是蓝色的,因为空气散射阳光。你好,世界!今天天气很好。",
    "空が青いのは、空気が光を散らすからです。こんにちは、世界。ありがとう。",
    "하늘이 파란 이유는 공기가 빛을 산란시키기 때문입니다. 안녕하세요.",
    "السماء زرقاء لأن الهواء يشتت الضوء. مرحبا بالعالم.",
    "आकाश नीला है क्योंकि हवा प्रकाश को बिखेरती है। नमस्ते दुनिया।",
)
NAMES = "Ann Bob Cara Dan Eve Finn Gus Hana Ivan Jill Kofi Lena Mia Noor Omar Pia Quin Rosa Sam Tess"
CITIES = "Oslo Rome Lima Cairo Paris Tokyo Delhi Quito Accra Lagos Milan Perth Sofia Turin Dakar Hanoi"
JOBS = "baker pilot nurse coder judge miner actor clerk tutor chef guard vet"


def records() -> str:
    """JSON as models are asked for it: compact and indented objects, lists, numbers, escapes."""
    names, cities, jobs = NAMES.split(), CITIES.split(), JOBS.split()
    draw = random.Random(0)
    lines = []
    for number in range(600):
        person = {"name": draw.choice(names), "age": draw.randint(1, 99), "city": draw.choice(cities)}
        person |= {"job": draw.choice(jobs), "id": draw.randint(0, 9999), "score": round(draw.random() * 100, 2)}
        nested = {"people": [person], "ok": draw.random() < 0.5, "tags": draw.sample(jobs, 2), "note": None}
        lines.append(json.dumps(nested if number % 3 == 0 else person, indent=2 if number % 2 else None))
    return "\n".join(lines)


def corpus() -> list[str]:
    topics = import_module("pydoc_data.topics").topics
    texts = [inspect.getsource(import_module(name)) for name in MODULES.split()]
    texts += [topics[name] for name in sorted(topics)]
    texts += [records(), "\n\n".join(SENTENCES * 20)]
    texts += [f'"{word}": ({word})={word},\n{word}\n' * 60 for word in TEMPLATE_WORDS]
    return [text[start : start + CHUNK] for text in texts for start in range(0, len(text), CHUNK)]


def train(chunks: list[str]) -> dict:
    """The trained tokenizer as the object that its file holds."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    # For training only: a space goes with the word after it ("▁the"), as in Gemma's vocabulary. Left alone, byte-pair
    # merges prefer the word before ("the▁").
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁(?=\p{L})"), "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    counts = Counter("".join(chunks).replace(" ", "▁"))
    # Chosen here and not by the trainer, which breaks ties by chance. Rarer characters are left to byte fallback.
    alphabet = sorted(character for character, count in counts.items() if count >= 20)
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=SPECIAL + byte_pieces,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(chunks, trainer)
    # What the file says, as Gemma's does: once spaces are "▁" it finds nothing to split.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    content = json.loads(tokenizer.to_str())
    # The trainer takes byte pieces for special tokens, which would read "<0x41>" in a text as a byte.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in SPECIAL]
    return content


def main() -> None:
    content = train(corpus())
    pieces = content["model"]["vocab"]
    wanted = ('",▁"', "\n\n", "12", '":▁', *TEMPLATE_WORDS)
    missing = [piece for piece in wanted if piece not in pieces]
    if missing:
        raise SystemExit(f"these pieces were not learnt: {missing}")
    OUT.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{OUT.name}: {len(pieces)} pieces, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
