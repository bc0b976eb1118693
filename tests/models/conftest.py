from pathlib import Path

import pytest
from transformers import ViTConfig, ViTForImageClassification


@pytest.fixture
def saved_vit(tmp_path: Path) -> Path:
    """A folder with a tiny Hub model of 4 labels that is not timm's."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=4)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path
