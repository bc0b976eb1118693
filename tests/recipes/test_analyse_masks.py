"""`hfkd analyse --task segmentation`: what it writes of networks whose numbers are known; what it refuses."""

import json
import shutil

import pytest
import torch
from recipe_toys import MASKED, results, run, write_masks
from safetensors.torch import load_file, save_file
from task_toys import segformer

from hfkd.data.mask_arguments import MaskDataArguments
from hfkd.experiments.analyse_masks import MaskAnalysisArguments, analyse_masks

pytest.importorskip("torchmetrics")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Masks, a teacher, a copy whose classes stand in another order, and another network."""
    folder = tmp_path_factory.mktemp("analysed_masks")
    (folder / "masks").mkdir()
    write_masks(folder / "masks")
    network = segformer(8)
    network.config.num_labels = 3
    for name, names in (("teacher", MASKED), ("turned", MASKED[::-1])):
        network.config.id2label = dict(enumerate(names))
        network.config.label2id = {one: i for i, one in enumerate(names)}
        network.save_pretrained(folder / name)
    weights = load_file(folder / "turned/model.safetensors")
    head = {name: x.flip(0).contiguous() for name, x in weights.items() if name.startswith("decode_head.classifier")}
    assert head
    save_file(weights | head, folder / "turned/model.safetensors", {"format": "pt"})
    torch.manual_seed(1)
    other = segformer(8)
    other.config.id2label = dict(enumerate(MASKED))
    other.save_pretrained(folder / "other")
    return folder


def compare(folder, *students, teacher="teacher", **more):
    data = MaskDataArguments(dataset_name=str(folder / "masks"), image_size=[24, 32])
    own = {"output_dir": str(folder / "page"), "use_cpu": True, "shown_images": 1} | more
    return analyse_masks(
        MaskAnalysisArguments(str(folder / teacher), [str(folder / one) for one in students], **own), data
    )


def test_a_copy_in_another_order_agrees_and_another_network_does_not(folder):
    numbers = compare(folder, "turned", "other")
    assert (numbers["images"], numbers["pixels"]) == (6, 6 * 22 * 32)
    turned, other = numbers["students"]["turned"], numbers["students"]["other"]
    assert (turned["agreement"], turned["mean_iou_gap"]) == (1, 0)
    assert turned["kl"] == pytest.approx(0, abs=1e-6)
    assert other["kl"] > 1e-4
    assert other["agreement"] < 1
    assert json.loads((folder / "page/analysis.json").read_text())["students"]["other"]["kl"] == other["kl"]
    page = (folder / "page/index.html").read_text()
    titles = "image, label, teacher, turned, other, energy, entropy, entropy: turned, entropy: other"
    assert page.count(f"Side by side: {titles}") == 1
    assert "available for image classifiers only" in page


def test_what_cannot_be_analysed_is_refused_and_nothing_is_written(folder, tmp_path):
    (folder / "empty").mkdir(exist_ok=True)
    network = segformer(8)
    network.config.id2label = dict(enumerate(["sky", "road", "car"]))
    network.save_pretrained(folder / "street")
    refused = {
        "gone' is not a folder: pass output folders of runs": "gone",
        "empty has neither config.json nor both model.safetensors": "empty",
        "street does not have the classes of the data": "street",
        "is given twice": "teacher",
    }
    for reason, student in refused.items():
        with pytest.raises(ValueError, match=reason):
            compare(folder, student, output_dir=str(tmp_path / "page"))
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_of_runs_of_the_recipe_it_finds_their_own_numbers(monkeypatch, folder, tmp_path):
    """A bare network of torchvision's, which only its run's results.json names, and a model of transformers."""
    quiet = ["--use_cpu", "true", "--report_to", "none", "--disable_tqdm", "true", "--bf16", "false"]
    data = ["--dataset_name", str(folder / "masks"), "--image_size", "24", "32"]
    runs = {"bare": "lraspp_mobilenet_v3_large", "taught": str(folder / "other")}
    for name, student in runs.items():
        steps = ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "no"]
        alone = ["--kd_weight", "0", "--ce_weight", "1", "--scan_cache_dir", "", "--student_name", student]
        run(monkeypatch, "segmentation", *data, *quiet, *steps, *alone, "--output_dir", str(tmp_path / name))
    shutil.copytree(tmp_path / "bare", tmp_path / "copy")
    students = ["--students", str(tmp_path / "taught"), str(tmp_path / "copy")]
    page = ["--output_dir", str(tmp_path / "page"), "--use_cpu", "true", "--teacher", str(tmp_path / "bare")]
    run(monkeypatch, "analyse", "--task", "segmentation", *data, *students, *page)
    numbers = json.loads((tmp_path / "page/analysis.json").read_text())
    for name, found in {"bare": numbers["teacher"], **numbers["students"]}.items():
        last = results(tmp_path / name.replace("copy", "bare"))["epochs"][-1]
        assert found["mean_iou"] == pytest.approx(last["eval_mean_iou"], abs=1e-4)
        assert found["pixel_accuracy"] == pytest.approx(last["eval_pixel_accuracy"], abs=1e-4)
    assert numbers["students"]["copy"]["kl"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(SystemExit, match="unknown flag --tsne_images"):
        run(monkeypatch, "analyse", "--task", "segmentation", *data, *students, *page, "--tsne_images", "5")
