"""What is to be measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is to be measured; each is a flag of the command."""

    model: str | None
    dummy: str | None
    precision: str | None
    peaked: float | None
    steps_per_block: int
    backend: str | None
    dtype: str | None
    ar_model: str | None
    prompts: str | None
    each: int
    max_tokens: int | None
    max_denoising_steps: int | None
    context: list[int]
    batch: list[int]
    repeat: int
    seeds: int
    seed: int
