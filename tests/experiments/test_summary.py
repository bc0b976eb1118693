"""What a line of a table says of its data, and which published number stands beside it."""

from pathlib import Path

import pytest
from toys import arguments

from hfkd.data import ImageDataArguments
from hfkd.experiments.published import Published
from hfkd.experiments.resume import Run, deciding
from hfkd.experiments.rows import Row, read_table
from hfkd.experiments.summary import summarise
from hfkd.models import NetworkArguments

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("flags", "data", "printed"),
    [
        ({"imbalance_factor": 0.5}, "cifar100-lt", 72.51),
        ({"imbalance_factor": 0.1}, "cifar100-lt, factor 0.1", None),
        (
            {"max_train_images": 2000, "labelled_images": 500, "max_test_images": 100},
            "cifar100, 2,000 images, labels of 500, 100 test images",
            None,
        ),
    ],
)
def test_a_line_names_its_data(tmp_path, flags, data, printed):
    """A number of other data is not printed beside it."""
    networks = NetworkArguments(["cifar_resnet32x4"], None, "cifar_resnet8x4")
    run = Run(deciding(networks, ImageDataArguments(**flags), arguments(tmp_path)), {}, "quoted")
    table, published = read_table(RECIPES / "tables" / "energy_kd_table9.yaml"), RECIPES / "published.yaml"
    line = summarise(Row("KD", "KD", None, (), frozenset()), [run], Published.read(published), table)
    assert line["data"] == data
    assert (line["paper"] or {}).get("value") == printed


def test_a_run_that_failed_with_other_settings_is_none_of_the_line(tmp_path):
    """Seed 44 diverged at an earlier rate, and was not run again at the one that the line is of."""
    networks, data = NetworkArguments(["cifar_resnet32x4"], None, "cifar_resnet8x4"), ImageDataArguments()
    scores = {name: {"epoch": 1.0, "accuracy": 0.5} for name in ("best", "last")}
    losses = {name: {"step": 1, "loss": 2.0} for name in ("first", "last")}
    done = scores | {"losses": losses, "images_per_second": 1.0, "train_epochs": 1.0}
    done |= {"environment": {"devices": ["a CPU"], "cpu_count": 2}}

    def run(seed, rate, status):
        settings = deciding(networks, data, arguments(tmp_path, learning_rate=rate, seed=seed))
        results = done if status == "finished" else {"train_steps": 3, "failure": "step 4: the loss is NaN"}
        return Run(settings, results | {"seed": seed}, status)

    runs = [run(42, 0.05, "finished"), run(43, 0.05, "failed"), run(44, 1.0, "failed")]
    table, published = read_table(RECIPES / "tables" / "energy_kd_table9.yaml"), RECIPES / "published.yaml"
    line = summarise(Row("KD", "KD", None, (), frozenset()), runs, Published.read(published), table)
    assert [failed["seed"] for failed in line["failed"]] == [43]
