"""From an SFT adapter as teacher to a scored adapter as student, on chats, each step the recipe that users start."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from text_toys import language_model, tokenizer
from transformers import AutoTokenizer, GPT2LMHeadModel

RECIPES = Path(__file__).parents[2] / "recipes"
TEMPLATE = (
    "{% for turn in messages %}{{ 'ask ' if turn.role == 'user' else 'answer ' }}{{ turn.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}answer {% endif %}"
)
ADAPTERS = ["--use_peft", "--lora_r=2", "--lora_target_modules=c_attn"]
PEFT_WARNINGS = (
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:fan_in_fan_out is set to False:UserWarning",
)
pytestmark = [pytest.mark.filterwarnings(line) for line in PEFT_WARNINGS]


def chat(question, answer):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Chats, a test set, and two saved networks whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("chats")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text("".join(chat(f"a {w} b", f"{w} me") for w in ("c", "d", "you") * 4))
    (folder / "data" / "dev.jsonl").write_text(chat("a one b", "one me") + chat("a two b", "two me"))
    (folder / "sets").mkdir()
    (folder / "sets" / "vicuna.jsonl").write_text(chat("a three b", "three me") + chat("a c b", "c me"))
    words = tokenizer()
    words.chat_template = TEMPLATE
    for name, width in (("large", 24), ("small", 16)):
        language_model(width).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder


def run(monkeypatch, recipe, *flags):
    monkeypatch.setattr(sys, "argv", [recipe, *map(str, flags)])
    runpy.run_path(str(RECIPES / recipe), run_name="__main__")


@pytest.fixture(scope="module")
def trained(folder):
    """The folders of an SFT adapter of the large network, and of a student's adapter that learned from it."""
    pytest.importorskip("peft")
    common = [f"--dataset_name={folder / 'data'}", "--chat_template", "--max_length=24", "--max_prompt_length=12"]
    common += ["--max_steps=4", "--eval_strategy=steps", "--eval_steps=2", "--save_strategy=steps", "--save_steps=2"]
    common += ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=1", "--learning_rate=0.1"]
    common += ["--use_cpu", "--bf16=False", "--report_to=none", "--disable_tqdm=True", *ADAPTERS]
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "sft.py", *common, f"--model_name_or_path={folder / 'large'}", f"--output_dir={folder / 'sft'}")
        networks = [f"--teacher_name_or_path={folder / 'sft'}", f"--student_name_or_path={folder / 'small'}"]
        rouge = ["--eval_rouge", "--rouge_max_new_tokens=4"]
        run(patch, "gpt2_dolly_eakd.py", *common, *networks, *rouge, f"--output_dir={folder / 'student'}")
    return folder / "sft", folder / "student"


def logits(network):
    with torch.no_grad():
        return network.eval()(input_ids=torch.arange(10)[None]).logits


def test_the_prompts_were_the_chat_templates(trained):
    written = [json.loads(x) for x in (trained[1] / "dev" / "step-4" / "dev-seed10.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in written] == ["ask a one b <end> answer ", "ask a two b <end> answer "]
    assert AutoTokenizer.from_pretrained(trained[1]).chat_template == TEMPLATE


def test_the_saved_adapters_load_and_have_learned(folder, trained):
    from peft import PeftModel

    for base, adapter in zip(("large", "small"), trained, strict=True):
        assert (adapter / "adapter_model.safetensors").is_file()
        assert not (adapter / "model.safetensors").exists()
        plain = GPT2LMHeadModel.from_pretrained(folder / base)
        before = logits(plain)
        assert not torch.allclose(logits(PeftModel.from_pretrained(plain, adapter)), before, atol=1e-3)


def test_the_teacher_was_the_base_with_its_adapter(folder, trained):
    """The student's run recorded the teacher's weights: those of the merged adapter, and not of the base."""
    from hfkd.models.language import causal_lm
    from hfkd.teachers import FrozenTeacher
    from hfkd.teachers.fingerprint import weights_fingerprint

    recorded = json.loads((trained[1] / "distillation.json").read_text())["teacher"]
    assert weights_fingerprint(FrozenTeacher(causal_lm(trained[0])))[:8] in recorded
    assert weights_fingerprint(FrozenTeacher(causal_lm(folder / "large")))[:8] not in recorded


def test_a_teacher_of_another_template_is_warned_of(folder, tmp_path, monkeypatch, caplog):
    """It was trained on prompts that these are not; a checkpoint of a run is known by the run's results.json."""
    teacher = tmp_path / "taught" / "checkpoint-2"
    shutil.copytree(folder / "large", teacher)
    (teacher.parent / "results.json").write_text(json.dumps({"config": {"chat_template": False}}))
    common = [f"--dataset_name={folder / 'data'}", "--chat_template", "--max_prompt_length=12", "--disable_tqdm=True"]
    flags = [f"--teacher_name_or_path={teacher}", f"--student_name_or_path={folder / 'small'}", "--max_length=24"]
    flags += ["--max_steps=1", "--per_device_train_batch_size=2", "--gradient_accumulation_steps=1", "--use_cpu"]
    flags += ["--bf16=False", "--report_to=none", f"--output_dir={tmp_path / 'student'}", *common]
    run(monkeypatch, "gpt2_dolly_eakd.py", *flags)
    assert "was trained without its chat template but teaches on prompts with it: leave out" in caplog.text
    caplog.clear()
    flags = [f"--model_name_or_path={teacher}", "--max_new_tokens=4", "--keep_unfinished", *common]
    run(monkeypatch, "generate_responses.py", *flags, f"--output_dir={tmp_path / 'answers'}")
    assert "was trained without its chat template but answers prompts with it: leave out" in caplog.text


def test_the_students_are_scored_with_the_chat_template(folder, trained, monkeypatch, capsys):
    flags = [f"--sets_from={folder / 'sets'}", "--sets=vicuna", "--chat_template", "--seeds", "1", "2"]
    flags += ["--max_new_tokens=4", "--max_prompt_length=12", f"--output_dir={folder / 'scores'}"]
    run(monkeypatch, "evaluate_instruct.py", "--student_name_or_path", folder / "small", trained[1], *flags)
    shown = capsys.readouterr().out
    assert "| Student | Vicuna | Average |" in shown
    assert (folder / "scores" / "students.md").read_text() in shown
    files = sorted((folder / "scores").glob("*student*/vicuna-seed*.jsonl"))
    assert len(files) == 2
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["ask a three b <end> answer ", "ask a c b <end> answer "]
    assert [row["references"] for row in rows] == [["three me"], ["c me"]]
