"""Pictures of masks: each panel shows the numbers it is given, with colours that mean the same in all images."""

import json

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from hfkd.reports.masks import MaskExample, class_colours, class_key, mask_example, mask_sections
from hfkd.reports.page import run_page, segmentation_sections
from hfkd.reports.style import figure_bytes
from hfkd.utils.json_file import write_json

NAMES = ["sky", "road", "car"]
HISTORY = [
    {"loss": 1.0, "epoch": 1.0, "step": 5},
    {
        "eval_loss": 0.9, "eval_mean_iou": 0.25, "eval_pixel_accuracy": 0.5, "epoch": 1.0, "step": 5,
        "eval_iou_sky": 0.5, "eval_iou_road": 0.25, "eval_iou_car": float("nan"),
    },
]  # fmt: skip


def example(shift=0.0, taught=True, name="Image 3 of the evaluation set"):
    g = torch.Generator().manual_seed(0)
    label = torch.randint(3, (6, 8), generator=g)
    label[0, 0] = -100
    image = torch.randint(256, (6, 8, 3), generator=g, dtype=torch.uint8)
    more = {"teacher": label.clamp(min=0), "energy": torch.rand(6, 8, generator=g) - 5 + shift}
    more["entropy"] = torch.rand(6, 8, generator=g)
    return MaskExample(name, image, label, label.clamp(min=1), **(more if taught else {}))


def shown(figure):
    """What each panel shows, by its title."""
    panels = [axes for axes in figure.axes if axes.images]
    return {axes.get_title(loc="left") or axes.get_title(): axes.images[0] for axes in panels}


def test_classes_have_colours_of_their_own():
    colours = class_colours(42)
    assert len(np.unique(colours.round(3), axis=0)) == 42
    assert colours.min() >= 0
    assert colours.max() <= 1
    labels = [text.get_text() for text in class_key(NAMES).legends[0].get_texts()]
    assert labels == NAMES


def test_dollars_of_a_class_name_are_dollars():
    """matplotlib takes what is between two for a formula: these ended the page in an error."""
    key = class_key([r"$\no$", "$5", "US$ in HK$"])
    assert b"<svg" in figure_bytes(key)[1]
    drawn = Text(0, 0, key.legends[0].get_texts()[0].get_text())
    assert drawn._preprocess_math(drawn.get_text()) == (r"$\no$", False)


def test_two_panels_a_row_each_of_its_own_numbers():
    one, other = example(), example(shift=3.0)
    panels = shown(mask_example(one, 3, [one, other]))
    assert list(panels) == ["image", "label", "teacher", "student", "energy", "entropy"]
    assert np.array_equal(panels["image"].get_array(), one.image.numpy())
    label, colours = np.asarray(panels["label"].get_array()), class_colours(3)
    assert label[0, 0].tolist() == [1.0, 1.0, 1.0]
    assert np.array_equal(label[1, 2], colours[int(one.label[1, 2])])
    assert np.array_equal(np.asarray(panels["student"].get_array()), colours[one.student.numpy()])
    torch.testing.assert_close(torch.as_tensor(np.asarray(panels["energy"].get_array())), one.energy)
    assert panels["energy"].get_clim() == (float(one.energy.min()), float(other.energy.max()))
    assert list(shown(mask_example(example(taught=False), 3))) == ["image", "label", "student"]


def test_the_page_has_every_image_the_classes_and_what_the_numbers_mean(tmp_path):
    path, examples = tmp_path / "index.html", [example(), example(shift=1.0, name="Image 7 of the evaluation set")]
    config = {"teacher": "big", "student": "<small>"}
    sections = segmentation_sections(HISTORY, label_names=NAMES, examples=examples)
    run_page(path, sections, config=config, log_history=HISTORY)
    page = path.read_text()
    assert "<td>road</td><td>25.00</td>" in page
    assert "<td>car</td><td>-</td>" in page
    assert '<th scope="row">best mean_iou</th><td>25.00 % (epoch 1)</td>' in page
    assert all(f"<h2>{one.name}</h2>" in page for one in examples)
    assert page.count("Side by side: image, label, teacher, student, energy, entropy") == 2
    low, high = min(float(one.energy.min()) for one in examples), max(float(one.energy.max()) for one in examples)
    assert f"energies run from {low:.2f} to {high:.2f}" in page
    assert "&lt;small&gt;" in page
    assert len(page) < 3_000_000


def test_a_class_that_does_not_occur_is_a_dash_after_a_resume_too(tmp_path):
    """Checkpoints are standard JSON, without NaN; a run may stop between its last evaluation and its page."""
    write_json(tmp_path / "history.json", HISTORY)
    kept = json.loads((tmp_path / "history.json").read_text())
    (table,) = (s.table for s in segmentation_sections(kept, label_names=NAMES) if s.title == "IoU of each class")
    assert table[1] == [("sky", "50.00"), ("road", "25.00"), ("car", "-")]


@pytest.mark.parametrize(
    ("examples", "said"), [([], "there is no evaluation set"), ([example(taught=False)], "no tea")]
)
def test_what_a_run_has_not_is_said(examples, said):
    assert said in mask_sections(examples, NAMES)[0].text
