import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def stories(data_dir):
    """A trained model of 260,032 parameters and its tokenizer."""
    path = data_dir / "stories260K"
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
