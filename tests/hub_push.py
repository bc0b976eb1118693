"""Train small students and push each to the Hub that HF_ENDPOINT names: `python hub_push.py FOLDER TOKEN`.

Leaves in FOLDER/NAME the run, in FOLDER/NAME.safetensors what the student predicts, and in FOLDER/errors.json the
failures by name. In a process of its own, because huggingface_hub reads its environment when imported.
"""

import json
import sys
from pathlib import Path

import torch
from hub_load import predictions
from peft import LoraConfig
from safetensors.torch import save_file
from text_toys import TokenRows, language_model, taught_model, tokenizer
from toys import arguments
from transformers import AutoModelForCausalLM

from hfkd import DistillationArguments, DistillationTrainer
from hfkd.data import ImageTransform
from hfkd.data.digits import load_digits
from hfkd.evaluation.metrics import item_accuracy
from hfkd.experiments.run import run_text
from hfkd.models import image_classifier
from hfkd.utils.parsing import parse


def image(args):
    train, test = (part.select(range(16)) for part in load_digits())
    transform = ImageTransform(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    teacher, student = (image_classifier(name, num_labels=10) for name in ("cifar_wrn_16_2", "cifar_resnet20"))
    trainer = DistillationTrainer(
        student,
        teacher,
        args,
        temperature="energy",
        weighting="entropy",
        train_dataset=train.with_transform(transform),
        eval_dataset=test.with_transform(transform),
        compute_metrics=item_accuracy,
    )
    run_text(trainer, {"dataset_name": "someone/digits-data"})  # what run_classifier adds is a page


def text(args, student=None, **keywords):
    rows = {"train_dataset": TokenRows(), "eval_dataset": TokenRows(8, seed=1)}
    student = student or language_model()
    trainer = DistillationTrainer(student, taught_model(), args, processing_class=tokenizer(), **rows, **keywords)
    run_text(trainer, {"dataset_name": "dialogues"})


def adapter(args):
    base = AutoModelForCausalLM.from_pretrained("someone/base")
    text(args, base, peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False))


STUDENTS = {"image": image, "text": text, "adapter": adapter, "refused": text, "dropped": text, "large": text}


def push(name, folder, token):
    """As a recipe is started: the token on the command line, absolute folders in it."""
    flags = {"output_dir": folder / name, "hub_model_id": f"someone/{name}", "hub_token": token, "push_to_hub": "true"}
    sys.argv = ["recipes/train.py", *(w for k, v in flags.items() for w in (f"--{k}", str(v)))]
    (given,) = parse((DistillationArguments,))
    keep = {k: getattr(given, k) for k in ("hub_model_id", "hub_token", "push_to_hub")}
    evaluated = {"eval_strategy": "epoch", "save_strategy": "epoch", "hub_strategy": "end"}
    args = arguments(given.output_dir, **keep, **evaluated, max_steps=-1, num_train_epochs=1, model_license="mit")
    torch.manual_seed(0)
    STUDENTS[name](args)


def main(folder, token):
    errors = {}
    for name in STUDENTS:
        try:
            push(name, folder, token)
        except ConnectionError as error:
            errors[name] = str(error)
        save_file(predictions(name, folder / name), folder / f"{name}.safetensors")
    (folder / "errors.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
