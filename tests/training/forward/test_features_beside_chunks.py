"""Terms on inner layers beside a loss over chunks of tokens or strips of maps: the same as beside whole logits."""

import pytest
import torch
from task_toys import masks, segformer
from text_toys import TokenRows, language_model, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.losses.base import Requirements
from hfkd.losses.chunked import ChunkedLoss
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import token_hidden
from hfkd.training.forward.dense import DenseForward
from hfkd.training.forward.strips import StripForward

SLOTS = {"weighting": "entropy", "ce_weight": 0.5, "kd_weight": 0.5}
ON_LAYERS = ("hidden", "minilm", "attention", "rkd", "at", "cwd")
BY_ENERGY = {"temperature": "energy(ratio=0.25)"}
STEPS = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 2}


def deep_teacher():
    return language_model(24, layers=4, seed=1)


def language(folder, chunk_size, **keywords):
    rows = keywords.pop("rows", None)
    return DistillationTrainer(
        language_model(layers=2),
        deep_teacher(),
        arguments(folder, loss_chunk_size=chunk_size, **(STEPS | SLOTS | keywords)),
        processing_class=tokenizer(),
        train_dataset=TokenRows() if rows is None else rows,
    )


def trained(trainer):
    """What was logged, and all that trains: the student's weights and the objective's own."""
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return logs, dict(trainer.model.named_parameters()) | dict(trainer.distillation_loss.named_parameters())


def assert_same(ours, theirs):
    (logs, weights), (its_logs, its_weights) = trained(ours), trained(theirs)
    assert [list(entry) for entry in logs] == [list(entry) for entry in its_logs]
    for mine, its in zip(logs, its_logs, strict=True):
        assert mine == pytest.approx(its, rel=1e-4, abs=1e-5)
    assert weights.keys() == its_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, its_weights[name], rtol=1e-4, atol=1e-6)
    of_layers = [value for name, value in logs[0].items() if name.startswith(ON_LAYERS)]
    assert of_layers
    assert all(value > 0 for value in of_layers)


@pytest.mark.parametrize(
    ("settings", "chunk_size"),
    [
        ({"objective": "kd + 2 * hidden_mse"} | BY_ENERGY, 3),
        ({"objective": "0.5 * hidden_cosine(projection=True) + hidden_mse(layers={1: 2}) + dkd + minilm(heads=2)"}, 5),
        ({"objective": "kd(scale='none') + attention_scores"} | BY_ENERGY, 500),
        ({"objective": "hidden_mse", "ce_weight": 0.0}, 4),
        ({"objective": "kd + rkd(layer='transformer.ln_f')"}, 3),
    ],
)
def test_states_beside_chunks_of_tokens_train_as_beside_whole_logits(tmp_path, settings, chunk_size):
    assert_same(language(tmp_path / "c", chunk_size, **settings), language(tmp_path / "d", 0, **settings))


def test_terms_of_samples_take_the_chunks_weights(tmp_path):
    """Rows differ in weight: with uniform weights the same term is another number."""
    weighted, uniform = (
        trained(language(tmp_path / name, 3, objective="hidden_mse", weighting=name))[0][0]["hidden_mse"]
        for name in ("entropy", "uniform")
    )
    assert weighted != pytest.approx(uniform, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "labelled"),
    [
        ({"objective": "kd + 100 * at(layers=('decode_head.linear_fuse',))"} | BY_ENERGY, True),
        ({"objective": "cwd"}, True),
        ({"objective": "cwd", "ce_weight": 0.0}, False),
    ],
)
def test_maps_beside_strips_train_as_beside_whole_maps(tmp_path, settings, labelled, monkeypatch):
    rows = [row if labelled else {"pixel_values": row["pixel_values"]} for row in masks(16)]

    def build(name):
        torch.manual_seed(0)
        networks = segformer(8), segformer(16)
        args = arguments(tmp_path / name, task="semantic_segmentation", **(STEPS | SLOTS | settings))
        return DistillationTrainer(*networks, args, train_dataset=rows)

    ours = build("strips")
    assert isinstance(ours.step, StripForward)
    monkeypatch.setattr("hfkd.training.forward.choice.by_strips", lambda loss: False)
    theirs = build("whole")
    assert type(theirs.step) is DenseForward
    assert_same(ours, theirs)


class ReadsLogits(LayerPairs):
    """Says nothing of the logits that it reads."""

    def __init__(self):
        super().__init__(1, None)

    def forward(self, items, temperature):
        return items.sample_means(items.student.logits.sum(-1))


class SaysSo(ReadsLogits):
    def requirements(self):
        return Requirements(self.student_keys, self.teacher_keys)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (SaysSo(), r"SaysSo\(\) may read all items' logits for a value per sample .*set loss_chunk_size=0"),
        (
            "kd + hidden_mse(layers='logits')",
            "reads the networks' whole logits, which loss_chunk_size does not compute",
        ),
    ],
)
def test_what_reads_logits_besides_is_refused_when_built(tmp_path, objective, said):
    with pytest.raises(ValueError, match=said):
        language(tmp_path, 3, objective=objective)


@pytest.mark.parametrize(
    ("objective", "layer"),
    [
        ("kd + rkd", "layer 'pooled' of the student"),
        ("kd + hidden_mse(layers='lm_head:in')", "layer 'lm_head:in' of the student"),
        ("kd + pkt(layer='transformer.ln_f', teacher_layer='lm_head')", "layer 'lm_head' of the teacher"),
    ],
)
def test_layers_of_the_output_head_are_refused_when_built(tmp_path, objective, layer):
    """It runs for one position of each row there."""
    with pytest.raises(ValueError, match=f"{layer} is part of its output head, which loss_chunk_size does not apply"):
        language(tmp_path, 3, objective=objective)


def test_what_the_output_head_gives_is_read_for_all_positions(tmp_path):
    """With whole logits the head sees the target tokens alone, unless it is read there."""
    at_head, of_logits = (
        trained(language(tmp_path / layer, 0, objective=f"kd + hidden_mse(layers='{layer}')"))
        for layer in ("lm_head", "logits")
    )
    assert [entry["hidden_mse"] for entry in at_head[0]] == pytest.approx(
        [entry["hidden_mse"] for entry in of_logits[0]], rel=1e-5
    )


@pytest.mark.parametrize(
    "slot",
    [
        {"weighting": "entropy(standardized=True)"},
        {"weighting": "matched(weighting='entropy(standardized=True)')"},
        {"temperature": "learned(instance=True)"},
    ],
)
def test_slots_that_read_logits_are_refused_when_built(tmp_path, slot):
    with pytest.raises(ValueError, match=r"reads logits, but a chunked loss provides only .*set loss_chunk_size=0"):
        language(tmp_path, 3, objective="kd", **slot)
    language(tmp_path, 3, objective="kd", kd_weight=0.0, **slot)


def test_what_reads_logits_and_does_not_say_so_stops_at_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"set signals=False in its requirements\(\)"):
        language(tmp_path, 3, objective=ReadsLogits()).train()


def test_the_loss_alone_asks_for_the_features():
    items = token_hidden(torch.ones(2, 4, 3), torch.ones(2, 4, 3), torch.ones(2, 4, dtype=torch.long))
    head = torch.nn.Linear(3, 5)
    with pytest.raises(ValueError, match=r"HiddenItems\.beside is None"):
        ChunkedLoss(DistillationLoss("kd + hidden_mse"), 4)(items, head, head)


@pytest.mark.parametrize("chunk_size", [0, 3])
def test_what_is_logged_of_samples_is_their_mean_however_a_batch_is_cut(tmp_path, chunk_size):
    """Rows differ in length: a mean over tokens of the micro-batches' means would be another number."""
    settings = {"objective": "kd + hidden_mse", "max_steps": 1, "learning_rate": 0.0}
    found = []
    for name, size in (("whole", 8), ("parts", 2)):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        run = language(tmp_path / name, chunk_size, **settings, **cut)
        found.append(trained(run)[0][0])
    for name in ("ce", "kd", "hidden_mse", "weight"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name
