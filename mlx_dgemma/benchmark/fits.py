"""The weights that fit into a Mac's memory, and how long a text fits beside them: by arithmetic."""

from ..checkpoint.memory import gigabytes, longest_text, metal_limit, working_memory
from ..terminal.table import print_table
from .count import BITS, Count
from .devices import SHAPE
from .subject import published

WAYS = {  # of having them: flags of `convert`
    "bf16": "as published", "8bit": "-q --q-bits 8", "4bit": "-q", "4bit-uniform": "-q --quant-predicate uniform",
    "3bit": "-q --q-bits 3", "3bit-uniform": "-q --q-bits 3 --quant-predicate uniform",
    "2-3bit": "-q --quant-predicate mixed.json", "2bit": "-q --q-bits 2",
}  # fmt: skip


def fits(memory: int) -> dict[str, dict[str, float]]:
    """Returns, by precision, bytes of the weights, bytes needed with the least text, and tokens of the longest in a Mac
    of so many GiB; 0 where none goes in."""
    config, by_precision = published(SHAPE), {}
    for name in WAYS:
        size, least = Count(config, BITS[name]).resident, 2 * config.canvas_length
        tokens = longest_text(config, metal_limit(memory * 2**30) - size)
        needed = size + working_memory(config, least)
        by_precision[name] = {"weights": size, "needed": needed, "tokens": tokens if tokens >= least else 0}
    return by_precision


def show(memory: int) -> None:
    print(
        f"A Mac with {memory} GB; its GPU may hold {gigabytes(metal_limit(memory * 2**30))}. Predicted, not measured."
    )
    rows = [(name, WAYS[name], gigabytes(row["weights"]), gigabytes(row["needed"]), f"{row['tokens']:,}")
            for name, row in fits(memory).items()]  # fmt: skip
    print_table(("weights", "convert …", "of weights", "at least", "longest text, tokens"), rows, left=2)
