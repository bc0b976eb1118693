"""The loss over chunks of groups of tokens is that of whole logits: values, gradients, counts."""

import pytest
import torch
from two_tokenizer_toys import rows, student, teacher, trainer

from hfkd.losses.chunked_groups import ChunkedGroupLoss, pieces_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.training.forward.groups import ChunkedGroupForward, GroupForward
from hfkd.utils.token_groups import UNGROUPED, GroupedTokens


def made(folder, chunk_size, **slots):
    data = slots.pop("data", None)
    args = {"max_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    networks = student().double(), teacher().double()
    keywords = {} if data is None else {"train_dataset": data}
    return trainer(folder, networks, args | {"loss_chunk_size": chunk_size}, **keywords, **slots)


def trained(run):
    run.train()
    logs = [entry for entry in run.state.log_history if "grad_norm" in entry]
    return logs, dict(run.model.named_parameters()) | dict(run.distillation_loss.named_parameters())


def assert_same(chunked, whole):
    (logs, weights), (its_logs, its_weights) = trained(chunked), trained(whole)
    for mine, its in zip(logs, its_logs, strict=True):
        assert list(mine) == list(its)
        assert mine == pytest.approx(its, rel=1e-5, abs=1e-6)
    assert weights.keys() == its_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, its_weights[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("slots", "chunk_size"),
    [
        ({"objective": "gold", "weighting": "entropy"}, 1),
        ({"objective": "gold(eos=True)", "temperature": "energy(ratio=0.25)", "weighting": "entropy"}, 5),
        ({"objective": "gold + 2 * uld(pairs='bytes', merge='last')", "temperature": "learned", "ce_weight": 0.0}, 4),
        ({"objective": "uld", "temperature": "energy(ratio=0.25, level='item')"}, 7),
        ({"objective": "uld", "weighting": "entropy(level='item')"}, 500),
    ],
)
def test_it_trains_as_with_whole_logits(tmp_path, slots, chunk_size):
    chunked, whole = made(tmp_path / "chunks", chunk_size, **slots), made(tmp_path / "whole", 0, **slots)
    assert type(chunked.step) is ChunkedGroupForward
    assert type(whole.step) is GroupForward
    assert_same(chunked, whole)


def test_rows_without_any_group_are_learned_from_their_labels(tmp_path):
    data = rows().map(lambda row: {"teacher_labels": [-100] * len(row["teacher_labels"])})
    assert_same(made(tmp_path / "chunks", 3, data=data), made(tmp_path / "whole", 0, data=data))


@pytest.mark.parametrize("chunk_size", [0, 3])
def test_what_is_logged_of_groups_is_their_mean_also_beside_rows_without_any(tmp_path, chunk_size):
    data = rows().map(
        lambda row, i: {"teacher_labels": [-100] * len(row["teacher_labels"])} if i % 4 else {}, with_indices=True
    )
    run = made(tmp_path, chunk_size, data=data, temperature="energy(thresholds=(-1e9, 1e9))")
    logs, _ = trained(run)
    assert [entry["temperature"] for entry in logs] == [4.0] * len(logs)


def test_no_more_tokens_than_a_chunk_reach_a_head_at_a_time(tmp_path):
    run, seen = made(tmp_path, 9, weighting="entropy"), []
    batch = run.training_collator([run.train_dataset[i] for i in range(8)])
    for network in (run.model, run.teacher.networks[0]):
        network.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    run.compute_loss(run.model.train(), batch)
    longest = max(
        end - start for side in ("student", "teacher") for start, end in getattr(batch["groups"], side).spans()
    )
    assert longest < 9 < len(batch["groups"].student.token)
    assert max(seen) <= 9


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_pieces_have_each_token_and_each_group_once(size):
    g = torch.Generator().manual_seed(size)
    for groups in (0, 1, 6):
        sides = []
        for _ in range(2):
            runs = [[k] * int(torch.randint(1, 4, (), generator=g)) for k in range(groups)]
            gaps = [[UNGROUPED] * int(torch.randint(0, 9, (), generator=g)) for _ in range(groups + 1)]
            number = [x for gap, run in zip(gaps, [*runs, []], strict=True) for x in (*gap, *run)]
            sides.append(torch.tensor(number, dtype=torch.long))
        student_side, teacher_side = (GroupedTokens.of(side) for side in sides)
        pieces = list(pieces_of(student_side, teacher_side, len(sides[0]), size))
        assert [k for piece in pieces for k in range(groups)[piece.groups]] == list(range(groups))
        assert [i for piece in pieces for i in range(len(sides[0]))[piece.student]] == list(range(len(sides[0])))
        for piece in pieces:
            wanted = set(range(groups)[piece.groups])
            for tokens, numbers in zip(piece[1:], sides, strict=True):
                assert set(numbers[tokens].tolist()) - {UNGROUPED} == wanted
            part = student_side.part(piece.groups, piece.student.start)
            there = sides[0][piece.student]
            assert torch.equal(there[part.token], part.group + piece.groups.start)
            assert torch.equal(part.group[part.first], torch.arange(len(wanted)))
            assert torch.equal(part.group[part.last], torch.arange(len(wanted)))
            assert len(wanted) <= 1 or max(len(there), piece.teacher.stop - piece.teacher.start) <= size


def test_terms_that_need_all_logits_are_refused():
    with pytest.raises(ValueError, match="compares items with each other, which a chunked loss cannot compute"):
        ChunkedGroupLoss(DistillationLoss("dist"))
