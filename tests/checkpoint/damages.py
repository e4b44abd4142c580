"""Ways to damage the embedded model's folder: name -> what to do to a copy of it. Each is a mistake of one line."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Damage = Callable[[Path], Any]
NORM, EMBEDDING = "model.decoder.norm.weight", "model.decoder.embed_tokens.weight"
DEEP = 100_000
CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
INDEX = "model.safetensors.index.json"


def edit(name: str, change: Callable[[Any], Any]) -> Damage:
    """Change what a JSON file holds."""

    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(change(value) or value), encoding="utf-8")

    return damage


def put(name: str, *path: str | int, to: Any) -> Damage:
    """Put a value into a JSON file."""

    def change(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return edit(name, change)


def write(name: str, data: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    """Something else where a file is meant."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def cut(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size + size if size < 0 else size)


def header(change: Callable[[dict], Any]) -> Damage:
    """Change the header of the weights, and keep their bytes."""

    def damage(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        table = json.loads(data[8 : 8 + length])
        text = json.dumps(change(table) or table).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def entry(**changes: Any) -> Damage:
    return header(lambda table: table[NORM].update(changes))


def index(weight_map: Any, **more: Any) -> Damage:
    return write(INDEX, json.dumps({"weight_map": weight_map, **more}))


def swap(table: dict) -> dict:
    """Two tensors of one size at one place: one of them twice, the other never."""
    norms = [name for name in table if name.endswith("input_layernorm.weight")]
    table[norms[0]]["data_offsets"] = table[norms[1]]["data_offsets"]
    return table


def renamed(old: str, new: str) -> Damage:
    return header(lambda table: {new if name == old else name: value for name, value in table.items()})


def text(**changes: Any) -> Damage:
    return edit(CONFIG, lambda config: config["text_config"].update(changes))


def root(**changes: Any) -> Damage:
    return edit(CONFIG, lambda config: config.update(changes))


def generation(**changes: Any) -> Damage:
    return edit(GENERATION, lambda value: value.update(changes))


def tokens(**changes: Any) -> Damage:
    return edit(TOKENIZER, lambda value: value.update(changes))


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


JSON_FILES = (CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG)
DAMAGES: dict[str, Damage] = {}
for _name in JSON_FILES:  # what may happen to any of them
    DAMAGES |= {
        f"{_name} is empty": write(_name, ""),
        f"{_name} is a list": write(_name, "[1, 2]"),
        f"{_name} is a number": write(_name, "5"),
        f"{_name} is a text": write(_name, '"x"'),
        f"{_name} is false": write(_name, "false"),
        f"{_name} is cut": cut(_name, -20),
        f"{_name} is a Git LFS pointer": write(_name, "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        f"{_name} is Latin-1": write(_name, b'{"a": "caf\xe9"}'),
        f"{_name} is UTF-16": write(_name, '{"a": 1}'.encode("utf-16")),
        f"{_name} is zeros": write(_name, bytes(1000)),
        f"{_name} nests objects": write(_name, '{"a":' * DEEP + "1" + "}" * DEEP),
        f"{_name} nests lists": write(_name, '{"a":' + "[" * DEEP + "]" * DEEP + "}"),
        f"{_name} nests 200 deep": put(_name, "architectures", to=nested(1, 200)),
        f"{_name} holds NaN": write(_name, '{"a": NaN}'),
        f"{_name} holds a number of 10,000 digits": write(_name, '{"a": 1' + "0" * 10_000 + "}"),
        f"{_name} is a folder": instead(_name, Path.mkdir),
        f"{_name} is a link to itself": instead(_name, lambda path: path.symlink_to(path.name)),
        f"{_name} is a link to nothing": instead(_name, lambda path: path.symlink_to("nowhere")),
        f"{_name} is a pipe": instead(_name, os.mkfifo),
        f"{_name} has 10^12 bytes": cut(_name, 10**12),
    }
DAMAGES |= {
    "no config.json": remove(CONFIG),
    "no tokenizer.json": remove(TOKENIZER),
    "no weights": remove(WEIGHTS),
    "another model_type": root(model_type="llama"),
    "model_type is a list": root(model_type=["diffusion_gemma"]),
    "no text_config": root(text_config=None),
    "text_config is a list": root(text_config=[]),
    "text_config is a text": root(text_config="x"),
    "vision_config is a list": root(vision_config=[1]),
    "canvas_length of 10^12": root(canvas_length=10**12),
    "canvas_length of -1": root(canvas_length=-1),
    "canvas_length is a text": root(canvas_length="64"),
    "dtype is a number": root(dtype=32),
    "dtype of integers": root(dtype="int8"),
    "eos_token_id is a text": root(eos_token_id="1"),
    "tie_word_embeddings is false": root(tie_word_embeddings=False),
    "tie_word_embeddings is a text": root(tie_word_embeddings="yes"),
    "rope_scaling at the root": root(rope_scaling={"factor": 2}),
    "quantization is a list": root(quantization=[]),
    "quantization is empty": root(quantization={}),
    "quantization is a text": root(quantization="4bit"),
    "quantization is a number": root(quantization=4),
    "quantization of 4.0 bits": root(quantization={"bits": 4.0, "group_size": 64}),
    "quantization of true bits": root(quantization={"bits": True, "group_size": 64}),
    "quantization of 7 bits in a text": root(quantization={"bits": "7", "group_size": 64}),
    "quantization in groups of 0": root(quantization={"bits": 4, "group_size": 0}),
    "quantization of an unknown mode": root(quantization={"bits": 4, "group_size": 64, "mode": "q4_K"}),
    "quantization of a mode that is a list": root(quantization={"bits": 4, "group_size": 64, "mode": []}),
    "quantization of a layer that has none": root(
        quantization={"bits": 4, "group_size": 64, "model.decoder.layers.0.mlp.up_proj": {"bits": 8, "group_size": 64}}
    ),
    "quantization of a layer without bits": root(quantization={"bits": 4, "group_size": 64, "a": {"group_size": 64}}),
    "two quantizations": root(
        quantization={"bits": 4, "group_size": 64}, quantization_config={"bits": 8, "group_size": 64}
    ),
    "GPTQ": root(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": -1}),
    "quant_method is a list": root(quantization_config={"quant_method": []}),
    "hidden_size of 10^12": text(hidden_size=10**12),
    "hidden_size of 128.0": text(hidden_size=128.0),
    "hidden_size of true": text(hidden_size=True),
    "hidden_size of another model": text(hidden_size=64),
    "no hidden_size": text(hidden_size=None),
    "vocab_size of 10^12": text(vocab_size=10**12),
    "vocab_size of 100": text(vocab_size=100),
    "vocab_size is a list": text(vocab_size=[288]),
    "num_hidden_layers of 10^12": text(num_hidden_layers=10**12),
    "num_hidden_layers of 1000": text(num_hidden_layers=1000),
    "num_hidden_layers of 0": text(num_hidden_layers=0),
    "num_attention_heads of 3": text(num_attention_heads=3),
    "num_attention_heads of 10^12": text(num_attention_heads=10**12),
    "num_key_value_heads of 3": text(num_key_value_heads=3),
    "num_experts of 10^12": text(num_experts=10**12),
    "num_experts of 60000": text(num_experts=60_000),
    "top_k_experts of 9": text(top_k_experts=9),
    "head_dim of 33": text(head_dim=33),
    "head_dim of 10^12": text(head_dim=10**12),
    "sliding_window of 0": text(sliding_window=0),
    "sliding_window of 10^12": text(sliding_window=10**12),
    "max_position_embeddings of 10^12": text(max_position_embeddings=10**12),
    "rms_norm_eps of 0": text(rms_norm_eps=0),
    "rms_norm_eps of 10^400": edit(CONFIG, lambda c: c["text_config"].update(rms_norm_eps=10**400)),
    "final_logit_softcapping of 1e-300": text(final_logit_softcapping=1e-300),
    "final_logit_softcapping of null": text(final_logit_softcapping=None),
    "final_logit_softcapping is a text": text(final_logit_softcapping="30"),
    "layer_types is empty": text(layer_types=[]),
    "layer_types is a text": text(layer_types="full_attention"),
    "layer_types of numbers": text(layer_types=[1, 2, 3, 4, 5, 6]),
    "layer_types of lists": text(layer_types=[[], [], [], [], [], []]),
    "layer_types of other kinds": text(layer_types=["linear_attention"] * 6),
    "per_layer_config is a list": text(per_layer_config=[]),
    "per_layer_config of no layer": text(per_layer_config={"99": {"head_dim": 64}}),
    "per_layer_config of a word": text(per_layer_config={"last": {"head_dim": 64}}),
    "per_layer_config of a list": text(per_layer_config={"2": [64]}),
    "per_layer_config of a text": text(per_layer_config={"2": {"head_dim": "64"}, "5": {"head_dim": 64}}),
    "per_layer_config of 10^12": text(per_layer_config={"2": {"head_dim": 10**12}}),
    "per_layer_config twice": text(per_layer_config={"2": {"head_dim": 64}, "02": {"head_dim": 64}}),
    "rope_parameters is a list": text(rope_parameters=[]),
    "rope_parameters of no kind": text(rope_parameters={"rope_type": "yarn", "factor": 4.0}),
    "rope_parameters of yarn": text(rope_parameters={"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}),
    "rope_parameters is a text": text(rope_parameters={"full_attention": "default"}),
    "rope_theta of 0": text(rope_parameters={"full_attention": {"rope_theta": 0}}),
    "rope_theta is a text": text(rope_parameters={"full_attention": {"rope_theta": "1e4"}}),
    "no rope_theta": text(rope_parameters={"full_attention": {"rope_type": "default"}}),
    "partial_rotary_factor of 5": text(
        rope_parameters={"full_attention": {"rope_theta": 1e4, "partial_rotary_factor": 5}}
    ),
    "rope_scaling": text(rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "a setting that is unknown": text(attn_logit_softcapping=50.0),
    "an activation that is a list": text(hidden_activation=["relu"]),
    "pad_token_id is a list": text(pad_token_id=[0]),
    "generation: pad_token_id of 5000": generation(pad_token_id=5000),
    "generation: eos_token_id of 5000": generation(eos_token_id=[1, 5000]),
    "generation: eos_token_id of -1": generation(eos_token_id=-1),
    "generation: eos_token_id of texts": generation(eos_token_id=["1"]),
    "generation: eos_token_id is an object": generation(eos_token_id={"a": 1}),
    "generation: eos_token_id of 1.0": generation(eos_token_id=1.0),
    "generation: t_min is a text": generation(t_min="0.4"),
    "generation: t_min over t_max": generation(t_min=0.9, t_max=0.1),
    "generation: t_max of 10^400": edit(GENERATION, lambda g: g.update(t_max=10**400)),
    "generation: max_denoising_steps of 10^12": generation(max_denoising_steps=10**12),
    "generation: max_denoising_steps of 0": generation(max_denoising_steps=0),
    "generation: max_denoising_steps of 4.5": generation(max_denoising_steps=4.5),
    "generation: stability_threshold is a list": generation(stability_threshold=[1]),
    "generation: confidence_threshold is true": generation(confidence_threshold=True),
    "generation: sampler_config is a list": generation(sampler_config=[]),
    "generation: sampler_config is a text": generation(sampler_config="entropy"),
    "generation: sampler_config of another": generation(sampler_config={"_cls_name": "Gumbel"}),
    "generation: entropy_bound is a text": generation(
        sampler_config={"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": "0.1"}
    ),
    "generation: a rule that is unknown": generation(top_p=0.9),
    "an index of another form": write(INDEX, "[]"),
    "an index without a weight_map": write(INDEX, "{}"),
    "an index whose weight_map is a list": index([]),
    "an index whose weight_map is a text": index("model.safetensors"),
    "an index whose weight_map is null": index(None),
    "an index of numbers": index({NORM: 5}),
    "an index of lists": index({NORM: [WEIGHTS]}),
    "an index that leads out": index({NORM: "../model.safetensors"}),
    "an index that leads to the root": index({NORM: "/etc/passwd"}),
    "an index that leads below": index({NORM: "below/model.safetensors"}),
    "an index of a hidden file": index({NORM: "._model.safetensors"}),
    "an index of a file that is none": index({NORM: "model-2.safetensors"}),
    "an index of a zero byte": index({NORM: "a\0.safetensors"}),
    "an index of a long name": index({NORM: "a" * 5000 + ".safetensors"}),
    "an index of a tensor that is none": index({NORM: WEIGHTS, "model.more": WEIGHTS}),
    "an index that nests": write(INDEX, '{"weight_map":' + "[" * DEEP + "]" * DEEP + "}"),
    "an index that is a folder": instead(INDEX, Path.mkdir),
    "an index that is a link to itself": instead(INDEX, lambda path: path.symlink_to(path.name)),
    "an index that is cut": write(INDEX, '{"weight_map": {"a": '),
    "weights are empty": write(WEIGHTS, b""),
    "weights of 5 bytes": write(WEIGHTS, b"12345"),
    "weights of zeros": write(WEIGHTS, bytes(5000)),
    "weights are a folder": instead(WEIGHTS, Path.mkdir),
    "weights are a link to themselves": instead(WEIGHTS, lambda path: path.symlink_to(path.name)),
    "weights are a pipe": instead(WEIGHTS, os.mkfifo),
    "weights are a link to a device": instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
    "weights are cut": cut(WEIGHTS, -1000),
    "weights are cut in the header": cut(WEIGHTS, 500),
    "weights are longer": cut(WEIGHTS, 10**8),
    "weights have 10^12 bytes": cut(WEIGHTS, 10**12),
    "weights are a pickle": write(WEIGHTS, b"\x80\x04\x95" + bytes(500)),
    "weights are twice": lambda folder: os.link(folder / WEIGHTS, folder / "consolidated.safetensors"),
    "a header of 10^18 bytes": write(WEIGHTS, struct.pack("<Q", 10**18) + b"{}"),
    "a header of 2^64 - 1 bytes": write(WEIGHTS, b"\xff" * 8 + b"{}" + bytes(100)),
    "a header that is a list": header(lambda table: [1]),
    "a header that is a text": header(lambda table: "x"),
    "a header that is empty": write(WEIGHTS, struct.pack("<Q", 2) + b"{}"),
    "a header that is no JSON": write(WEIGHTS, struct.pack("<Q", 20) + b"no JSON at all, is it"),
    "a header that is Latin-1": write(WEIGHTS, struct.pack("<Q", 9) + b'{"\xe9": 1}'),
    "a header that nests": write(WEIGHTS, struct.pack("<Q", 2 * DEEP) + b"[" * DEEP + b"]" * DEEP),
    "__metadata__ is a list": header(lambda table: table.update(__metadata__=[1])),
    "__metadata__ is a text": header(lambda table: table.update(__metadata__="pt")),
    "__metadata__ of numbers": header(lambda table: table.update(__metadata__={"format": 1})),
    "a tensor that is a list": header(lambda table: table.update({NORM: [1]})),
    "a tensor that is null": header(lambda table: table.update({NORM: None})),
    "a tensor without a shape": header(lambda table: table[NORM].pop("shape")),
    "a tensor without offsets": header(lambda table: table[NORM].pop("data_offsets")),
    "a tensor without a dtype": header(lambda table: table[NORM].pop("dtype")),
    "a shape that is a text": entry(shape="128"),
    "a shape of texts": entry(shape=["128"]),
    "a shape of -128": entry(shape=[-128]),
    "a shape of 128.0": entry(shape=[128.0]),
    "a shape of true": entry(shape=[True]),
    "a shape of 10^12": entry(shape=[10**12]),
    "a shape whose product is too large": entry(shape=[2**40, 2**40]),
    "a shape of other sizes": entry(shape=[64, 2]),
    "offsets that are one": entry(data_offsets=[0]),
    "offsets that are three": entry(data_offsets=[0, 1, 2]),
    "offsets of texts": entry(data_offsets=["0", "512"]),
    "offsets of fractions": entry(data_offsets=[0.0, 512.0]),
    "offsets below 0": entry(data_offsets=[-512, 0]),
    "offsets in the other order": entry(data_offsets=[512, 0]),
    "offsets of 10^12": entry(data_offsets=[10**12, 10**12 + 512]),
    "offsets that overlap": header(swap),
    "a dtype that is unknown": entry(dtype="Q4_K"),
    "a dtype that is a list": entry(dtype=["F32"]),
    "a tensor with more in its entry": entry(bits=4),
    "a tensor with NaN in its header": entry(bits=float("nan")),
    "a tensor with half a character for a name": renamed(NORM, "\ud800"),
    "a dtype of another size": entry(dtype="F64"),
    "a dtype of integers": entry(dtype="I32"),
    "a tensor of another name": renamed(NORM, "model.decoder.norm.bias"),
    "a tensor with an empty name": renamed(NORM, ""),
    "a tensor of the encoder alone": renamed(NORM, "model.encoder.language_model.layers.9.layer_scalar"),
    "tokenizer: no model": edit(TOKENIZER, lambda value: value.pop("model") and None),
    "tokenizer: model is a list": tokens(model=[]),
    "tokenizer: another kind of model": tokens(model={"type": "Quantum"}),
    "tokenizer: vocab is a list of numbers": put(TOKENIZER, "model", "vocab", to=[1, 2]),
    "tokenizer: added_tokens is a text": tokens(added_tokens="x"),
    "tokenizer: added tokens without ids": tokens(added_tokens=[{"content": "<x>"}]),
    "tokenizer: a decoder that is unknown": tokens(decoder={"type": "Morse"}),
    "tokenizer: a normalizer that is a number": tokens(normalizer=5),
    "tokenizer: a broken expression": tokens(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
    "tokenizer: more ids than the model": edit(
        TOKENIZER, lambda value: value["model"]["vocab"].update({f"x{i}": 288 + i for i in range(5)})
    ),
    "tokenizer: an added token of 10^6": edit(
        TOKENIZER,
        lambda value: value["added_tokens"].append({**value["added_tokens"][0], "id": 10**6, "content": "<y>"}),
    ),
    "tokenizer config: chat_template is a number": lambda folder: (
        remove(TEMPLATE)(folder), put(TOKENIZER_CONFIG, "chat_template", to=5)(folder)
    ),
    "tokenizer config: chat_template of numbers": lambda folder: (
        remove(TEMPLATE)(folder), put(TOKENIZER_CONFIG, "chat_template", to=[1])(folder)
    ),
    "tokenizer config: a template without a name": lambda folder: (
        remove(TEMPLATE)(folder), put(TOKENIZER_CONFIG, "chat_template", to=[{"template": "x"}])(folder)
    ),
    "tokenizer config: bos_token is a number": put(TOKENIZER_CONFIG, "bos_token", to=2),
    "tokenizer config: bos_token is half a character": put(TOKENIZER_CONFIG, "bos_token", to="\ud800"),
    "tokenizer config: bos_token is a list": put(TOKENIZER_CONFIG, "bos_token", to=["<bos>"]),
    "tokenizer config: eos_token is an object of numbers": put(TOKENIZER_CONFIG, "eos_token", to={"content": 5}),
    "no template": remove(TEMPLATE),
    "a template that is Latin-1": write(TEMPLATE, b"{{ 'caf\xe9' }}"),
    "a template that is a folder": instead(TEMPLATE, Path.mkdir),
    "a template that is a link to itself": instead(TEMPLATE, lambda path: path.symlink_to(path.name)),
    "a template that is no template": write(TEMPLATE, "{% if %}"),
    "a template that loops": write(
        TEMPLATE, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a template that writes": write(TEMPLATE, "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"),
    "a template that reads files": write(TEMPLATE, "{% include '/etc/passwd' %}"),
    "a template that looks around": write(TEMPLATE, "{{ ''.__class__.__mro__ }}"),
    "a template of wrong types": write(TEMPLATE, "{{ messages | dictsort }}"),
    "chat_template.json is a list": lambda folder: (
        remove(TEMPLATE)(folder), write("chat_template.json", "[]")(folder)
    ),
    "chat_template.json holds a number": lambda folder: (
        remove(TEMPLATE)(folder), write("chat_template.json", '{"chat_template": 5}')(folder)
    ),
}  # fmt: skip
