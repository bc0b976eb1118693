"""The page: escaped, self-contained, small, complete or saying why not."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from hfkd.reports import Section, distillation_page, energy_histogram, write_page
from hfkd.reports.comparison import Comparison

CONFIG = {
    "teacher": "resnet32x4",
    "student": "<script>alert('x')</script>",
    "objective": "dkd(beta=8)",
    "temperature": 4.0,
    "lr": {"schedule": [150, 180], "<b>": '"><img src=http://evil.example/x>'},
}
HISTORY = [
    {"loss": 2.0, "epoch": 1.0, "step": 10},
    {"eval_accuracy": 0.5, "eval_loss": 1.0, "epoch": 1.0, "step": 10},
    {"loss": 1.0, "epoch": 2.0, "step": 20},
    {"eval_accuracy": 0.4, "eval_loss": 1.1, "epoch": 2.0, "step": 20},
    {"train_runtime": 12.34, "epoch": 2.0, "step": 20},
]


def scan():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator)
    soft = torch.softmax(torch.randn(32, 100, generator=generator), -1)
    correct = np.arange(1000) % 3 > 0
    return {
        "energies": torch.randn(50_000, generator=generator),
        "thresholds": (-0.8, 0.8),
        "lowest_images": pictures,
        "highest_images": pictures.permute(0, 2, 3, 1),
        "lowest_probabilities": soft,
        "highest_probabilities": soft[:10],
        "entropy": np.linspace(0, 1, 1000),
        "student_correct": correct,
        "teacher_correct": ~correct,
    }


NOTHING = dict.fromkeys(scan())


class Tags(HTMLParser):
    """Collects the tags a browser would see, and refuses unbalanced ones."""

    VOID = ("meta", "img")

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    distillation_page(path, config=CONFIG, log_history=HISTORY, **scan())
    return path.read_text(encoding="utf-8")


def test_user_text_is_escaped(full):
    tags = Tags(full).tags
    assert not [tag for tag, _ in tags if tag in ("script", "b")]
    assert all(attributes["src"].startswith("data:") for tag, attributes in tags if tag == "img")
    assert "&lt;script&gt;alert(" in full


def test_nothing_is_loaded_from_outside(full):
    for _, attributes in Tags(full).tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert not re.match(r"\s*(https?:)?//", attributes.get(name) or "")
    assert not re.search(r"url\(|@import|<script|<link", full)
    assert "default-src 'none'" in full


def test_figures_have_alt_text_and_the_smaller_format(full):
    pictures = [attributes for tag, attributes in Tags(full).tags if tag == "img"]
    assert len(pictures) == 6
    assert all(picture["alt"] for picture in pictures)
    kinds = [picture["src"].split(";")[0] for picture in pictures]
    assert kinds.count("data:image/png") == 2
    assert kinds.count("data:image/svg+xml") == 4


def test_a_figure_is_scrolled_where_its_text_would_be_too_small(full):
    images = [attributes for tag, attributes in Tags(full).tags if tag == "img"]
    for image in images:
        assert image["style"] == f"min-width: {min(int(image['width']), 640)}px"
    assert "figure { margin: 1rem 0; padding: .6rem; overflow-x: auto;" in full


def test_an_entropy_says_its_temperature_and_an_image_its_class(tmp_path):
    data = scan() | {"entropy_temperature": 3.0, "lowest_classes": ["cat → dog"] * 32}
    path = tmp_path / "page.html"
    distillation_page(path, config=CONFIG, log_history=HISTORY, **data)
    page = path.read_text(encoding="utf-8")
    assert "the entropy of its softmax at temperature 3." in page
    said = page.count("Below each image: its class, the teacher")
    assert said == 2, "of one of the two groups: its paragraph, and the description of its picture"


@pytest.mark.parametrize(("other", "said"), [([0.52, 0.50], True), ([0.72, 0.70], False), ([0.52], False)])
def test_ways_within_the_spread_of_the_seeds_are_said_to_show_no_difference(other, said):
    found = Comparison()
    for way, values in {"kd": [0.50, 0.53], "energy": other}.items():
        for value in values:
            found.add(way, value, 1.0)
    assert ("All ways lie within the spread of the seeds" in found.section("Three ways.").text) is said


def test_size(full):
    assert len(full.encode()) < 1_500_000


def test_summary(full):
    for text in ("50.00 % (epoch 1)", "40.00 % (epoch 2)", "12.3", "dkd(beta=8)", "not recorded", "CPU cores"):
        assert text in full


def test_results_know_time_and_machine_better(tmp_path):
    machine = {"devices": ["H100", "H100"], "cpu_count": 99, "versions": {"torch": "9.9"}}
    results = {"wall_time_seconds": 5000.0, "environment": machine}
    distillation_page(tmp_path / "p.html", config={}, log_history=HISTORY, **NOTHING, results=results)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "5,000.0" in page
    assert "2 × H100; 99 CPU cores; torch 9.9" in page


def test_without_data_each_section_says_why(tmp_path):
    distillation_page(tmp_path / "p.html", config={}, log_history=[], **NOTHING)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("Left out:") == 5
    assert page.count("did not scan") == 4
    assert "no evaluation was logged" in page
    assert len(re.findall("<img", page)) == 1


@pytest.mark.parametrize(
    "missing",
    [pytest.param(name, marks=[pytest.mark.slow] * (number > 1)) for number, name in enumerate(sorted(NOTHING))],
)
def test_any_part_may_be_missing(tmp_path, missing):
    distillation_page(tmp_path / "p.html", config=CONFIG, log_history=HISTORY, **(scan() | {missing: None}))
    Tags((tmp_path / "p.html").read_text(encoding="utf-8"))


def test_sections_tables_and_paragraphs(tmp_path):
    figure = energy_histogram([1.0, 2.0])
    section = Section("A & B", "one\n\ntwo <2>", figure, table=(("a", "b"), [(1, "<i>")]), alt='say "hi"')
    write_page(tmp_path / "p.html", "T <1>", [section], summary={"<k>": "<v>"})
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    Tags(page)
    for text in (
        "<h2>A &amp; B</h2>",
        "<p>one</p><p>two &lt;2&gt;</p>",
        "<td>&lt;i&gt;</td>",
        "&lt;k&gt;",
        "&lt;v&gt;",
    ):
        assert text in page
    assert 'alt="say &quot;hi&quot;"' in page
    assert "<title>T &lt;1&gt;</title>" in page


def test_a_failing_figure_leaves_the_old_page(tmp_path):
    path = tmp_path / "p.html"
    write_page(path, "old", [])
    with pytest.raises(AttributeError):
        write_page(path, "new", [Section("broken", "", figure=object())])
    assert "<title>old</title>" in path.read_text(encoding="utf-8")
