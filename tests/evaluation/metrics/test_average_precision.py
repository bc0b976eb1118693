"""AP, AP50 and AP75 are those that pycocotools' own command prints for the same predictions."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from hfkd.evaluation.metrics import AveragePrecision
from hfkd.evaluation.metrics import average_precision as module

CLASSES, IMAGES = 3, 12


def made_up(seed=0):
    """Boxes, some of crowds, and what a mediocre detector finds: padded, as Trainer gathers them."""
    g = torch.Generator().manual_seed(seed)
    found, there = [], []
    for count in torch.randint(0, 5, (IMAGES,), generator=g).tolist():
        corner = torch.rand(count, 2, generator=g) * 50
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=g) * 40], 1)
        labels = torch.randint(1, CLASSES + 1, (count,), generator=g)
        there.append({"boxes": boxes, "labels": labels, "iscrowd": torch.rand(count, generator=g) < 0.2})
        others = torch.rand(2, 2, generator=g) * 50
        guessed = torch.cat([boxes + 3 * torch.randn(boxes.shape, generator=g), torch.cat([others, others + 20], 1)])
        wrong = torch.randint(1, CLASSES + 1, (2,), generator=g)
        scores = torch.rand(count + 2, generator=g)
        found.append({"boxes": guessed, "scores": scores, "labels": torch.cat([labels, wrong])})
    return found, there


def padded(images):
    return {
        name: pad_sequence([one[name] for one in images], True, padding_value=0 if name == "iscrowd" else -100).numpy()
        for name in images[0]
    }


def by_command(folder, found, there):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def corners(boxes):
        return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().tolist()

    annotations = [
        {"image_id": i, "bbox": b, "area": b[2] * b[3], "category_id": int(c), "iscrowd": int(k)}
        for i, one in enumerate(there)
        for b, c, k in zip(corners(one["boxes"]), one["labels"], one["iscrowd"], strict=True)
    ]
    content = {
        "images": [{"id": i} for i in range(IMAGES)],
        "categories": [{"id": k} for k in range(1, CLASSES + 1)],
        "annotations": [one | {"id": k} for k, one in enumerate(annotations, 1)],
    }
    results = [
        {"image_id": i, "bbox": b, "score": float(s), "category_id": int(c)}
        for i, one in enumerate(found)
        for b, s, c in zip(corners(one["boxes"]), one["scores"], one["labels"], strict=True)
    ]
    for name, value in (("there", content), ("found", results)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    coco = COCO(str(folder / "there.json"))
    scored = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    return scored.stats


@pytest.mark.parametrize("parts", [1, 3])
def test_equal_to_pycocotools_own(tmp_path, parts):
    pytest.importorskip("pycocotools")
    found, there = made_up()
    metric, scores = AveragePrecision(), {}
    for part in range(parts):
        rows = slice(part * IMAGES // parts, (part + 1) * IMAGES // parts)
        given = SimpleNamespace(predictions=padded(found[rows]), label_ids=padded(there[rows]))
        scores = metric(given, compute_result=part == parts - 1)
    stats = by_command(tmp_path, found, there)
    assert 5 < scores["ap"] < 95
    assert [scores[name] for name in ("ap", "ap50", "ap75")] == pytest.approx([100 * s for s in stats[:3]], rel=1e-5)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "pycocotools" else True)
    with pytest.raises(ImportError, match="needs pycocotools, which is not installed: pip install 'hfkd\\[detect\\]'"):
        AveragePrecision()


def test_without_any_box_there_is_no_precision():
    """COCO's -1 would be -100 percent."""
    pytest.importorskip("pycocotools")
    nothing = {"boxes": torch.full((1, 1, 4), -100.0), "labels": torch.full((1, 1), -100)}
    found = nothing | {"scores": torch.full((1, 1), -100.0)}
    there = nothing | {"iscrowd": torch.zeros(1, 1, dtype=torch.long)}
    scores = AveragePrecision()(SimpleNamespace(predictions=found, label_ids=there))
    assert scores == pytest.approx(dict.fromkeys(("ap", "ap50", "ap75"), float("nan")), nan_ok=True)
