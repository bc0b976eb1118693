import gc
import os
from contextlib import suppress
from pathlib import Path

# Before anything imports the Hub's libraries: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

with suppress(ImportError):  # a machine that runs the GPU tests alone may lack it
    from hypothesis import HealthCheck, settings

    # The first value of a strategy is slow on a busy machine, which says nothing of the strategy.
    settings.register_profile("tests", suppress_health_check=[HealthCheck.too_slow], deadline=None)
    settings.load_profile("tests")

torch.set_num_threads(1)  # the tests run side by side (pytest -n auto), and their networks are small
DATA = Path(os.environ.get("HFKD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data; tests that need it skip where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA}: set HFKD_DATA to the folder that holds it")
    return DATA


@pytest.fixture
def saved_vit(tmp_path: Path) -> Path:
    """A folder with a tiny Hub model of 4 labels that is not timm's."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=4)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _imported_once() -> None:
    """Leave what is imported out of garbage collections: a run ends with one, which took longer than it trained."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what is still frozen when the interpreter ends is taken for a leak by some libraries
