"""Log-probabilities that others wrote as a stored teacher: the same loss as from our own store, and what is refused."""

import json
import logging

import pytest
import torch
from datasets import Dataset
from text_toys import VOCAB, language_model, taught_model, token_dataset, tokenizer
from toys import arguments
from transformers import LlamaConfig, LlamaForCausalLM

from hfkd import DistillationTrainer
from hfkd.data.text import tokenize_dataset
from hfkd.data.text_files import read_jsonl
from hfkd.models.language import causal_lm, load_tokenizer
from hfkd.teachers import CachedTextTeacher, build_captured_cache, build_text_cache

K = 4
QUIET = {"progress_bar": False}


def log_probabilities(rows, k=K, model=None):
    """Of each position the k largest of the next token: [(ids, values)] a row, and the following token's own."""
    found = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            log_p = (model or taught_model()).eval()(input_ids=ids).logits[0].log_softmax(-1)
        top = log_p.topk(k)
        own = log_p[:-1].gather(-1, ids[0, 1:, None])[:, 0].tolist()
        found.append((top.indices.tolist(), top.values.tolist(), own))
    return found


def vllm(rows, **keywords):
    """prompt_logprobs: the first empty, each with the prompt's own token too, even if it is not among the k."""
    made = []
    for row, (ids, values, own) in zip(rows, log_probabilities(rows, **keywords), strict=True):
        entries = [None]
        for place, token in enumerate(row["input_ids"][1:]):
            entry = [{"token_id": i, "logprob": v} for i, v in zip(ids[place], values[place], strict=True)]
            if token not in ids[place]:
                entry.insert(0, {"token_id": token, "logprob": own[place]})
            entries.append(entry)
        made.append({"input_ids": row["input_ids"], "prompt_logprobs": entries})
    return made


def server(rows):
    """The same as a server's JSON has it: token ids are keys."""
    return [
        {
            "input_ids": row["input_ids"],
            "prompt_logprobs": [
                entry and {str(one["token_id"]): {"logprob": one["logprob"], "rank": 1} for one in entry}
                for entry in row["prompt_logprobs"]
            ],
        }
        for row in vllm(rows)
    ]


def axolotl(rows, **keywords):
    """target_logprobs beside target_token_ids, -inf in the first place."""
    made = []
    for row, (ids, values, _) in zip(rows, log_probabilities(rows, **keywords), strict=True):
        first = [float("-inf")] * len(values[0])
        beside = [list(range(len(ids[0]))), *ids[:-1]]
        made.append(
            {"input_ids": row["input_ids"], "target_logprobs": [first, *values[:-1]], "target_token_ids": beside}
        )
    return made


def named(rows):
    """An OpenAI-style server's: tokens by the words token_id:N."""
    return [
        {
            "input_ids": row["input_ids"],
            "logprobs": [
                entry and [{"token": f"token_id:{one['token_id']}", "logprob": one["logprob"]} for one in entry]
                for entry in row["prompt_logprobs"]
            ],
        }
        for row in vllm(rows)
    ]


def logits_like(rows, **keywords):
    """Entries of the next token, one for each but the last, as DistillKit's sampler keeps them."""
    found = zip(rows, log_probabilities(rows, **keywords), strict=True)
    return [
        {"input_ids": row["input_ids"], "logprobs": values[:-1], "token_ids": ids[:-1]}
        for row, (ids, values, _) in found
    ]


LAYOUTS = {"vllm": vllm, "server": server, "axolotl": axolotl, "named": named, "logits": logits_like}


def losses(folder, teacher, rows, **slots):
    """The losses of a few steps."""
    slots = {"objective": "kd", "temperature": 1.0, "ce_weight": 0.0, "kd_weight": 1.0} | slots
    trainer = DistillationTrainer(
        language_model(),
        teacher,
        arguments(folder, max_steps=3),
        train_dataset=rows,
        processing_class=tokenizer(),
        **slots,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """What our own store of the same teacher gives."""
    folder = tmp_path_factory.mktemp("own")
    rows = token_dataset(12)
    build_text_cache(taught_model(), rows, folder / "cache", k=K, temperatures=1.0, dtype="float32", **QUIET)
    return {
        objective: losses(folder / objective, CachedTextTeacher(folder / "cache"), rows, objective=objective)
        for objective in ("kd", "jsd")
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_our_own_store(tmp_path, own, layout):
    rows = token_dataset(12)
    file = tmp_path / ("captured.jsonl" if layout == "server" else "captured.parquet")
    made = LAYOUTS[layout](rows)
    if layout == "server":
        file.write_text("".join(json.dumps(row) + "\n" for row in made))
    else:
        Dataset.from_list(made).to_parquet(file)
    more = {"alignment": "next"} if layout == "logits" else {}  # the toy teacher repeats the token that it reads
    build_captured_cache(file, rows, tmp_path / "cache", num_classes=VOCAB, shard_rows=5, **more, **QUIET)
    teacher = CachedTextTeacher(tmp_path / "cache")
    assert teacher.manifest.k == K
    for objective in ("kd", "jsd") if layout == "vllm" else ("kd",):
        found = losses(tmp_path / objective, teacher, rows, objective=objective)
        assert found == pytest.approx(own[objective], abs=1e-6)
    teacher.check(taught_model(), rows)
    with pytest.raises(ValueError, match="is not from this teacher"):
        teacher.check(language_model(24, seed=5), rows)


def test_all_classes_serve_every_temperature(tmp_path):
    rows = token_dataset(8)
    build_captured_cache(Dataset.from_list(vllm(rows, k=VOCAB)), rows, tmp_path / "cache", num_classes=VOCAB, **QUIET)
    live = losses(tmp_path / "live", taught_model(), rows, temperature=3.0)
    assert losses(tmp_path / "run", CachedTextTeacher(tmp_path / "cache"), rows, temperature=3.0) == pytest.approx(
        live, abs=1e-6
    )


def test_fewer_are_kept_and_a_stopped_store_is_completed(tmp_path):
    rows = token_dataset(8)
    captured = Dataset.from_list(vllm(rows))
    build = {"num_classes": VOCAB, "k": 2, "shard_rows": 3} | QUIET
    build_captured_cache(captured, rows, tmp_path / "cache", **build)
    assert CachedTextTeacher(tmp_path / "cache").manifest.k == 2
    shard = tmp_path / "cache" / "shard-00001.arrow"
    before = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ValueError, match="call build_captured_cache again"):
        CachedTextTeacher(tmp_path / "cache")
    build_captured_cache(captured, rows, tmp_path / "cache", **build)
    assert shard.read_bytes() == before


# ---- what it cannot serve --------------------------------------------------------------------------------------------


def test_what_is_lost_is_said_and_refused(tmp_path, caplog):
    rows = token_dataset(8)
    build_captured_cache(Dataset.from_list(vllm(rows)), rows, tmp_path / "cache", num_classes=VOCAB, **QUIET)
    caplog.set_level(logging.INFO)
    teacher = CachedTextTeacher(tmp_path / "cache")
    assert "no energies (Energy KD), entropies (EA-KD), other temperatures or inner layers" in caplog.text
    for slots, words in (
        ({"weighting": "entropy"}, "entropy at temperature 3, over all 14 classes, but only 4 log-probabilities"),
        (
            {"temperature": "energy(thresholds=(-9.0, -5.0), temperature=1.0, increase=0.0, decrease=0.0)"},
            "log-probabilities do not determine",
        ),
        ({"temperature": 2.0}, "log-probabilities, T = 1, .*set temperature=1"),
        ({"objective": "dkd"}, "reads all 14 logits"),
        ({"objective": "kd + hidden_mse"}, "a stored teacher has only logits"),
    ):
        with pytest.raises(ValueError, match=words):
            losses(tmp_path / "run", teacher, rows, **slots)
    assert not (tmp_path / "run").exists()


def test_one_token_of_few_log_probabilities_is_said(tmp_path, caplog):
    rows = token_dataset(6)
    made = vllm(rows)
    build_captured_cache(Dataset.from_list(made), rows, tmp_path / "whole", num_classes=VOCAB, **QUIET)
    assert "are kept" not in caplog.text
    made[3]["prompt_logprobs"][-1] = sorted(made[3]["prompt_logprobs"][-1], key=lambda one: -one["logprob"])[:1]
    build_captured_cache(Dataset.from_list(made), rows, tmp_path / "cut", num_classes=VOCAB, **QUIET)
    place = len(made[3]["input_ids"]) - 1
    assert f"Captured row 3, token {place} has 1 log-probabilities, others have up to {K + 1}" in caplog.text
    assert CachedTextTeacher(tmp_path / "cut").manifest.k == 1


def test_normalised_over_the_k_is_said(tmp_path, caplog):
    rows = token_dataset(4)
    made = axolotl(rows)
    for row in made:
        row["target_logprobs"] = [row["target_logprobs"][0]] + [
            torch.tensor(values).double().log_softmax(-1).tolist() for values in row["target_logprobs"][1:]
        ]
    for _ in range(2):  # by a rerun too, which has nothing left to store
        caplog.clear()
        build_captured_cache(Dataset.from_list(made), rows, tmp_path / "cache", num_classes=VOCAB, **QUIET)
        assert caplog.text.count("sum to 1: they were normalised over the captured tokens only") == 1


def test_some_of_all_classes_were_not_normalised_over_themselves(tmp_path, caplog):
    rows = token_dataset(4)
    every = Dataset.from_list(axolotl(rows, k=VOCAB))
    build_captured_cache(every, rows, tmp_path / "cache", num_classes=VOCAB, k=2, **QUIET)
    assert "normalised" not in caplog.text


@pytest.mark.parametrize(
    ("layout", "value", "stored"),
    [
        (vllm, "-Infinity", True),
        (axolotl, "-Infinity", True),
        (server, "-Infinity", False),  # `datasets` makes null of it where entries have other names in each row
        (server, '"-inf"', True),
        (vllm, "NaN", False),
        (server, "null", False),
        (axolotl, "NaN", False),
        (axolotl, "null", False),
    ],
)
def test_a_forbidden_token_and_one_without_a_number_in_a_file(tmp_path, layout, value, stored):
    """A log-probability of -inf is a token of no mass; null, as JSON lines are read with for NaN, is refused."""
    rows, file, folder = token_dataset(4), tmp_path / "captured.jsonl", tmp_path / "cache"
    made = layout(rows)
    entry = made[0]["target_logprobs" if layout is axolotl else "prompt_logprobs"][-1]
    last = -1 if isinstance(entry, list) else [*entry][-1]
    if layout is axolotl:
        entry[last] = "X"
    else:
        entry[last]["logprob"] = "X"
    file.write_text("".join(json.dumps(row) + "\n" for row in made).replace('"X"', value))
    if stored:
        build_captured_cache(file, rows, folder, num_classes=VOCAB, **QUIET)
        assert CachedTextTeacher(folder).manifest.k in (K - 1, K)
        return
    with pytest.raises(ValueError, match="has (None instead of a log-probability for token|a NaN log-probability)"):
        build_captured_cache(file, rows, folder, num_classes=VOCAB, **QUIET)
    assert not folder.exists()


# ---- what is refused -------------------------------------------------------------------------------------------------


def changed(change, layout=axolotl):
    def make(rows):
        made = layout(rows)
        change(made)
        return made

    return make


def swap(made):
    made[1], made[2] = made[2], made[1]


def other_token(made):
    made[1]["input_ids"][2] += 1


def longer(made):
    made[1]["input_ids"].append(5)


def outside(made):
    made[0]["target_token_ids"][-1][0] = VOCAB


def above(made):
    made[0]["target_logprobs"][-1] = [3.0, 1.0, 0.5, 0.1]


def sums(made):
    made[0]["target_logprobs"][-1] = [-0.1, -0.1, -0.2, -0.3]


def not_a_number(made):
    made[0]["target_logprobs"][-1][1] = float("nan")


def twice(made):
    made[0]["target_token_ids"][-1] = [1, 1, 2, 3]


def missing(made):
    made[0]["target_logprobs"][-1] = [float("-inf")] * K


def short(made):
    made[0]["target_logprobs"] = made[0]["target_logprobs"][-2:]
    made[0]["target_token_ids"] = made[0]["target_token_ids"][-2:]


def ragged(made):
    made[0]["target_token_ids"][-1] = [1, 2]


REFUSED = {
    "fewer rows": (lambda rows: axolotl(rows)[:-1], "7 captured rows for 8 training rows"),
    "another order": (changed(swap), "captured row 1 has the tokens of training row 2: .* in another order; sort"),
    "another tokenizer": (
        changed(other_token),
        "captured row 1 has other tokens .* from token 2 on; it was tokenised with another tokenizer",
    ),
    "another length": (changed(longer), "captured row 1 has .* with the same beginning"),
    "an id outside": (changed(outside), "has the token id 14, outside of the vocabulary of 14"),
    "logits": (changed(above), "log-probability 3, but log-probabilities are at most 0: for logits"),
    "no distribution": (changed(sums), "sum to 3.*pass the natural logarithms of a single softmax"),
    "NaN": (changed(not_a_number), "has a NaN log-probability: capture it again"),
    "a token twice": (changed(twice), "has a token id twice"),
    "no entry at a target": (changed(missing), "is a target but has no log-probability"),
    "a response's alone": (changed(short), "2 entries of log-probabilities: pass an entry for each token"),
    "ids that do not fit": (changed(ragged), "has 4 log-probabilities and 2 token ids"),
    "words for tokens": (
        lambda rows: [r | {"prompt_logprobs": [[{"token": "you", "logprob": -1.0}]]} for r in vllm(rows)],
        "has the token 'you' instead",
    ),
    "no tokens": (lambda rows: [{"logprobs": [[-1.0]]}] * 8, "have no column 'input_ids'"),
    "no values": (lambda rows: [{"input_ids": r["input_ids"]} for r in rows], "none of prompt_logprobs"),
    "DistillKit's compressed format": (
        lambda rows: [{"input_ids": r["input_ids"], "compressed_logprobs": [[1]]} for r in rows],
        "decompress_to_sparse",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_capture_of_these_rows_is_refused(tmp_path, name):
    make, words = REFUSED[name]
    rows = token_dataset(8)
    with pytest.raises(ValueError, match=words):
        build_captured_cache(Dataset.from_list(make(rows)), rows, tmp_path / "cache", num_classes=VOCAB, **QUIET)
    assert not (tmp_path / "cache").exists()


def predictable():
    """Rows in which every token follows from the one before, and a teacher that knows how."""
    rows = [{"input_ids": [(start + 5 * i) % VOCAB for i in range(9)], "index": start} for start in range(8)]
    rows = Dataset.from_list([row | {"labels": [-100, -100, *row["input_ids"][2:]]} for row in rows])

    def captured(row):
        following = [(token + 5) % VOCAB for token in row["input_ids"]]
        others = [[(token + 1) % VOCAB for token in following]]
        ids = [[token, other] for token, other in zip(following, others[0], strict=True)]
        return {"input_ids": row["input_ids"], "logprobs": [[-0.05, -4.0]] * 9, "token_ids": ids}

    return rows, Dataset.from_list([captured(row) for row in rows])


def test_entries_of_other_tokens_are_told_by_the_tokens_that_follow(tmp_path, caplog):
    rows, captured = predictable()
    build = {"num_classes": VOCAB} | QUIET
    build_captured_cache(captured, rows, tmp_path / "cache", **build)
    # an empty first entry is vLLM's sign that entries are of the token at their place, and here they are not
    like_vllm = captured.map(lambda row: {"logprobs": [None, *row["logprobs"][1:]]})
    with pytest.raises(
        ValueError, match="entries for the token after it it is -0.05: pass alignment='next' if that is"
    ):
        build_captured_cache(like_vllm, rows, tmp_path / "other", **build)
    assert not (tmp_path / "other").exists()
    build_captured_cache(like_vllm, rows, tmp_path / "next", alignment="next", **build)
    said = [CachedTextTeacher(tmp_path / name).look_up(list(rows)) for name in ("cache", "next")]
    assert all(torch.equal(said[0][name], said[1][name]) for name in ("teacher_ids", "teacher_logits", "teacher_tails"))
    caplog.clear()
    build_captured_cache(captured, rows, tmp_path / "token", alignment="token", **build)
    assert "as entries for the token after it" in caplog.text
    with pytest.raises(ValueError, match="alignment='after': pass"):
        build_captured_cache(captured, rows, tmp_path / "other", alignment="after", **build)


def test_a_folder_of_other_captures_is_refused(tmp_path):
    rows = token_dataset(8)
    build_captured_cache(Dataset.from_list(axolotl(rows)), rows, tmp_path / "cache", num_classes=VOCAB, **QUIET)
    others = Dataset.from_list(axolotl(rows, model=language_model(24, seed=9)))
    with pytest.raises(ValueError, match="contains another teacher cache: its teacher is"):
        build_captured_cache(others, rows, tmp_path / "cache", num_classes=VOCAB, **QUIET)


@pytest.mark.slow
def test_a_real_language_model(tmp_path, data_dir):
    """stories260K, captured as vLLM gives it, without a word which token an entry is of."""
    model, words = causal_lm(data_dir / "stories260K"), load_tokenizer(data_dir / "stories260K")
    stories = read_jsonl(data_dir / "stories260K-samples.jsonl").select(range(24))
    rows = tokenize_dataset(stories, words, max_length=64, max_prompt_length=8)
    size = model.config.vocab_size
    build_text_cache(model, rows, tmp_path / "own", k=16, temperatures=1.0, dtype="float32", **QUIET)
    for layout in (vllm, logits_like):
        captured = Dataset.from_list(layout(rows, k=16, model=model))
        build_captured_cache(captured, rows, tmp_path / layout.__name__, num_classes=size, **QUIET)
    found = []
    for name in ("own", "vllm", "logits_like"):
        torch.manual_seed(0)
        student = LlamaForCausalLM(LlamaConfig(**model.config.to_diff_dict() | {"num_hidden_layers": 1}))
        args = arguments(tmp_path / f"run-{name}", max_steps=4, objective="kd", ce_weight=0.5, kd_weight=0.5)
        teacher = CachedTextTeacher(tmp_path / name)
        trainer = DistillationTrainer(student, teacher, args, train_dataset=rows, processing_class=words)
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert found[2] == pytest.approx(found[0], abs=1e-6)
