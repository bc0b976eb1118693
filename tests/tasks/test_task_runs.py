"""Whole runs of tasks other than images and the next token: adapters, metrics, predictions, resuming."""

import io
import pickle

import pytest
import torch
from task_toys import KINDS
from toys import arguments

from hfkd import DistillationTrainer

NAMES = [
    "BERT, masked",
    "BERT, a label a row",
    "BERT, a label a token",
    "BERT, several labels",
    "Wav2Vec2",
    "T5",
    "Whisper",
]
some_kinds = pytest.mark.parametrize("kind", [KINDS[name] for name in NAMES], ids=NAMES)
SLOTS = {"temperature": "energy(ratio=0.25, level='item')", "weighting": "entropy(level='item')"}


def trainer(folder, kind, student=None, given=None, rows=None, **settings):
    own, teacher = kind.pair()
    keywords = kind.keywords(dtype=torch.float32)
    keywords |= {} if rows is None else {"train_dataset": rows, "eval_dataset": rows}
    defaults = {"per_device_train_batch_size": 4, "max_steps": 2} | SLOTS
    return DistillationTrainer(
        (student or own).float(),
        teacher.float(),
        arguments(folder, **(defaults | settings)),
        **keywords,
        **(given or {}),
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of peft's own call
@some_kinds
def test_adapters_alone_are_trained(tmp_path, kind):
    from peft import LoraConfig, get_peft_model

    network = kind.network().float()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    student = get_peft_model(network, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapters = {name: p.detach().clone() for name, p in student.named_parameters() if "lora_" in name}
    made = trainer(tmp_path, kind, student)
    assert made.task.name == kind.task
    made.train()
    after = {n.replace("base_layer.", ""): v for n, v in network.state_dict().items() if "lora_" not in n}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    trained = dict(student.named_parameters())
    assert any(not torch.equal(trained[name], value) for name, value in adapters.items())


@some_kinds
def test_workers_that_get_everything_pickled_make_the_same_batches(tmp_path, kind):
    """As on macOS and Windows, and everywhere from Python 3.14 on."""
    rows = kind.rows(4)
    for loader in ((made := trainer(tmp_path, kind)).get_train_dataloader(), made.get_eval_dataloader()):
        collate, dataset = pickle.loads(pickle.dumps((loader.collate_fn, loader.dataset)))
        assert len(dataset) == len(loader.dataset)
        torch.manual_seed(0)
        batch = loader.collate_fn(rows)
        torch.manual_seed(0)
        other = collate(rows)
        assert other.keys() == batch.keys()
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        assert tensors
        assert all(torch.equal(other[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("kind", [KINDS["BERT, several labels"], KINDS["ViT"]], ids=["BERT, several labels", "ViT"])
def test_no_weights_are_pickled_for_workers(tmp_path, kind):
    """Rows without labels get stand-ins, whose shape depends on the student."""
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in kind.rows()]
    keywords = kind.keywords(dtype=torch.float32) | {"train_dataset": rows}
    student, teacher = kind.pair()
    made = DistillationTrainer(student.float(), teacher.float(), arguments(tmp_path, ce_weight=0.0), **keywords)
    collate = pickle.loads(pickle.dumps(made.get_train_dataloader().collate_fn))
    assert collate(rows[:4])["labels"].shape[0] == 4
    seen = []
    pickler = pickle._Pickler(io.BytesIO())
    pickler.persistent_id = lambda found: seen.append(found) if isinstance(found, torch.nn.Module) else None
    pickler.dump(made.get_train_dataloader().collate_fn)
    assert not seen


@some_kinds
def test_metrics_and_predictions_are_of_the_students_logits(tmp_path, kind):
    seen = []

    def count(prediction):
        seen.append((prediction.predictions, prediction.label_ids))
        return {"rows": float(len(prediction.label_ids))}

    made = trainer(tmp_path, kind, given={"compute_metrics": count}, evaluate_kl=True)
    scores = made.evaluate()
    assert scores["eval_rows"] == 8
    assert scores["eval_kl"] > 0
    (found, labels), batch = seen[0], made.data_collator(made.eval_dataset)
    logits = found[0] if isinstance(found, tuple) else found
    assert logits.shape[:-1] == (labels.shape if kind.task != "multi_label_classification" else labels.shape[:1])
    with torch.no_grad():
        expected = made.call(made.model.eval(), batch)
    torch.testing.assert_close(torch.as_tensor(logits), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if KINDS[name].task != "seq2seq_lm"])
def test_rows_without_labels_are_predicted(tmp_path, name):
    kind = KINDS[name]
    made = trainer(tmp_path, kind)
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in made.eval_dataset]
    predictions = made.predict(rows).predictions
    assert len(predictions) == 8
    if kind.task == "masked_lm":
        return  # masked anew, as the collator of transformers does
    torch.testing.assert_close(predictions, made.predict(made.eval_dataset).predictions)


@pytest.mark.parametrize("name", ["T5", "BART", "Whisper"])
def test_a_target_text_cannot_be_predicted_from_nothing(tmp_path, name):
    """BART would decode its own input, without a word."""
    made = trainer(tmp_path, KINDS[name])
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in made.eval_dataset]
    if name == "Whisper":
        made.data_collator = lambda rows: {"input_features": torch.stack([row["input_features"] for row in rows])}
    with pytest.raises(ValueError, match=r"neither labels nor decoder_input_ids: .* generate\(\)"):
        made.predict(rows)


@pytest.mark.parametrize("name", [*NAMES, "masked anew"])
def test_a_resumed_run_is_the_run(tmp_path, name):
    kind, rows = KINDS[NAMES[0] if name == "masked anew" else name], None
    if name == "masked anew":
        rows = [{"input_ids": row["input_ids"]} for row in KINDS["Llama"].rows()]
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "rows": rows}
    whole = trainer(tmp_path, kind, **saving)
    whole.train()
    again = trainer(tmp_path, kind, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.distillation_loss.temperature.thresholds == whole.distillation_loss.temperature.thresholds
    for key, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value), key
    again.save_model(str(tmp_path / "saved"))
    loaded = type(again.model).from_pretrained(tmp_path / "saved")
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in again.model.state_dict().items())
