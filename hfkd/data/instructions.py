"""Instruction datasets in the usual formats -> (prompt, response) texts, and the Dolly split of the literature.

The template is that of MiniLLM and DSKD for training and evaluation (Alpaca's).
"""

import logging
from typing import Any, get_args

import numpy as np
from datasets import Dataset, DatasetDict, Value
from transformers import PreTrainedTokenizerBase

from hfkd.data.chat_answers import Answers, answers_as_rows
from hfkd.data.teacher_columns import ROW_TEACHER, TEACHER_PROMPT
from hfkd.utils import formats

logger = logging.getLogger(__name__)

TASK = "Below is an instruction that describes a task"
ORDER = "Write a response that appropriately completes the request."
TEMPLATE = f"{TASK}. {ORDER}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n"
TEMPLATE_WITH_INPUT = (
    f"{TASK}, paired with an input that provides further context. {ORDER}\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)

# The supported sets of columns; the first one whose columns are all present is used. The input of an instruction is in
# `context` or `input`.
ACCEPTED = (
    ("messages",),
    ("instruction", "response"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("text",),
)

# What belongs into a prompt and is not written into it: the arguments of the chat template besides the turns, by TRL's
# column names, and what Alpaca's format has in LLaMA-Factory's datasets.
BESIDE_TURNS = ("tools", "chat_template_kwargs")
BESIDE = ("system", "system_prompt", "history")
ANSWER = ("content", "reasoning_content", "reasoning", "thinking")  # of the assistant's turn, by several templates
PRIVILEGED = "privileged_context"  # TRL's column for what the teacher of a self-distillation reads besides
CONTEXT = ("context", "input")  # the input of an instruction, by Dolly's name and Alpaca's
# True: the response was cut off, so that no end of sequence belongs behind it. `hfkd generate` writes it.
UNFINISHED = "unfinished"
EARLIER = "earlier_answers"  # a column while prompts are written

DOLLY_TEST, DOLLY_DEV, DOLLY_TRAIN = 500, 1000, 11435


def instruction_prompt(instruction: str, context: str = "") -> str:
    """The prompt of MiniLLM and DSKD; with an empty context, the template without an input."""
    if context:
        return TEMPLATE_WITH_INPUT.format(instruction=instruction, input=context)
    return TEMPLATE.format(instruction=instruction)


def to_prompt_response(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    chat_template: bool = False,
    answers: Answers = "last",
) -> Dataset:
    """Convert a dataset with one of the `ACCEPTED` sets of columns to the text columns `prompt` and `response`.

    A `prompt` column is not changed, an instruction is inserted into the template, a `text` is all response, and of
    `messages` the last turn is the response; earlier answers are part of the prompt, which is warned of. Of several
    references (a list in `output`) the first is the response. With `chat_template` the tokenizer's template is used
    instead; its final end-of-sequence text is removed, because tokenisation appends this token. Without it, `messages`
    must be one user and one assistant turn. Raises ValueError for other columns, a value that is not text (with its
    row), a value in a column that belongs into the prompt and is not written there (`BESIDE`; `CONTEXT` that a prompt
    or the turns do not contain), two different inputs of an instruction, an answer of which a part is left out, or a
    tokenizer without a template. A column `unfinished` is kept.

    answers: "each" makes a row of each answer of a chat, see `answers_as_rows`; ValueError for other rows.

    With a column `teacher_prompt` the result has it too: what a teacher reads in place of the prompt, written in the
    same way from a text, or from the turns before the answer; the prompt itself where it is None. ValueError for rows
    of an instruction or a `text`, whose prompt is not given, for an empty text, and for turns that end with an answer.
    A context that is in the teacher's prompt need not be in the student's.
    """
    if answers not in get_args(Answers):
        raise ValueError(f"unknown answers {answers!r}: pass one of {list(get_args(Answers))}")
    several = answers == "each"
    if several and not are_turns(dataset):
        raise ValueError(
            f"answers='each' is for chats (messages, or prompt and completion as turns), and the rows have the columns "
            f"{dataset.column_names}: set answers='last'"
        )
    rows = answers_as_rows(dataset, accepted_columns(dataset)[-1]) if several else dataset
    return _written(rows, tokenizer, chat_template, answered=True, warned=not several)


def to_prompts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase | None = None, chat_template: bool = False
) -> list[str]:
    """The prompts of `to_prompt_response`, for answering them: rows need no response.

    Turns may end with the question, and a chat template may write answers so that they do not follow the prompt (those
    of reasoning models begin a thought in the prompt, and leave out earlier thoughts).
    """
    return _written(dataset, tokenizer, chat_template, answered=False, warned=False)["prompt"][:]


def _written(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase | None, chat_template: bool, answered: bool, warned: bool
) -> Dataset:
    """answered: rows have responses. warned: chats have one response each, and others are warned of."""
    columns = accepted_columns(dataset)
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "chat_template=True, but the tokenizer has no chat template: set tokenizer.chat_template, or "
            "chat_template=False"
        )
    if chat_template and columns == ("text",):
        raise ValueError(
            "chat_template=True, but the dataset has only the column `text`, without turns: set chat_template=False"
        )
    kept = [name for name in dataset.column_names if name in (UNFINISHED, ROW_TEACHER)]
    of_teacher = [name for name in dataset.column_names if name == TEACHER_PROMPT and answered]
    pairs = dataset.map(
        _pair_of_row,
        with_indices=True,
        remove_columns=[name for name in dataset.column_names if name not in kept],
        fn_kwargs={
            "columns": columns,
            "tokenizer": tokenizer if chat_template else None,
            "answered": answered,
            "revision": formats.PROMPTS,
        },
        desc="Writing prompts",
    )
    if warned:
        _warn_of_earlier_answers(np.asarray(pairs.with_format("numpy")[EARLIER][:]))
    return pairs.select_columns(["prompt", "response", *of_teacher, *kept])


def _warn_of_earlier_answers(counts: np.ndarray) -> None:
    """Warn of chats with several answers: the others than the last are not trained on. counts [N]: of each row."""
    if several := int((counts > 0).sum()):
        logger.warning(
            "%d of %d rows are chats with several answers. The last of each is its response, and the %d before them "
            "are parts of prompts: to train on each, tokenise with answers='each' (in recipes --answers each).",
            several,
            len(counts),
            int(counts.sum()),
        )


def accepted_columns(dataset: Dataset) -> tuple[str, ...]:
    """The first set of `ACCEPTED` columns in the dataset. Raises ValueError if there is none."""
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"the dataset is a {type(dataset).__name__} instead of a datasets.Dataset: pass a single split"
        )
    found = next((names for names in ACCEPTED if set(names) <= set(dataset.column_names)), None)
    if found is None:
        choices = ", ".join(" + ".join(names) for names in ACCEPTED)
        raise ValueError(f"the dataset has the columns {dataset.column_names}: rename them to one of {choices}")
    return found


def are_turns(dataset: Dataset) -> bool:
    """Whether the rows are chat turns: `messages`, or TRL's `prompt` and `completion` as lists of turns."""
    first = accepted_columns(dataset)[0]
    return first == "messages" or not isinstance(dataset.features[first], Value)


def dolly_rows(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int = 256) -> DatasetDict:
    """databricks-dolly-15k -> `train` (11,435), `dev` (1,000), `test` (500), with the dataset's own columns.

    The split of MiniLLM and DSKD: of the rows whose prompt in their format has at most `max_prompt_tokens` tokens, in
    file order, the first 500 are test and the next 1,000 dev. The counts are those of the first version of the file
    (15,015 rows) and GPT-2's tokenizer; another tokenizer moves rows between the splits, so that all runs must use the
    split of one tokenizer.
    """
    pairs = to_prompt_response(dataset)
    kept = pairs.add_column("row", np.arange(len(pairs))).filter(
        _has_short_prompt,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "limit": max_prompt_tokens, "revision": formats.SHORT_PROMPTS},
        desc="Split",
    )
    rows, held_out = dataset.select(kept["row"][:]), DOLLY_TEST + DOLLY_DEV
    if len(rows) <= held_out:
        raise ValueError(
            f"{len(rows)} of {len(pairs)} rows have a prompt of at most {max_prompt_tokens} tokens: Dolly's split "
            f"needs {held_out} for dev and test, so that none is left for training; pass all of databricks-dolly-15k, "
            "or for data of your own a folder with the splits as files (train.jsonl, dev.jsonl)"
        )
    if len(rows) - held_out != DOLLY_TRAIN:
        logger.warning(
            "The Dolly split has %d training rows instead of the published %d, because of another version of the "
            "data, tokenizer or prompt limit. The test rows may differ too.",
            len(rows) - held_out,
            DOLLY_TRAIN,
        )
    return DatasetDict(
        train=rows.select(range(held_out, len(rows))),
        dev=rows.select(range(DOLLY_TEST, held_out)),
        test=rows.select(range(DOLLY_TEST)),
    )


def _has_short_prompt(
    batch: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    revision: int,  # only used in the cache's hash
) -> list[bool]:
    return [len(ids) <= limit for ids in tokenizer(batch["prompt"], add_special_tokens=False)["input_ids"]]


def _pair_of_row(
    row: dict[str, Any],
    number: int,
    columns: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase | None,
    answered: bool,
    revision: int,  # only used in the cache's hash
) -> dict[str, Any]:
    """Prompt and response, and how many answers before the response are parts of the prompt."""
    given = answered and row.get(TEACHER_PROMPT) is not None
    if answered and not given and row.get(PRIVILEGED):
        raise ValueError(
            f"row {number} has a value in the column {PRIVILEGED}, but no {TEACHER_PROMPT}, so that the teacher would "
            f"not read it: write the prompt with it as {TEACHER_PROMPT}, or remove the column {PRIVILEGED}"
        )
    # What the teacher alone is to read is not expected in the student's prompt, but in the teacher's.
    own = {name: value for name, value in row.items() if not (given and name in CONTEXT)}
    pair = _pair(own, number, columns, tokenizer, answered)
    if answered and TEACHER_PROMPT in row:
        pair[TEACHER_PROMPT] = _teacher_prompt(row, number, columns, tokenizer, pair["prompt"])
    turns = row[columns[-1]] if isinstance(row[columns[0]], list) else None  # of TRL's two columns the completion's
    answers = _roles(turns).count("assistant") if isinstance(turns, list) else 0
    return pair | {EARLIER: max(answers - 1, 0)}


def _teacher_prompt(
    row: dict[str, Any],
    number: int,
    columns: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase | None,
    prompt: str,
) -> str:
    """The prompt of the row with its `teacher_prompt` in place of the student's; without one the student's `prompt`."""
    given, name = row[TEACHER_PROMPT], columns[0]
    if given is None:
        return prompt
    if name not in ("prompt", "messages"):
        raise ValueError(
            f"row {number} has a {TEACHER_PROMPT}, which takes the place of a written prompt, but its columns are "
            f"{' and '.join(columns)}: write prompt and completion (hfkd.data.instructions.instruction_prompt), or "
            "messages"
        )
    _refuse_form(given, row[name], name, number)
    read = [*given, *row[name][-1:]] if name == "messages" else given
    return _pair(row | {name: read}, number, columns, tokenizer, answered=True)["prompt"]


def _refuse_form(given: Any, own: Any, name: str, number: int) -> None:
    """Raise ValueError for a `teacher_prompt` that is not in the form of the student's `own`, the column `name`."""
    if not isinstance(given, type(own)):
        raise ValueError(
            f"row {number}: {TEACHER_PROMPT} is a {type(given).__name__}, but {name} a {type(own).__name__}: "
            "give both in the same form, texts or turns"
        )
    if given == "" != own:
        raise ValueError(
            f"row {number} has an empty {TEACHER_PROMPT}, after which the teacher would know nothing of the row: give "
            "it a text, or None for the student's prompt"
        )
    turns = own[:-1] if name == "messages" else own  # the student's, if it is a chat
    if isinstance(given, list) and _roles(given)[-1:] == ["assistant"] != _roles(turns)[-1:]:
        raise ValueError(
            f"row {number}: the turns of {TEACHER_PROMPT} end with the assistant's, behind which the teacher would "
            "read a second answer: leave the answer out, or write it into the question"
        )


def _pair(
    row: dict[str, Any],
    number: int,
    columns: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase | None,
    answered: bool,
) -> dict[str, str]:
    if columns == ("text",):
        return {"prompt": "", "response": _text(row, "text", number)}
    _refuse_beside(row, BESIDE, number)
    if tokenizer is not None:
        return _render(*_turns(row, columns, number, answered), tokenizer, number)
    if columns == ("messages",) or isinstance(row[columns[0]], list):
        asked, answers = _turns(row, columns, number, answered)
        if _roles(asked) != ["user"]:
            raise ValueError(
                f"row {number}: turns of {_roles([*asked, *answers])} do not fit the instruction template, "
                "which has one question and one answer: set chat_template=True, with a tokenizer that has a chat "
                "template"
            )
        response = "".join(_text(turn, "content", number) for turn in answers)
        _refuse_left_out(answers, response, number)
        return {"prompt": instruction_prompt(_text(asked[0], "content", number)), "response": response}
    question, answer = columns
    prompt = _text(row, question, number)
    if question == "instruction":
        prompt = instruction_prompt(prompt, _context(row, number))
    else:
        _refuse_unwritten(row, prompt, number)
    return {"prompt": prompt, "response": _text(row, answer, number) if answered else ""}


def _turns(row: dict[str, Any], columns: tuple[str, ...], number: int, answered: bool) -> tuple[list[Any], list[Any]]:
    """The chat turns of the row's prompt, and the assistant's last one, its response; none unless `answered`."""
    if columns == ("messages",):
        turns = _given(row["messages"] or [])
        _refuse_beside(row, BESIDE_TURNS, number)
    elif isinstance(row[columns[0]], list):  # TRL's conversational prompt + completion
        answer = row[columns[1]] or []
        turns = _given([*row[columns[0]], *([_answer(answer)] if isinstance(answer, str) else answer)])
        _refuse_beside(row, BESIDE_TURNS, number)
    else:
        context = _context(row, number) if columns[0] == "instruction" else ""
        question = "\n\n".join(filter(None, (_text(row, columns[0], number), context)))
        response = _text(row, columns[1], number) if answered else ""
        turns = [{"role": "user", "content": question}, _answer(response)]
    roles = _roles(turns)
    ends = roles[-1:] == ["assistant"]
    asked = turns[:-1] if ends else turns
    if not asked or (answered and not ends):
        raise ValueError(
            f"row {number} has the turns {roles}, but the last of two or more turns must "
            "be the assistant's, which is the response: remove the row, or add an answer"
        )
    for turn in turns if answered else asked:
        if turn.keys() <= {"role"}:  # templates write an empty text for it, or "None"
            _text(turn, "content", number)
    _refuse_unwritten(row, "".join(str(turn.get("content")) for turn in asked), number)
    return asked, turns[-1:] if answered else []


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _roles(turns: list[dict[str, Any]]) -> list[str | None]:
    return [turn.get("role") for turn in turns]


def _given(value: Any) -> Any:
    """The value without the entries None of dicts at any depth.

    In a table the turns of all rows, the arguments of tool calls and the parts of a content have the same keys, of
    which the missing ones are None. Templates would write them, or take a text for an image.
    """
    if isinstance(value, list):
        return [_given(one) for one in value]
    if isinstance(value, dict):
        return {name: _given(one) for name, one in value.items() if one is not None}
    return value


def _refuse_beside(row: dict[str, Any], names: tuple[str, ...], number: int) -> None:
    """Raise ValueError for a column that belongs into the prompt, and is not written into it."""
    found = next((name for name in names if row.get(name)), None)
    if found in BESIDE_TURNS:
        raise ValueError(
            f"row {number} has {found}, which are not written into the prompt: write it yourself, "
            f"tokenizer.apply_chat_template(turns, {found}=...), as prompt and response, or remove {found}"
        )
    if found:
        raise ValueError(
            f"row {number} has a value in the column {found}, which is not written into the prompt: write it into the "
            f"prompt or into the turns of messages, or remove the column {found}"
        )


def _render(asked: list[Any], answers: list[Any], tokenizer: PreTrainedTokenizerBase, number: int) -> dict[str, str]:
    prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    if not answers:
        return {"prompt": prompt, "response": ""}
    whole = str(tokenizer.apply_chat_template([*asked, *answers], tokenize=False))
    if not whole.startswith(prompt):
        raise ValueError(
            f"row {number}: with the answer, the chat template writes the question differently, so that the response "
            "cannot be separated from it: set a template that only appends text (a training template), or "
            "chat_template=False"
        )
    _refuse_left_out(answers, whole, number)
    response = whole[len(prompt) :]
    end = str(tokenizer.eos_token or "")
    if end and response.rstrip().endswith(end):
        response = response.rstrip().removesuffix(end)
    return {"prompt": prompt, "response": response}


def _refuse_left_out(answers: list[Any], written: str, number: int) -> None:
    """Raise ValueError for a text of the answer that is not written, up to spaces: templates leave thoughts out."""
    for name, text in ((name, turn.get(name)) for turn in answers for name in ANSWER):
        if isinstance(text, str) and "".join(text.split()) not in "".join(written.split()):
            raise ValueError(
                f"row {number}: the {name} of the answer is not written whole into the response, as chat templates "
                "leave out thoughts: set a template that keeps it (a training template), write prompt and response "
                "yourself, or remove what is left out"
            )


def _refuse_unwritten(row: dict[str, Any], prompt: str, number: int) -> None:
    """Raise ValueError for a context that a written prompt does not contain."""
    unwritten = {name: row.get(name) for name in CONTEXT if str(row.get(name)).strip() not in prompt}
    _refuse_beside(unwritten, CONTEXT, number)


def _context(row: dict[str, Any], number: int) -> str:
    found = {_text(row, name, number) for name in CONTEXT if row.get(name)}
    if len(found) > 1:
        raise ValueError(
            f"row {number} has two inputs, in context and in input: write both into one of the columns, and remove the "
            "other"
        )
    return found.pop() if found else ""


def _text(row: dict[str, Any], column: str, number: int) -> str:
    value = row.get(column)
    if isinstance(value, list) and value:  # several references: use the first
        value = value[0]
    if not isinstance(value, str):
        raise ValueError(f"row {number}: {column} is {value!r} instead of text; correct or remove the row")
    return value
