"""Both tokenizers, and transformers' of the same folder."""

from functools import cache

import pytest
from tokenizer_folders import FOLDERS

from mlx_dgemma.tokens.tokenizer import Tokenizer


@pytest.fixture(params=FOLDERS)
def folder(request):
    return FOLDERS[request.param]


@pytest.fixture
def tokenizer(folder):
    return tokenizer_of(folder)


@pytest.fixture
def reference():
    """A folder -> transformers' tokenizer of it."""
    pytest.importorskip("transformers", reason="transformers is what ids are compared with")
    return reference_of


tokenizer_of = cache(Tokenizer)  # nothing changes one


@cache
def reference_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
