import torch

from hfkd.teachers.sampled_items import per_row, spread_items


def test_each_row_gives_as_many_as_it_has_up_to_a_limit():
    counts = [50, 0, 3, 7, 1000]
    row = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))
    kept = spread_items(row, 5, 7)
    assert torch.bincount(row[kept], minlength=5).tolist() == [7, 0, 3, 7, 7]
    assert kept.unique().tolist() == kept.tolist()
    last = kept[-7:] - 60
    assert ((last >= torch.arange(7) * 1000 // 7) & (last < (torch.arange(7) + 1) * 1000 // 7)).all()


def test_a_row_gives_the_same_whatever_comes_with_it():
    row = torch.repeat_interleave(torch.arange(3), 40)
    alone = spread_items(torch.zeros(40, dtype=torch.long), 1, 6)
    assert torch.equal(spread_items(row, 3, 6).view(3, 6) - 40 * torch.arange(3)[:, None], alone.expand(3, 6))


def test_places_are_not_in_step_with_a_grid():
    kept = spread_items(torch.zeros(64 * 64, dtype=torch.long), 1, 256) % 64
    assert len(kept.unique()) > 48


def test_a_limit_for_all_is_shared_out():
    assert per_row(None, 5) is None
    assert per_row(1000, 367) == 3
    assert per_row(10, 0) == 10
    row = torch.arange(4).repeat_interleave(5)
    assert torch.equal(spread_items(row, 4, None), torch.arange(20))
