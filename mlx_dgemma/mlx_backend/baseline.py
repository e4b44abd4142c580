"""An autoregressive model by mlx-lm, to compare diffusion with on MLX. mlx-lm's generator runs it."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint import memory
from ..checkpoint.config import Recipe
from ..checkpoint.names import by_class
from ..errors import Mistake

try:
    import mlx_lm
    from mlx_lm.sample_utils import make_sampler
except ModuleNotFoundError as error:
    raise Mistake(f"--ar-model needs {error.name}, which is not installed: pip install mlx-lm") from error

_OURS = (  # mlx-lm's path of a Gemma 4 layer -> the path that a recipe knows
    (re.compile(r"^(language_model\.)?model\."), "model.decoder."),
    (re.compile(r"experts\.switch_glu\.(gate|up)_proj"), "experts.gate_up_proj"),
    (re.compile(r"experts\.switch_glu\."), "experts."),
)


def our_path(path: str) -> str:
    for pattern, ours in _OURS:
        path = pattern.sub(ours, path)
    return path


def quant_predicate(recipe: Recipe) -> Callable[[str, nn.Module], bool | dict[str, int | str]]:
    """Return `recipe` as `mlx_lm.convert` takes it: False, or the bits, group size and mode of a layer."""

    def predicate(path: str, module: nn.Module) -> bool | dict[str, int | str]:
        stored = recipe(our_path(path))
        if stored is None or module.weight.shape[-1] % stored.group_size:
            return False
        return dict(vars(stored))

    return predicate


def build(hf_path: str, mlx_path: str, recipe: Recipe) -> None:
    """Convert Gemma 4, or another model that mlx-lm knows, with layers stored as `recipe` stores DiffusionGemma's.

    Mistake: there is something at `mlx_path`, or mlx-lm cannot convert what is at `hf_path`."""
    if os.path.exists(mlx_path):  # False for a name that is too long
        raise Mistake(f"{mlx_path} is there already: give another --mlx-path, or remove it")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            mlx_lm.convert(hf_path, mlx_path, quantize=True, quant_predicate=quant_predicate(recipe))
    except (ValueError, OSError) as error:
        raise Mistake(f"mlx-lm cannot convert {hf_path}: {error}") from error


class Baseline:
    """A folder or a hub id, by mlx-lm, sampled as its generation_config.json says; greedily if that says nothing."""

    library = f"mlx-lm {mlx_lm.__version__}"

    def __init__(self, path: str):
        mx.clear_cache()
        mx.reset_peak_memory()
        try:
            self.model, self.tokenizer = mlx_lm.load(path)
        except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:  # a library, and any folder
            raise Mistake(f"--ar-model {path}: mlx-lm cannot load it: {error}") from error
        mx.eval(self.model.parameters())
        self.settings = _documented(Path(path) / "generation_config.json")
        self.bits = self._bits()

    def _bits(self) -> dict[str, float]:
        """Count bits a weight, scales and biases among them, by class of weights."""
        modules, arrays = dict(self.model.named_modules()), tree_flatten(self.model.parameters())

        def weights(path: str, array: mx.array) -> int:
            if path.endswith((".scales", ".biases")):
                return 0
            return array.size * 32 // modules[path.rpartition(".")[0]].bits if array.dtype == mx.uint32 else array.size

        nbytes = by_class((our_path(path), array.nbytes) for path, array in arrays)
        numbers = by_class((our_path(path), weights(path, array)) for path, array in arrays)
        return {name: 8 * nbytes[name] / numbers[name] for name in nbytes}

    def write(self, tokens: Sequence[int], max_tokens: int, seed: int) -> Iterator[int]:
        """Yield tokens, the stop token among them."""
        mx.random.seed(seed)
        sampler = make_sampler(**self.settings)
        options = {"max_tokens": max_tokens, "sampler": sampler}
        for response in mlx_lm.stream_generate(self.model, self.tokenizer, list(tokens), **options):
            yield response.token

    def peak_memory(self) -> int:
        """Return the bytes that the GPU has held at most; on a CPU the process, as in `MLXModel.peak_memory`."""
        return memory.peak() if mx.default_device() == mx.cpu else mx.get_peak_memory()


def _documented(file: Path) -> dict[str, float]:
    """Read mlx-lm's sampling options from a generation_config.json. A hub id has none here, and is run greedily."""
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not stored.get("do_sample"):
        return {"temp": 0.0}
    options = {"temp": stored.get("temperature"), "top_p": stored.get("top_p"), "top_k": stored.get("top_k")}
    return {name: value for name, value in options.items() if value is not None}
