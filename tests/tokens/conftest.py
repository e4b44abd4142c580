"""Both tokenizers, and transformers' of the same folder."""

import pytest
from tokenizer_folders import FOLDERS

from mlx_dgemma.tokens.tokenizer import Tokenizer


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
