"""Steps on responses that student or teacher write: who writes, what, and that the loss is that of such rows."""

import copy
import json
import math

import pytest
import torch
from datasets import Dataset
from text_toys import VOCAB, language_model, taught_model, token_dataset, tokenizer
from toys import arguments

from hfkd import DistillationTrainer
from hfkd.data.text_collate import TokenCollator
from hfkd.models.on_policy_arguments import OnPolicyArguments
from hfkd.training.on_policy.schedule import writer_of
from hfkd.training.on_policy.writing import ResponseWriter, up_to_end
from hfkd.utils.targets import IGNORED

ROWS = token_dataset(24, seed=5)
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 3], [4, 4, 4, 4]]
SHORT = {"on_policy_max_new_tokens": 6}


def student(seed=0, spread=6.0, **more):
    """Sure enough of some tokens for its responses to differ, and to end now and then."""
    model = language_model(seed=seed, **more)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(spread)
    return model


def writer(known=None, **settings):
    return ResponseWriter(OnPolicyArguments(on_policy=1.0, **SHORT | settings), tokenizer(), 7, known)


def trained(folder, rows=ROWS, model=None, teacher=None, collator=None, **settings):
    settings = (SHORT if settings.keys() & {"on_policy", "seq_kd"} else {}) | settings
    trainer = DistillationTrainer(
        model or student(),
        teacher or taught_model(),
        arguments(folder, **{"ce_weight": 0.0, "kd_weight": 1.0, "max_steps": 1} | settings),
        train_dataset=rows,
        processing_class=tokenizer(),
        data_collator=collator,
    )
    trainer.train()
    return trainer


def logged(trainer, *names):
    entries = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    return [
        {name: entry[name] for name in (names or ("loss", "kd", "grad_norm")) if name in entry} for entry in entries
    ]


def kept(folder, step=1):
    return [json.loads(line) for line in (folder / "completions" / f"step-{step}.jsonl").read_text().splitlines()]


# ---- who writes -----------------------------------------------------------------------------------------------------


def test_who_writes_is_drawn_from_seed_and_step():
    drawn = [writer_of(step, 3, 0.3, False) for step in range(2000)]
    assert drawn == [writer_of(step, 3, 0.3, False) for step in range(2000)]
    assert drawn != [writer_of(step, 4, 0.3, False) for step in range(2000)]
    assert 0.26 < drawn.count("student") / 2000 < 0.34
    assert {writer_of(step, 3, 1.0, False) for step in range(200)} == {"student"}
    assert {writer_of(step, 3, 0.0, True) for step in range(200)} == {"teacher"}
    assert [writer_of(step, 3, 0.3, True) == "student" for step in range(200)] == [
        one is not None for one in drawn[:200]
    ]


TURNS = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]  # a question, its answer, another question and its answer
LAST = [IGNORED] * 7 + TURNS[7:]
EACH = [IGNORED] * 2 + TURNS[2:5] + [IGNORED] * 2 + TURNS[7:]


@pytest.mark.parametrize("who", [{"on_policy": 1.0}, {"seq_kd": True}])
@pytest.mark.parametrize("columns", [{"labels": EACH}, {"assistant_masks": [int(label != IGNORED) for label in EACH]}])
def test_of_several_answers_in_a_row_the_last_is_written(tmp_path, caplog, who, columns):
    def of(name, columns):
        rows = Dataset.from_list([{"input_ids": TURNS, "index": i} | columns for i in range(8)])
        return logged(trained(tmp_path / name, rows, logging_steps=1, log_completions=True, **who))

    one = of("one", {"labels": LAST})
    assert "several answers" not in caplog.text
    assert of("several", columns) == one
    assert caplog.text.count("several answers") == 1
    prompts = [{line["prompt"] for line in kept(tmp_path / name)} for name in ("one", "several")]
    assert prompts == [{tokenizer().decode(TURNS[:7])}] * 2


# ---- what is written ------------------------------------------------------------------------------------------------


def test_a_response_is_the_same_alone_and_in_any_batch():
    model, rows = student(), [11, 5, 8, 2, 40]
    whole = writer()(model, PROMPTS, rows, 9)
    assert writer(on_policy_batch_size=2)(model, PROMPTS, rows, 9) == whole
    assert [writer()(model, [one], [row], 9)[0] for one, row in zip(PROMPTS, rows, strict=True)] == whole
    assert writer()(model, PROMPTS, rows, 10) != whole
    assert len({tuple(one) for one in writer()(model, [[3, 4]] * 8, range(8), 9)}) > 4
    assert all(one[-1] == 1 or len(one) == 6 for one in whole)


def test_without_a_temperature_the_likeliest_token_is_taken():
    model = student().eval()
    found = writer(on_policy_temperature=0.0)(model, PROMPTS, range(5), 0)
    for prompt, response in zip(PROMPTS, found, strict=True):
        ids = list(prompt)
        for token in response:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
        assert 1 not in response[:-1]


def test_tokens_that_the_other_network_lacks_are_not_written():
    padded = language_model(vocab=VOCAB + 40)
    free = {token for one in writer()(padded, PROMPTS * 8, range(40), 0) for token in one}
    bound = {token for one in writer(known=VOCAB)(padded, PROMPTS * 8, range(40), 0) for token in one}
    assert max(bound) < VOCAB <= max(free)


def test_a_network_writes_in_eval_mode_and_is_left_as_it_was():
    model, still = student(dropout=0.5), student()
    model.train()
    model.transformer.h[0].eval()
    modes, config = [m.training for m in model.modules()], copy.deepcopy(model.generation_config)
    state = torch.get_rng_state()
    assert writer()(model, PROMPTS, range(5), 3) == writer()(still, PROMPTS, range(5), 3)
    assert [m.training for m in model.modules()] == modes
    assert model.generation_config == config
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("tokens", "expected"), [([1], [1]), ([5, 1, 1, 6], [5, 1]), ([5, 6], [5, 6]), ([1, 5], [1]), ([], [])]
)
def test_a_response_goes_up_to_its_end(tokens, expected):
    assert up_to_end(tokens, {1}) == expected


def test_the_teachers_end_of_turn_ends_what_the_student_writes(tmp_path, caplog):
    """A base model learns to end as its teacher does, an instructed one; behind that nothing is taught."""
    trained(tmp_path / "base", on_policy=1.0, log_completions=True)
    before = [row["input_ids"][row["labels"].count(IGNORED) :] for row in as_rows(tmp_path / "base")]
    turn = next(token for one in before for token in one[:-1])
    assert "The teacher ends responses" not in caplog.text
    for way in ({"on_policy": 1.0}, {"seq_kd": True}):
        teacher, folder = taught_model(), tmp_path / next(iter(way))
        teacher.generation_config.eos_token_id = [1, turn]
        caplog.clear()
        found = trained(folder, teacher=teacher, log_completions=True, **way)
        after = [row["input_ids"][row["labels"].count(IGNORED) :] for row in as_rows(folder)]
        if "on_policy" in way:
            assert after == [up_to_end(one, {1, turn}) for one in before]
        ended = sum(one[-1] in (1, turn) for one in after) / len(after)
        assert logged(found, "completion_ended")[0]["completion_ended"] == pytest.approx(ended)
        assert f"The teacher ends responses with the tokens [{turn}] too" in caplog.text
        assert f"eos_token_id = {sorted((1, turn))}" in caplog.text


def test_the_collators_tokenizer_says_where_responses_end(tmp_path):
    """As in Trainer, which needs no processing_class for rows of tokens."""
    model = student()
    model.generation_config.eos_token_id = None
    teacher = taught_model()
    teacher.generation_config.eos_token_id = None
    settings = {"on_policy": 1.0, "log_completions": True, **SHORT, "ce_weight": 0.0, "kd_weight": 1.0, "max_steps": 1}
    DistillationTrainer(
        model,
        teacher,
        arguments(tmp_path / "run", **settings),
        train_dataset=ROWS,
        data_collator=TokenCollator(tokenizer()),
    ).train()
    trained(tmp_path / "given", on_policy=1.0, log_completions=True)
    assert kept(tmp_path / "run") == kept(tmp_path / "given")


class Mute(type(language_model())):
    """Gives back the prompt, as an encoder-decoder's wrapper might."""

    def generate(self, input_ids, **keywords):
        return input_ids


def test_a_network_that_writes_nothing_is_said_so():
    with pytest.raises(ValueError, match="Mute.generate returned no new token for the prompt of row 7"):
        writer()(Mute(language_model().config), [[3, 4]], [7], 0)


# ---- the loss -------------------------------------------------------------------------------------------------------


def as_rows(trainer_folder, step=1):
    """What was written, as rows of a data set."""
    words, rows = tokenizer(), []
    for one in kept(trainer_folder, step):
        prompt, response = (words(one[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "response"))
        rows.append({"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response, "index": one["row"]})
    return Dataset.from_list(rows)


GIVEN = "energy(thresholds=(-26, -20))"
WAYS = {
    "KD": {"temperature": 1.0},
    "GKD": {"temperature": 1.0, "objective": "jsd(beta=0.3, scale='none')"},
    "reverse": {"temperature": 1.0, "objective": "reverse_kl"},
    "energies and entropies": {"temperature": GIVEN, "weighting": "entropy"},
    "of single tokens": {
        "temperature": "energy(thresholds=(-26, -20), level='item')",
        "weighting": "entropy(level='item')",
    },
    "chunks": {"temperature": GIVEN, "weighting": "entropy", "loss_chunk_size": 5},
    "accumulated": {"weighting": "entropy", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_that_of_rows_with_these_responses(tmp_path, way):
    written = trained(tmp_path / "written", on_policy=1.0, log_completions=True, **WAYS[way])
    rows = as_rows(tmp_path / "written")
    assert len(rows) == 8
    plain = trained(tmp_path / "plain", rows, **WAYS[way], train_sampling_strategy="sequential")
    names = ("loss", "kd", "temperature", "weight", "grad_norm")
    assert logged(written, *names)[0] == pytest.approx(logged(plain, *names)[0], rel=1e-5)
    for a, b in zip(written.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def naive_gkd(model, teacher, rows, beta):
    """Agarwal et al., Eq. 1 and the mean over the responses' tokens, one token at a time."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        p, q = (net.eval()(ids).logits[0].double().softmax(-1) for net in (teacher, model))
        for i, label in enumerate(row["labels"][1:]):
            if label != IGNORED:
                m = beta * p[i] + (1 - beta) * q[i]
                first = sum(a * math.log(a / c) for a, c in zip(p[i].tolist(), m.tolist(), strict=True))
                second = sum(b * math.log(b / c) for b, c in zip(q[i].tolist(), m.tolist(), strict=True))
                total, count = total + beta * first + (1 - beta) * second, count + 1
    return total / count


def test_the_loss_is_gkds(tmp_path):
    objective = {"objective": "jsd(beta=0.3, scale='none')", "temperature": 1.0}
    found = trained(tmp_path, on_policy=1.0, log_completions=True, **objective)
    expected = naive_gkd(student(), taught_model(), as_rows(tmp_path), 0.3)
    assert logged(found)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_written_steps_and_others_take_turns(tmp_path):
    """A step that nobody writes is a plain one, labels and all; one of the student's own learns no labels."""
    settings = {"ce_weight": 0.5, "kd_weight": 0.5, "max_steps": 4, "learning_rate": 0.0}
    mixed = logged(trained(tmp_path / "mixed", on_policy=0.5, **settings), "loss", "ce", "kd", "on_policy_steps")
    plain = logged(trained(tmp_path / "plain", **settings), "loss", "ce", "kd")
    turns = [writer_of(step, 42, 0.5, False) for step in range(4)]
    assert len(set(turns)) == 2
    for turn, one, other in zip(turns, mixed, plain, strict=True):
        assert one.pop("on_policy_steps") == (turn == "student")
        if turn is None:
            assert one == other
        else:
            assert "ce" not in one
            assert one["loss"] == pytest.approx(0.5 * one["kd"], rel=1e-5)
            assert one["kd"] != pytest.approx(other["kd"], rel=1e-3)


class Stream(torch.utils.data.IterableDataset):
    """Two batches, as often as they are asked for."""

    def __iter__(self):
        return iter(ROWS.select(range(16)))


def test_the_share_of_written_steps_is_that_of_the_steps_of_a_stream(tmp_path):
    """At the end of each pass Trainer asks for the batches of all steps that a longer one would have had."""
    settings = {"max_steps": 6, "logging_steps": 6, "ce_weight": 0.1, "seed": 1}
    (entry,) = logged(trained(tmp_path, Stream(), on_policy=0.5, **settings), "on_policy_steps")
    turns = [writer_of(step, 1, 0.5, False) == "student" for step in range(6)]
    assert entry["on_policy_steps"] == pytest.approx(sum(turns) / 6, rel=1e-4)


def test_the_mean_cross_entropy_is_of_the_steps_that_have_one(tmp_path):
    settings = {"ce_weight": 0.5, "kd_weight": 0.5, "max_steps": 4, "learning_rate": 0.0}
    single = logged(trained(tmp_path / "single", on_policy=0.5, **settings, per_device_train_batch_size=24), "ce")
    mean = logged(
        trained(tmp_path / "mean", on_policy=0.5, **settings, per_device_train_batch_size=24, logging_steps=4), "ce"
    )
    values = [entry["ce"] for entry in single if entry]
    assert 0 < len(values) < 4
    assert mean[0]["ce"] == pytest.approx(sum(values) / len(values), rel=1e-5)  # all rows in each step


def test_the_teachers_responses_are_labels(tmp_path):
    """SeqKD (Kim and Rush, 2016): cross-entropy on what the teacher writes."""
    labels = {"ce_weight": 1.0, "kd_weight": 0.0}
    found = trained(tmp_path / "seq", seq_kd=True, log_completions=True, **labels)
    assert {one["by"] for one in kept(tmp_path / "seq")} == {"teacher"}
    assert logged(found, "on_policy_steps") == [{"on_policy_steps": 0.0}]
    rows, model = as_rows(tmp_path / "seq"), student()
    losses = [
        -model(torch.tensor([row["input_ids"]])).logits[0, i].log_softmax(-1)[label].item()
        for row in rows
        for i, label in enumerate(row["labels"][1:])
        if label != IGNORED
    ]
    assert logged(found)[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_thresholds_are_those_of_the_rows_own_responses(tmp_path):
    slots = {"temperature": "energy(ratio=0.3)", "weighting": "entropy"}
    written, plain = trained(tmp_path / "written", on_policy=1.0, **slots), trained(tmp_path / "plain", **slots)
    assert written.distillation_loss.temperature.thresholds == plain.distillation_loss.temperature.thresholds


def test_a_response_that_is_cut_or_ends_at_once_is_learned(tmp_path):
    sure = student()
    with torch.no_grad():  # the end of sequence, whatever came before
        sure.transformer.ln_f.weight.zero_()
        sure.transformer.ln_f.bias.copy_(sure.transformer.wte.weight[1] * 50)
    found = trained(tmp_path, model=sure, on_policy=1.0, log_completions=True)
    assert logged(found, "completion_length", "completion_ended") == [{"completion_length": 1, "completion_ended": 1}]
    assert all(row["labels"][-1] == 1 and row["labels"][-2] == IGNORED for row in as_rows(tmp_path))
    assert logged(found)[0]["loss"] > 0


def test_a_resumed_run_is_bit_identical(tmp_path):
    settings = {"on_policy": 0.5, "seq_kd": True, "max_steps": 6, "log_completions": True, "optim": "adamw_torch"}
    settings |= {"learning_rate": 1e-3, "temperature": GIVEN, "weighting": "entropy"}
    whole = trained(tmp_path / "whole", **settings, model=student(dropout=0.1))
    texts = [kept(tmp_path / "whole", step) for step in range(1, 7)]
    assert len({one[0]["by"] for one in texts}) == 2
    parted = DistillationTrainer(
        student(dropout=0.1),
        taught_model(),
        arguments(
            tmp_path / "parted", **SHORT, ce_weight=0.0, kd_weight=1.0, **settings, save_strategy="steps", save_steps=3
        ),
        train_dataset=ROWS,
        processing_class=tokenizer(),
    )
    parted.train()
    again = DistillationTrainer(
        student(seed=3, dropout=0.1),
        taught_model(),
        arguments(tmp_path / "parted", **SHORT, ce_weight=0.0, kd_weight=1.0, **settings),
        train_dataset=ROWS,
        processing_class=tokenizer(),
    )
    for step in range(4, 7):
        (tmp_path / "parted" / "completions" / f"step-{step}.jsonl").unlink()
    again.train(resume_from_checkpoint=str(tmp_path / "parted" / "checkpoint-3"))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [kept(tmp_path / "parted", step) for step in range(1, 7)] == texts


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"logging_steps": 2}, [2]),
        ({"logging_steps": 2, "logging_first_step": True}, [1, 2]),
        (
            {"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 24},
            [1, 2],
        ),
        ({"logging_strategy": "no", "logging_first_step": True}, [1]),
    ],
)
def test_the_responses_of_logged_steps_are_kept(tmp_path, settings, steps):
    trained(tmp_path, on_policy=1.0, log_completions=True, **{"max_steps": 3} | settings)
    found = sorted(path.name for path in (tmp_path / "completions").glob("*"))
    assert found == [f"step-{step}.jsonl" for step in steps]


def test_other_settings_are_another_run(tmp_path):
    settings = {"on_policy": 1.0, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trained(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"its on_policy_max_new_tokens is 6, that of this run is 7"):
        trained(tmp_path, **settings | {"on_policy_max_new_tokens": 7})
