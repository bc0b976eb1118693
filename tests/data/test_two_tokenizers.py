"""Two tokenizers of the same text: where their tokens end, and which stand for the same."""

import logging

import pytest
from datasets import Dataset
from tokenizer_toys import byte_level, sentencepiece
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hfkd.data.token_bytes import equal_entries, token_bytes
from hfkd.data.two_tokenizers import tokenize_for_both
from hfkd.utils.targets import IGNORED
from hfkd.utils.token_groups import PLACELESS, UNGROUPED, Pairing, byte_ends

HARD = [
    "Once upon a time there was a cat.",
    "👩‍👩‍👧‍👦 and 🇯🇵 🙂",
    "日本語と中文 한국어",
    "e\u0301 \u0065\u0323\u0302 n\u0303",  # combining marks
    "  two before, three after   ",
    "\n\n\ttabs\tand\r\nlines\n",
    " ",
    "",
    "a",
    "<|end|> in words, </s> too, and <s>",
    "\u200b zero\u200dwidth \ufeff",
    "ﬁ ligature, ½, Å",
]


def rows_of(texts, mine=None, its=None, prompts=None, **keywords):
    prompts = prompts or ["Tell: "] * len(texts)
    data = Dataset.from_list([{"prompt": p, "completion": t} for p, t in zip(prompts, texts, strict=True)])
    return tokenize_for_both(data, mine or byte_level(), its or sentencepiece(), **keywords)


BY_BYTES = Pairing()


def groups_of(row, pairing=BY_BYTES):
    ends = row["byte_ends"], row["teacher_byte_ends"]
    learned = [[label != IGNORED for label in row[name]] for name in ("labels", "teacher_labels")]
    return pairing.of(ends, learned, row["response_bytes"])


def spelled(row, tokenizer, groups, side=""):
    """The text of each group."""
    pieces, found = token_bytes(tokenizer), {}
    for token, group in zip(row[f"{side}input_ids"], groups, strict=True):
        if group != UNGROUPED:
            found[group] = found.get(group, b"") + pieces[token]
    return [found[k] for k in sorted(found)]


@pytest.mark.parametrize("prompt", ["Tell: ", "Tell:\n", "", " "])
def test_both_sides_of_each_group_spell_the_same_bytes_of_hard_text(prompt):
    mine, its = byte_level(bos=True), sentencepiece()
    hard = [text for text in HARD if prompt or text.strip()]  # blank rows are dropped
    rows = rows_of(hard, mine, its, [prompt] * len(hard))
    assert len(rows) == len(hard)
    for row, text in zip(rows, hard, strict=True):
        if not prompt and text.startswith("<|end|>"):
            continue  # taken for the start of the row, which hfkd does not write twice
        ours, theirs = groups_of(row)
        one, other = spelled(row, mine, ours), spelled(row, its, theirs, "teacher_")
        if other and other[0] != one[0]:  # the space that SentencePiece writes before a text
            other[0] = other[0].removeprefix(b" ")
        assert one == other
        whole = (
            text.partition("</s>")[0] if "</s>" in text else text
        )  # it puts a space of its own behind a special token
        assert b"".join(one).removesuffix(b"</s>") == whole.encode()
        assert len(one) >= min(len(text.split()), 1)


@pytest.mark.parametrize("text", HARD)
def test_groups_are_as_many_as_the_places_that_both_reach(text):
    row = rows_of([text, "a"])[0]
    ends = [[e for e in row[name] if 0 <= e <= row["response_bytes"]] for name in ("byte_ends", "teacher_byte_ends")]
    common = set(ends[0]) & set(ends[1])
    assert {g for g in groups_of(row)[0] if g != UNGROUPED} == set(range(len(common)))


def test_the_ends_of_sequence_are_a_pair_where_asked_for_and_both_are_there():
    row = rows_of(["one two", "a"])[0]
    without, having = groups_of(row), groups_of(row, Pairing(end=True))
    assert without[0][-1] == without[1][-1] == UNGROUPED
    assert having[0][-1] == having[1][-1] == max(having[0])
    assert having[0][:-1] == without[0][:-1]
    empty = rows_of(["", "a"])[0]
    assert set(groups_of(empty)[0]) == {UNGROUPED}
    assert [g for g in groups_of(empty, Pairing(end=True))[1] if g != UNGROUPED] == [0]


@pytest.mark.parametrize(("limit", "teacher_limit"), [(12, 200), (200, 12)])
def test_what_a_cut_side_has_not_is_in_no_group_and_said(limit, teacher_limit, caplog):
    with caplog.at_level(logging.INFO):
        rows = rows_of([HARD[0], "a"], max_length=limit, teacher_max_length=teacher_limit, max_prompt_length=8)
    assert "responses truncated: 1 at" in caplog.text or "1 at the teacher's 12" in caplog.text
    row = rows[0]
    ours, theirs = groups_of(row, Pairing(end=True))
    one, other = spelled(row, byte_level(), ours), spelled(row, sentencepiece(), theirs, "teacher_")
    assert one == other
    assert HARD[0].encode().startswith(b"".join(one))
    assert 0 < len(b"".join(one)) < len(HARD[0])
    assert len(row["input_ids"]) == limit or len(row["teacher_input_ids"]) == teacher_limit


def test_an_unfinished_response_has_no_end_of_sequence_on_either_side():
    data = {"prompt": ["Tell: "] * 2, "completion": ["a cat."] * 2, "unfinished": [True, False]}
    cut, whole = tokenize_for_both(Dataset.from_dict(data), byte_level(), sentencepiece())
    for side in ("", "teacher_"):
        for name in ("input_ids", "labels", "byte_ends"):
            assert cut[side + name] == whole[side + name][:-1]


def test_a_row_whose_prompt_has_no_room_on_one_side_is_dropped_on_both():
    rows = rows_of([HARD[0], "a"], prompts=["Once upon a time " * 4, "b"], teacher_max_length=16)
    assert len(rows) == 1
    assert rows[0]["response_bytes"] == 1


def test_a_tokenizer_that_changes_the_text_is_said_and_teaches_up_to_there(caplog):
    composing = sentencepiece(normalizers.NFC())
    rows = rows_of(["cats e\u0301 cats", "plain"], its=composing)
    assert "In 0 rows the student's tokens do not give the original text, and in 1 rows the teacher's" in caplog.text
    row = rows[0]
    assert PLACELESS in [
        e for e, label in zip(row["teacher_byte_ends"], row["teacher_labels"], strict=True) if label >= 0
    ]
    ours, theirs = groups_of(row, Pairing(end=True))
    texts = spelled(row, byte_level(), ours)
    assert b"".join(texts[:-1]) == b"cats "
    assert ours[-1] == theirs[-1] != UNGROUPED  # both saw the text to its end
    assert PLACELESS not in rows[1]["byte_ends"][-2:]


def test_unknown_words_have_no_place():
    assert byte_ends([b"a", None, b"b"], b"axb") == [1, PLACELESS, PLACELESS]
    assert byte_ends([b" ", b" a"], b" a") == [0, 2]
    assert byte_ends([b" a"], b"a") == [1]
    assert byte_ends([b" a"], b" a") == [2]
    assert byte_ends([b"\xf0\x9f", b"\x99\x82"], "🙂".encode()) == [2, 4]
    assert byte_ends([], b"") == []


def test_pairs_by_position_go_as_far_as_both():
    ends = [-1, 1, 2, 3, 4], [-1, 3, 4, -1, -1]
    learned = [False, True, True, True, True], [False, True, True, False, False]
    assert Pairing("position").of(ends, learned, 3) == ([-1, 0, -1, -1, -1], [-1, 0, -1, -1, -1])
    assert Pairing("position", end=True).of(ends, learned, 3) == ([-1, 0, 1, -1, -1], [-1, 0, 1, -1, -1])


def test_the_first_token_of_a_row_which_nothing_predicts_is_in_no_group():
    ends, learned = ([1, 3, 4], [-1, 1, 2, 3, 4]), ([True] * 3, [False, True, True, True, True])
    assert Pairing(end=True).of(ends, learned, 3) == ([-1, 0, 1], [-1, -1, 0, 0, 1])


def test_late_groups_need_a_token_after_them():
    ends, learned = ([-1, 1, 2, 3], [-1, 1, 2, 3]), ([False, True, True, True],) * 2
    assert Pairing(late=True).of(ends, learned, 3) == ([-1, 0, 1, -1],) * 2  # cut: nothing follows the third
    assert Pairing(late=True).of(ends, learned, 2) == ([-1, 0, 1, -1],) * 2  # the end of sequence follows


def test_entries_of_equal_bytes_are_found_whatever_the_vocabularies_call_them():
    mine, its = byte_level(), sentencepiece()
    ours, theirs = equal_entries(mine, its, (len(mine), len(its)))
    assert len(ours) == len(set(ours)) == len(theirs) == len(set(theirs)) > 100
    pieces, other = token_bytes(mine), token_bytes(its)
    ends = (mine.eos_token_id, its.eos_token_id)
    assert ends in zip(ours, theirs, strict=True)
    assert all(pieces[a] == other[b] for a, b in zip(ours, theirs, strict=True) if (a, b) != ends)
    blank = its.convert_tokens_to_ids("▁")
    assert (mine.convert_tokens_to_ids("Ġ"), blank) in zip(ours, theirs, strict=True)  # and not the byte <0x20>
    few = equal_entries(mine, its, (100, len(its)))
    assert max(few[0]) < 100


def test_a_tokenizer_of_whole_words_is_refused():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), eos_token="a")
    with pytest.raises(ValueError, match="a decoder of the type none, so that its tokens cannot be mapped"):
        rows_of(["a"], mine=words)


def test_texts_that_share_no_place_are_refused():
    with pytest.raises(ValueError, match="in none of the 1 rows do tokens"):
        rows_of([""])


def test_real_tokenizers_align_real_stories(data_dir):
    folders = [data_dir / "gpt2-tokenizer", data_dir / "stories260K"]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip("GPT-2's tokenizer and stories260K are not there")
    mine, its = (AutoTokenizer.from_pretrained(folder) for folder in folders)
    rows = rows_of(HARD, mine, its)
    for row, text in zip(rows, HARD, strict=True):
        ours, theirs = groups_of(row)
        one, other = spelled(row, mine, ours), spelled(row, its, theirs, "teacher_")
        assert b"".join(one).removesuffix(b"</s>") == (text.partition("</s>")[0] or text).encode()
        assert one == other or one[1:] == other[1:]


def test_prompts_with_special_tokens_of_their_own_get_no_others():
    mine, its = byte_level(bos=True), sentencepiece()
    plain, written = (rows_of(["a cat"], mine, its, add_special_tokens=add) for add in (True, False))
    for side in ("", "teacher_"):
        assert plain[0][f"{side}input_ids"][1:] == written[0][f"{side}input_ids"]
        assert plain[0][f"{side}byte_ends"][1:] == written[0][f"{side}byte_ends"]
