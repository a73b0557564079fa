"""What several test files of fast-wordpiece share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def differential() -> ModuleType:
    """The script of the differential fuzzer: random strings, and Hugging Face's tokenizer."""
    path = Path(__file__).parents[1] / "fuzz" / "differential.py"
    spec = importlib.util.spec_from_file_location("fast_wordpiece_differential", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
