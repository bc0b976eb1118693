"""Pictures of boxes: each panel draws what it is given, where it is, with its class and score."""

import torch

from hfkd.reports.boxes import MOST, SCORE, BoxExample, FoundBoxes, box_example, box_sections

NAMES = ["__background__", "cat", "dog"]
IMAGE = torch.zeros(20, 30, 3, dtype=torch.uint8)
LABEL = FoundBoxes(torch.tensor([[1.0, 2, 11, 9]]), torch.tensor([2]))


def found(scores):
    count = len(scores)
    return FoundBoxes(torch.tensor([[2.0, 3, 9, 8]] * count), torch.ones(count), torch.tensor(scores))


def shown(figure):
    return {
        axes.get_title(loc="left") or axes.get_title(): (axes.patches, [text.get_text() for text in axes.texts])
        for axes in figure.axes
    }


def test_each_panel_has_its_boxes():
    panels = shown(box_example(BoxExample("a", IMAGE, LABEL, found([0.2, 0.9]), found([SCORE])), NAMES))
    assert list(panels) == ["label", "teacher", "student"]
    (patch,), words = panels["label"]
    assert (patch.get_xy(), patch.get_width(), patch.get_height()) == ((1, 2), 10, 7)
    assert words == ["dog"]
    assert panels["teacher"][1] == ["cat 0.30"]
    assert panels["student"][1] == ["cat 0.90"]


def test_the_likeliest_are_drawn_and_counted():
    example = BoxExample("Image 3", IMAGE, LABEL, found([0.5 + k / 100 for k in range(20)]))
    first, second = box_sections([example], NAMES)
    assert "The run had no teacher" in first.text
    assert second.text == f"Boxes: label 1, student {MOST}."
    drawn = shown(second.figure)["student"][1]
    assert drawn[0] == "cat 0.69"
    assert len(drawn) == MOST
    assert "Left out" in box_sections([], NAMES)[0].text
