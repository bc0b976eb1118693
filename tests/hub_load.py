"""Load students as anyone would, and predict: `python hub_load.py FOLDER NAME=REPOSITORY ...`."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageClassification, AutoTokenizer

TEXT = "the cat sat on the mat"


def predictions(name, place):
    """The inputs that the processor or the tokenizer at `place` makes, and the student's logits for them."""
    place = str(place)
    if name == "image":
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        inputs = AutoImageProcessor.from_pretrained(place)(Image.fromarray(pixels), return_tensors="pt")
        model = AutoModelForImageClassification.from_pretrained(place)
    else:
        inputs = AutoTokenizer.from_pretrained(place)(TEXT, return_tensors="pt")
        model = language(name, place)
    with torch.no_grad():
        logits = model.eval()(**{k: v for k, v in inputs.items() if k != "token_type_ids"}).logits
    return {"inputs": next(iter(inputs.values())).contiguous(), "logits": logits.contiguous()}


def language(name, place):
    if name != "adapter":
        return AutoModelForCausalLM.from_pretrained(place)
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("someone/base"), place)


if __name__ == "__main__":
    import hfkd.models  # noqa: F401  (registers the CIFAR networks)

    for pair in sys.argv[2:]:
        name, _, repository = pair.partition("=")
        save_file(predictions(name, repository), Path(sys.argv[1]) / f"{name}.safetensors")
