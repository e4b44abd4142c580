"""The README.md of a converted folder: how it was made, and what became of the weights."""

from pathlib import Path

from ..version import __version__
from . import report
from .hub import snapshot
from .journal import Errors
from .plan import Plan

BASE = "google/diffusiongemma-26B-A4B-it"


def write(plan: Plan, errors: Errors, command: str, folder: Path) -> None:
    """Write the card. It holds no date and no path: it is the same whenever it is written."""
    import mlx.core as mx
    from huggingface_hub import ModelCard, ModelCardData

    to_mlx, base, origin = plan.metadata["format"] == "mlx", BASE, f"the local folder `{plan.source.name}`"
    if hub := snapshot(plan.source):
        base, revision = hub
        origin = f"[{base}](https://huggingface.co/{base}) at revision `{revision}`"
    data = ModelCardData(
        base_model=base,
        library_name="mlx" if to_mlx else "transformers",
        license="apache-2.0",
        pipeline_tag="text-generation",
        tags=["diffusion_gemma", *(["mlx"] if to_mlx else [])],
    )
    head, *rows = report.rows(plan, errors)
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
    notes = "\n".join(f"- {line}" for line in report.notes(plan))
    text = f"""---
{data.to_yaml()}
---

# {folder.name.removesuffix(".part")}

DiffusionGemma, converted from {origin} by mlx_dgemma {__version__} with MLX {mx.__version__}:

```sh
python -m mlx_dgemma.convert {command}
```

{table}

The relative error is that of a sample of rows against the source. It {report.memory_line(plan)}.
{notes}
"""
    if to_mlx:
        text += '\n```sh\npython -m mlx_dgemma.generate --model FOLDER --prompt "Why is the sky blue?"\n```\n'
    (folder / "README.md").write_text(text, encoding="utf-8")
    ModelCard.load(folder / "README.md")  # raises if it cannot be parsed
