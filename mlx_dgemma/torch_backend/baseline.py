"""An autoregressive model by transformers, to compare diffusion with on torch. Its `generate` runs it."""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ..checkpoint.names import by_class
from ..errors import Mistake
from .device import peak

try:
    import transformers
except ModuleNotFoundError as error:
    raise Mistake("--ar-model needs transformers, which is not installed: pip install transformers") from error


class Streamer(queue.SimpleQueue):
    """Queues what `generate` streams: the prompt, then token after token, and None at the end."""

    def end(self) -> None:
        self.put(None)


class Baseline:
    """Runs a folder or a hub id by transformers, with a static cache, compiled on CUDA, which is its fastest documented
    way. It samples as its generation_config.json says; greedily if that says nothing."""

    library = f"transformers {transformers.__version__}"

    def __init__(self, path: str):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(self.device).eval()
        except (ValueError, OSError, KeyError, TypeError, RuntimeError) as error:  # a library, and any folder
            raise Mistake(f"--ar-model {path}: transformers cannot load it: {error}") from error
        generation = self.model.generation_config.to_dict()
        names = ("do_sample", "temperature", "top_p", "top_k") if generation["do_sample"] else ("do_sample",)
        self.settings = {name: generation[name] or False for name in names}
        self.settings |= {"cache_implementation": "static", "compiled": self.device == "cuda"}
        self.bits = self._bits()

    def _bits(self) -> dict[str, float]:
        """Class of weights -> bits a weight."""
        nbytes = by_class((path, tensor.nbytes) for path, tensor in self.model.named_parameters())
        numbers = by_class((path, tensor.numel()) for path, tensor in self.model.named_parameters())
        return {name: 8 * nbytes[name] / numbers[name] for name in nbytes}

    def write(self, tokens: Sequence[int], max_tokens: int, seed: int) -> Iterator[int]:
        """Yield tokens as they come, a stop token among them."""
        torch.manual_seed(seed)
        streamer, stopped = Streamer(), threading.Event()

        def generate() -> None:
            try:
                self.model.generate(
                    torch.tensor([list(tokens)], device=self.device), max_new_tokens=max_tokens, streamer=streamer,
                    cache_implementation="static",
                    stopping_criteria=[lambda ids, _: torch.full((len(ids),), stopped.is_set(), device=ids.device)],
                )  # fmt: skip
            finally:
                streamer.end()

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(generate)
            try:
                for place, token in enumerate(iter(streamer.get, None)):
                    if place:  # behind the prompt
                        yield int(token)
                writer.result()  # raises what stopped it
            finally:
                stopped.set()

    def peak_memory(self) -> int:
        """Peak bytes of the device; on a CPU of the process."""
        return peak(torch.device(self.device))
