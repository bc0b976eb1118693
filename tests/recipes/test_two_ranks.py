"""Every recipe on two ranks without a GPU, started as torchrun and `accelerate launch` start them: they are one run."""

import os

import pytest
from digit_files import flags
from processes import on_ranks, script
from recipe_toys import (
    RECIPES,
    TEXT,
    answer_flags,
    classified_flags,
    given,
    image_flags,
    masked_flags,
    response_flags,
    results,
    small_boxes,
    small_masks,
    text_flags,
    write_toys,
)


def on_the_cpu(path, *arguments):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    script(path, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("two_ranks"))


def command(name, folder, out):
    """The flags of a small run of a recipe with 16 rows a step, and the folders of the runs it makes in `out`."""
    batch = {"per_device_train_batch_size": 8}
    images = flags(folder / "digits", **batch, output_dir=out)
    text = given(**TEXT, dataset_name=folder / "text", output_dir=out)
    match name:
        case "cifar100_energy_kd":
            return image_flags(folder, out, **batch), [""]
        case "train_teacher":
            return [*images, "--network_name=cifar_resnet8x4"], [""]
        case "dml":
            return [*images, "--peer_names", "cifar_resnet8x4", "cifar_resnet8x4"], [""]
        case "takd":
            chain = ["--chain", folder / "teacher", "cifar_resnet8x4", "cifar_resnet8"]
            return [*images, "--pages=False", *chain], ["1_cifar_resnet8x4", "2_cifar_resnet8"]
        case "reproduce":
            table = ["--table=methods_cifar100", "--seeds=1", "--rows", "KD", "EA-KD"]
            return [*image_flags(folder, out, **batch, max_steps=3), *table], ["kd/seed42", "ea_kd/seed42"]
        case "digits_demo":
            sizes = {"seeds": 1, "teacher_epochs": 1, "max_steps": 2}
            return given(**sizes, output_dir=out, report_to="none"), []
        case "sft":
            return [*text, f"--model_name_or_path={folder / 'small'}"], [""]
        case "gpt2_dolly_eakd":
            return text_flags(folder, out), [""]
        case "text_classification":
            return classified_flags(folder, out, **batch), [""]
        case "masked_lm":
            return masked_flags(folder, out, **batch), [""]
        case "generate_responses":
            return response_flags(folder, out), []
        case "evaluate_instruct":
            return answer_flags(folder, out), []
        case "segmentation":
            return [*small_masks(folder, ["--teacher_name"]), *given(**batch, output_dir=out)], [""]
        case "coco_detection":
            return [*small_boxes(folder, []), *given(**batch, output_dir=out)], [""]


ALL = sorted({path.stem for path in RECIPES.glob("*.py")} - {"analyse"})  # which refuses several processes
QUICK = ("cifar100_energy_kd", "evaluate_instruct", "gpt2_dolly_eakd", "segmentation")
NO_RUN = ("evaluate_instruct", "generate_responses")  # they train nothing
CASES = [pytest.param(name, "False", marks=() if name in QUICK else pytest.mark.slow) for name in ALL]
CASES += [pytest.param(name, None, marks=pytest.mark.slow) for name in ALL if name not in NO_RUN]


def test_every_recipe_has_its_flags(folder, tmp_path):
    """The runs themselves are slow, so that a new recipe without flags would not be seen."""
    assert [name for name in ALL if command(name, folder, tmp_path) is None] == []


@pytest.mark.parametrize(("name", "bf16"), CASES)
def test_two_ranks_are_one_run(folder, tmp_path, name, bf16):
    given_flags, runs = command(name, folder, tmp_path / "out")
    # That there is no GPU is for the recipe to see.
    arguments = [str(flag) for flag in given_flags if not str(flag).startswith(("--use_cpu", "--bf16"))]
    if bf16 is not None and name not in NO_RUN:
        arguments.append(f"--bf16={bf16}")
    codes = on_ranks(tmp_path / "log", 2, on_the_cpu, RECIPES / f"{name}.py", *arguments)
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in range(2)]
    assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    assert "train_runtime" not in logs[1]
    for run in runs:
        found = results(tmp_path / "out" / run)
        assert found["status"] == "finished"
        assert (found["config"]["world_size"], found["config"]["batch_size"]) == (2, 16)
        if bf16 == "False":
            assert found["config"]["mixed_precision"] == "no"
    said = {
        "digits_demo": "Look at",
        "evaluate_instruct": "| Student |",
        "generate_responses": "are kept",
        "reproduce": "| EA-KD |",
    }
    if name in said:
        assert said[name] in logs[0]
        assert said[name] not in logs[1]


@pytest.mark.slow
def test_a_run_that_diverges_does_not_stop_the_table_on_two_ranks(folder, tmp_path):
    rows = "rows:\n  - {name: too fast, settings: {learning_rate: 1.0e+20}}\n  - {name: KD}\n"
    (tmp_path / "table.yaml").write_text(f"title: Two\nsettings: {{optim: sgd}}\nreference: KD\n{rows}")
    flags_given = [*image_flags(folder, tmp_path / "out", per_device_train_batch_size=8), "--seeds=1"]
    arguments = [str(flag) for flag in flags_given] + [f"--table={tmp_path / 'table.yaml'}"]
    codes = on_ranks(tmp_path / "log", 2, on_the_cpu, RECIPES / "reproduce.py", *arguments)
    logs = [(tmp_path / f"log-{rank}").read_text() for rank in range(2)]
    assert codes == [0, 0], logs[0][-3000:] + logs[1][-3000:]
    assert results(tmp_path / "out" / "too_fast" / "seed42")["status"] == "failed"
    assert results(tmp_path / "out" / "kd" / "seed42")["status"] == "finished"
    assert [log.count("Continuing with the next run") for log in logs] == [1, 0]
