"""Distillation between different tokenizers through the trainer: items, loss, counts, scans, scores, refusals."""

import logging
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig
from test_ranks import SPLITS
from test_ranks import run as on_ranks
from test_sharded import launcher
from text_toys import language_model
from tokenizer_toys import byte_level, sentencepiece
from transformers import DataCollatorForSeq2Seq
from two_tokenizer_toys import rows, student, teacher, texts, trainer, vision_language

from hfkd.data.text_collate import TokenCollator
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.losses.items import group_items
from hfkd.losses.logits import GOLD, ULD
from hfkd.losses.outputs import Outputs
from hfkd.tasks.two_tokenizers import TwoTokenizerLM
from hfkd.utils.targets import IGNORED, HostTargets
from hfkd.utils.token_groups import Groups

JOB = {"objective": "gold", "temperature": "energy(ratio=0.2)", "weighting": "entropy", "max_steps": 3}


def alone(network, ids):
    """A network's logits for one row."""
    with torch.no_grad():
        return network.eval()(torch.tensor([ids])).logits.double()


def naive(row, networks, objective, task, temperature=1.0):
    """The objective's mean over one row's groups, and the cross-entropies of its tokens; None without groups."""
    mine, its = alone(networks[0], row["input_ids"]), alone(networks[1], row["teacher_input_ids"])
    labels = torch.tensor([row["labels"]]), torch.tensor([row["teacher_labels"]])
    learned = [(one[0] != IGNORED).tolist() for one in labels]
    ends = row["byte_ends"], row["teacher_byte_ends"]
    numbers = [torch.tensor([side]) for side in task.pairing.of(ends, learned, row["response_bytes"])]
    targets = [HostTargets.of(one) for one in labels]
    groups = Groups.of(*zip(targets, numbers, strict=True))
    known = [one[0, t.position + 1] for one, t in zip(labels, targets, strict=True)]
    picked = [Outputs(z[0, t.position]) for z, t in zip((mine, its), targets, strict=True)]
    items = group_items(*picked, groups, tuple(known), same=task.same, late=task.pairing.late)
    ce = F.cross_entropy(picked[0].logits, known[0], reduction="none")
    return (objective(items, torch.full((len(items),), temperature)).mean() if len(items) else None), ce


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "objective", [GOLD(eos=True), ULD(), ULD(pairs="bytes", merge="last"), GOLD(position="at")], ids=repr
)
def test_a_steps_loss_is_that_of_each_row_alone(tmp_path, objective, side):
    collator = TokenCollator(byte_level(), padding_side=side)
    made = trainer(tmp_path, objective=objective, ce_weight=0.7, kd_weight=2.0, data_collator=collator)
    data = [made.train_dataset[i] for i in range(6)]
    batch = made.training_collator(data)
    task, networks = made.task, (made.model, made.teacher.networks[0])
    assert isinstance(task, TwoTokenizerLM)
    counts = made._get_num_items_in_batch([batch], torch.device("cpu"))
    with torch.no_grad():
        loss = made.compute_loss(made.model.train(), dict(batch), num_items_in_batch=counts)
    each = [naive(row, networks, objective, task) for row in data]
    ce = torch.cat([one for _, one in each])
    kd = torch.stack([one for one, _ in each if one is not None])
    assert len(kd) >= 4
    torch.testing.assert_close(loss.double(), 0.7 * ce.mean() + 2 * kd.mean(), rtol=1e-4, atol=1e-5)
    assert (int(counts.labels), int(counts.samples)) == (len(ce), len(kd))


def test_it_learns_its_scores_are_the_students_own_and_the_teacher_reads_its_own_tokens(tmp_path):
    made = trainer(tmp_path, args={"max_steps": 12, "learning_rate": 0.5}, weighting="entropy", kd_weight=1.0)
    made.train()
    log = [entry for entry in made.state.log_history if "kd" in entry]
    assert log[-1]["ce"] < log[0]["ce"]
    assert "teacher_accuracy" in made.state.log_history[0]
    logits = [alone(made.model, row["input_ids"]) for row in made.eval_dataset]
    labels = [torch.tensor(row["labels"]) for row in made.eval_dataset]
    ce = torch.cat([F.cross_entropy(z[0, :-1], y[1:], reduction="none") for z, y in zip(logits, labels, strict=True)])
    known = torch.cat([y[1:] != IGNORED for y in labels])
    assert made.evaluate()["eval_loss"] == pytest.approx(ce[known].mean().item(), rel=1e-4)


def test_rows_of_texts_are_tokenised_for_both_and_evaluation_rows_may_be_the_students_alone(tmp_path, caplog):
    scored = rows(6, seed=3).select_columns(["input_ids", "labels"])
    with caplog.at_level(logging.INFO):
        made = trainer(tmp_path, train_dataset=texts(), eval_dataset=scored, args={"max_steps": 1})
    assert "tokenize_for_both(max_length=48, teacher_max_length=64)" in caplog.text
    assert "with equal bytes in both" in caplog.text
    made.train()
    assert made.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("level", ["sample", "item"])
def test_energies_of_the_scan_are_those_of_training(tmp_path, level):
    made = trainer(tmp_path, temperature=f"energy(ratio=0.25, level='{level}')", args={"max_steps": 1})
    made.fit_slots()
    slot = made.distillation_loss.temperature
    found = []
    for row in made.train_dataset:
        batch = made.training_collator([row])
        logits = made.teacher(**made.task.for_teacher(batch))
        items = made.task.items(batch, made.call(made.model, batch), logits)
        energies = items.teacher.energy(4.0)
        if len(items):
            found += energies.tolist() if level == "item" else [energies.mean().item()]
    found.sort()
    count = int(len(found) * 0.25)
    low = (found[count - 1] + found[count]) / 2
    high = (found[-count] + found[-count - 1]) / 2
    assert slot.thresholds == pytest.approx((low, high), rel=1e-4)
    batch = made.training_collator([made.train_dataset[i] for i in range(8)])
    items = made.task.items(batch, made.call(made.model, batch), made.teacher(**made.task.for_teacher(batch)))
    assert {2.0, 4.0, 6.0} & set(slot(items).tolist())


def test_half_of_a_batch_cut_on_its_way_has_its_own_groups(tmp_path):
    made = trainer(tmp_path)
    whole = made.training_collator([made.train_dataset[i] for i in range(6)])
    half = {k: v[:3] if isinstance(v, torch.Tensor) else v for k, v in whole.items()}
    again = made.training_collator([made.train_dataset[i] for i in range(3)])
    assert made.task.count_samples(half) == made.task.count_samples(again)
    taught = made.teacher(**made.task.for_teacher(half))
    items = made.task.items(half, made.call(made.model, half), taught)
    taught = made.teacher(**made.task.for_teacher(again))
    expected = made.task.items(again, made.call(made.model, again), taught)
    torch.testing.assert_close(items.teacher.energy(4.0), expected.teacher.energy(4.0), rtol=1e-4, atol=1e-4)
    assert torch.equal(items.sample, expected.sample)


def test_with_one_tokenizer_uld_and_gold_take_each_token(tmp_path):
    data = rows().select_columns(["input_ids", "labels"])
    taught = teacher()
    taught.resize_token_embeddings(len(byte_level()))
    made = trainer(
        tmp_path, (student(), taught), train_dataset=data, eval_dataset=data, teacher_processing_class=byte_level()
    )
    assert not isinstance(made.task, TwoTokenizerLM)
    made.train()


def test_accumulated_parts_are_the_whole(tmp_path):
    found = []
    for name, size in (("whole", 8), ("parts", 2)):
        args = {"max_steps": 2, "per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        made = trainer(tmp_path / name, (student().double(), teacher().double()), args, weighting="entropy")
        made.train()
        found.append(made.model.state_dict())
    for name, parameter in found[0].items():
        torch.testing.assert_close(found[1][name], parameter, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("whole") / "run", 1, "two_tokenizer_toys.py", JOB, **SPLITS["1 x 8"][1])


def assert_same_run(one, other):
    (parameters, record), (others, other_record) = one, other
    for name, parameter in parameters.items():
        torch.testing.assert_close(others[name], parameter, rtol=0, atol=1e-9)
    assert other_record["thresholds"] == pytest.approx(record["thresholds"], abs=1e-6)
    assert other_record["scores"]["eval_loss"] == pytest.approx(record["scores"]["eval_loss"], abs=1e-9)
    steps = [[r for r in log["log"] if "grad_norm" in r] for log in (record, other_record)]
    for a, b in zip(*steps, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-6)
        assert b["ce"] == pytest.approx(a["ce"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["1 x 4 x 2", "2 x 4"])
def test_two_ranks_and_accumulation_are_one_process(tmp_path, whole, way):
    count, split = SPLITS[way]
    assert_same_run(whole, on_ranks(tmp_path / "run", count, "two_tokenizer_toys.py", JOB, **split))


@pytest.mark.slow
def test_two_ranks_read_a_stream_as_one_process_does(tmp_path):
    """Each rank takes every other batch of it, so that an optimizer step has the same rows."""
    job = JOB | {"stream": True, "temperature": "2.0"}
    one, two = (
        on_ranks(tmp_path / way, SPLITS[way][0], "two_tokenizer_toys.py", job, **SPLITS[way][1])
        for way in ("1 x 8", "2 x 4")
    )
    assert_same_run(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("shard_teacher", [False, True])
def test_fsdp_trains_as_one_process_does(tmp_path, whole, shard_teacher):
    job = JOB | {"shard_teacher": shard_teacher}
    split = SPLITS["2 x 4"][1]
    sharded = on_ranks(tmp_path / "run", 2, "two_tokenizer_toys.py", job, launcher("fsdp"), **split)
    assert sharded[1]["kind"] == "FSDPGPT2LMHeadModel"
    assert_same_run(whole, sharded)


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path):
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01}
    whole = trainer(tmp_path / "whole", args=args, temperature="energy(ratio=0.2)", weighting="entropy")
    whole.train()
    again = trainer(tmp_path / "whole", args=args, temperature="energy(ratio=0.2)", weighting="entropy")
    again.train(str(tmp_path / "whole" / "checkpoint-2"))
    for a, b in pairwise((whole.model, again.model)):
        for name, parameter in a.state_dict().items():
            assert torch.equal(b.state_dict()[name], parameter), name
    losses = [[e["loss"] for e in one.state.log_history if "loss" in e] for one in (whole, again)]
    assert losses[0] == losses[1]


def test_another_teacher_is_refused_on_resume(tmp_path):
    args = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, args=args).train()
    other = teacher()
    with torch.no_grad():
        other.transformer.wte.weight.mul_(0.1)
    with pytest.raises(ValueError, match="another"):
        trainer(tmp_path, (student(), other), args=args).train(str(tmp_path / "checkpoint-1"))


def only_students():
    return rows().select_columns(["input_ids", "labels", "index"])


REFUSED = {
    "kd": (
        {"objective": "kd"},
        {},
        "Use models with the same tokenizer, or an objective for two tokenizers: uld or gold",
    ),
    "a sum with kd": ({"objective": "gold + kd"}, {}, "an objective for two tokenizers: uld or gold"),
    "two pairings": ({"objective": "gold + uld"}, {}, "terms would match tokens in different ways"),
    "late positions in chunks": (
        {"objective": "gold(position='at')"},
        {"loss_chunk_size": 64},
        "which may be in another chunk: set loss_chunk_size to 0",
    ),
    "on-policy": ({"ce_weight": 0.0}, {"on_policy": 1.0}, "on_policy=1.0 is not supported"),
    "seq_kd": ({}, {"seq_kd": True}, "seq_kd=True is not supported"),
    "evaluate_kl": ({}, {"evaluate_kl": True}, "the KL between two vocabularies is not defined"),
    "logits": (
        {"temperature": "learned(instance=True)"},
        {},
        "reads logits, but with different tokenizers",
    ),
    "teacher_cache_dir": ({}, {"teacher_cache_dir": "cache"}, "teacher_cache_dir=cache is not supported if student"),
    "a feature's term": ({"objective": "gold + hidden_cosine"}, {}, "uld or gold, without other terms"),
    "labels alone": (
        {"kd_weight": 0.0},
        {},
        "the teacher's token ids differ from the student's.* leave the teacher out",
    ),
    "standardized": ({"weighting": "entropy(standardized=True)"}, {}, "reads logits, but with different tokenizers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_two_tokenizers_cannot_have_is_refused_when_the_trainer_is_built(tmp_path, case):
    keywords, args, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "run", args=args, **keywords)
    assert not (tmp_path / "run").exists()


def test_rows_and_collators_of_one_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no teacher_input_ids, but .* by hfkd.data.two_tokenizers.tokenize_for_both"):
        trainer(tmp_path / "run", train_dataset=only_students())
    with pytest.raises(ValueError, match="data_collator=.* creates batches of the student's tokens only"):
        trainer(tmp_path / "run", data_collator=DataCollatorForSeq2Seq(byte_level()))
    with pytest.raises(ValueError, match="several teachers is not supported"):
        trainer(tmp_path / "run", (student(), [teacher(), teacher()]))
    assert not (tmp_path / "run").exists()


class Stream(torch.utils.data.IterableDataset):
    """Rows whose columns nobody knows."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        yield from self.dataset


def test_a_stream_trains_what_a_dataset_does(tmp_path):
    args = {"max_steps": 2, "train_sampling_strategy": "sequential"}
    found = []
    for name, data in (("rows", rows()), ("stream", rows().to_iterable_dataset()), ("unknown", Stream(rows()))):
        made = trainer(tmp_path / name, args=args, train_dataset=data)
        made.train()
        found.append(made.model.state_dict())
    for name, parameter in found[0].items():
        assert torch.equal(found[1][name], parameter), name
        assert torch.equal(found[2][name], parameter), name


def test_a_stream_of_texts_is_refused_where_its_columns_are_known_and_its_remedy_serves(tmp_path):
    stream = texts(6).to_iterable_dataset()
    with pytest.raises(
        ValueError,
        match=r"a stream of texts .*Dataset.from_generator\(lambda: stream\) and tokenise it with .*for_both",
    ):
        trainer(tmp_path / "run", train_dataset=stream)
    with pytest.raises(
        ValueError, match=r"a stream of texts .* with .*text.tokenize_dataset, or pass a stream of tokens"
    ):
        trainer(tmp_path / "run", train_dataset=stream, teacher_processing_class=byte_level())
    assert not (tmp_path / "run").exists()
    stored = Dataset.from_generator(lambda: stream)
    lengths = {"max_length": 40, "max_prompt_length": 20}
    assert len(tokenize_for_both(stored, byte_level(), sentencepiece(), **lengths)) == 6


IN_A_STREAM = {
    "texts": (lambda: texts(6), {}, "the dataset's rows have no 'input_ids'.*tokenize_for_both"),
    "one tokenizer": (lambda: only_students(), {}, "the rows have no teacher_input_ids, but the teacher has another"),
    "no tokenizer of the teacher": (
        lambda: rows(6),
        {"teacher_processing_class": None, "eval_dataset": rows(2).select_columns(["input_ids", "labels"])},
        "the rows have teacher_input_ids, which.*for a teacher with another tokenizer pass teacher_processing_class",
    ),
}


@pytest.mark.parametrize("case", IN_A_STREAM)
def test_what_a_stream_turns_out_to_be_is_refused_before_the_first_step(tmp_path, case):
    make, keywords, message = IN_A_STREAM[case]
    both = student(), language_model(width=24, vocab=len(byte_level()) + 3, seed=1, positions=64)
    made = trainer(tmp_path, both, {"max_steps": 1}, train_dataset=Stream(make()), **keywords)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        made.train()
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_vision_language_model_reads_texts_and_rows_with_images_are_refused(tmp_path):
    networks = student(), vision_language(len(sentencepiece()))
    made = trainer(tmp_path / "texts", networks, {"max_steps": 1})
    made.train()
    assert made.state.log_history[-1]["train_loss"] > 0
    images = [{**row, "pixel_values": torch.zeros(3, 8, 8)} for row in rows(2)]
    for pair in (networks, networks[::-1]):
        sides = (
            {} if pair is networks else {"processing_class": sentencepiece(), "teacher_processing_class": byte_level()}
        )
        with pytest.raises(ValueError, match="row 0 has pixel_values, but batches of two tokenizers have text only"):
            trainer(tmp_path / "run", pair, train_dataset=images, **sides)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    "args",
    [
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow),
        pytest.param({"torch_compile": True, "torch_compile_backend": "aot_eager"}, marks=pytest.mark.slow),
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        pytest.param({"dataloader_num_workers": 1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ways_to_run_change_nothing(tmp_path, args):
    found = []
    for name, more in (("plain", {}), ("other", args)):
        made = trainer(tmp_path / name, args={"max_steps": 1} | more, weighting="entropy")
        made.train()
        found.append(made.model.state_dict())
    for name, parameter in found[0].items():
        torch.testing.assert_close(found[1][name], parameter, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_adapters_learn_as_the_whole_student_does(tmp_path, compiled):
    """PEFT's LoRA: the first step's loss is that of the student itself, for an adapter begins with 0."""
    lora = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    args = {"max_steps": 2, "logging_steps": 1}
    args |= {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
    made, plain = trainer(tmp_path / "lora", args=args, peft_config=lora), trainer(tmp_path / "plain", args=args)
    losses = []
    for one in (made, plain):
        one.train()
        losses.append([entry["loss"] for entry in one.state.log_history if "loss" in entry])
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    changed = {n for n, p in made.model.named_parameters() if p.grad is not None or p.requires_grad}
    assert changed
    assert all("lora" in name for name in changed)


def test_late_positions_are_refused_with_one_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="position='at' is an option for different tokenizers"):
        trainer(tmp_path, teacher_processing_class=byte_level(), objective="gold(position='at')")


def test_a_row_too_long_for_the_teacher_and_a_token_that_it_lacks_are_named(tmp_path):
    long = texts(8).map(lambda row: {"completion": "cats and dogs " * 30})
    lengths = {"max_length": 40, "max_prompt_length": 20, "teacher_max_length": 160}
    long = tokenize_for_both(long, byte_level(), sentencepiece(), **lengths)
    with pytest.raises(ValueError, match=r"the longest training row has \d+ tokens, but GPT2LMHeadModel has 64"):
        trainer(tmp_path / "run", train_dataset=long)
    few = teacher()
    few.resize_token_embeddings(300)
    with pytest.raises(ValueError, match="GPT2LMHeadModel has embeddings for"):
        trainer(tmp_path / "run", (student(), few))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hybrid", [False, True])
def test_the_loss_of_trls_trainer_at_late_positions(tmp_path, hybrid):
    gold = pytest.importorskip("trl.experimental.gold.gold_trainer", reason="TRL is not installed")
    objective = GOLD(position="at") if hybrid else ULD(pairs="bytes", position="at")
    made = trainer(tmp_path, objective=objective, ce_weight=0.0, kd_weight=1.0)
    data = [row for row in made.train_dataset if row["response_bytes"] > 2][:4]
    batch = made.training_collator(data)
    theirs = object.__new__(gold.ULDLoss)
    torch.nn.Module.__init__(theirs)
    ours, other = byte_level(), sentencepiece()
    for name, value in {
        "student_temperature": 1.0, "teacher_temperature": 1.0, "skip_student_eos": True, "skip_teacher_eos": True,
        "use_extended_uld": True, "use_hybrid_loss": hybrid, "token_merge_strategy": "observed", "beta": 0.5,
        "hybrid_matched_weight": None, "hybrid_unmatched_weight": None, "distillation_weight": 1.0,
        "ignore_index": IGNORED, "_vocab_mapping": dict(torch.stack(made.task.same[::-1], dim=-1).tolist()),
    }.items():  # fmt: skip
        setattr(theirs, name, value)
    assert len(ours) != len(other)
    theirs._teacher_matched_ids = set(theirs._vocab_mapping)
    theirs.mapping_tensor = torch.full((len(other) + 1,), -1)
    for k, v in theirs._vocab_mapping.items():
        theirs.mapping_tensor[k] = v
    mine, its = made.call(made.model, batch), made.teacher(**made.task.for_teacher(batch))
    offsets = [
        offsets_of(data, name, batch[key])
        for name, key in (("byte_ends", "labels"), ("teacher_byte_ends", "teacher_labels"))
    ]
    expected = theirs._compute_distillation_loss(
        mine, its, batch["labels"], batch["teacher_labels"], batch["input_ids"], batch["teacher_input_ids"], *offsets
    )
    with torch.no_grad():
        counts = made._get_num_items_in_batch([batch], torch.device("cpu"))
        loss = made.compute_loss(made.model.train(), dict(batch), num_items_in_batch=counts)
    torch.testing.assert_close(loss, expected.detach().squeeze(), rtol=1e-4, atol=1e-6)


def offsets_of(data, name, like):
    ends = torch.zeros(*like.shape, 2, dtype=torch.long)
    for b, row in enumerate(data):
        ends[b, : len(row[name]), 1] = torch.tensor([min(end, row["response_bytes"]) for end in row[name]])
    return ends
