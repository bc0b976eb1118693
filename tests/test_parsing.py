"""One command line and YAML files: who wins, what is refused, and that no file is ever executed."""

from dataclasses import dataclass, field, fields

import pytest
from transformers import TrainingArguments

from hfkd.arguments import DistillationArguments
from hfkd.parsing import parse


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "A Hub id or a folder."})
    image_size: int = field(default=32, metadata={"help": "Pixels."})


@pytest.fixture
def config(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def read(path, *argv, **keywords):
    return parse([DistillationArguments], ["--output_dir", "out", "--use_cpu", "--config", path, *argv], **keywords)[0]


# ---- who wins --------------------------------------------------------------------------------------------------------


def test_command_line_over_file_over_defaults(config, tmp_path):
    path = config("learning_rate: 0.05\nkd_weight: 2.0\ndataset: cifar100\nimage_size: 64\n")
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--config", path, "--kd_weight", "3", "--image_size=16"]
    args, data = parse([DistillationArguments, DataArguments], argv)
    assert (args.learning_rate, args.kd_weight, args.ce_weight) == (0.05, 3.0, 0.1)
    assert data == DataArguments("cifar100", 16)


def test_the_equals_form(config):
    path = config("ce_weight: 0.7")
    args = parse([DistillationArguments], ["--output_dir=out", "--use_cpu", f"--config={path}"])[0]
    assert args.ce_weight == 0.7


def test_the_last_config_counts_as_for_any_flag(config):
    first, second = config("ce_weight: 0.7", "1.yaml"), config("ce_weight: 0.2", "2.yaml")
    assert read(first, "--config", second).ce_weight == 0.2


def test_several_files_the_later_ones_win(config):
    pair, method = config("ce_weight: 0.7\nkd_weight: 0.3", "pair.yaml"), config("ce_weight: 0.2", "method.yaml")
    args = read(pair, method)
    assert (args.ce_weight, args.kd_weight) == (0.2, 0.3)
    assert read(pair, method, "--ce_weight", "5").ce_weight == 5
    assert read(method, pair).ce_weight == 0.7


def test_defaults_may_be_settings_instead_of_files(config):
    path = config("ce_weight: 0.7\nkd_weight: 0.3")
    args = read(
        config("weighting: entropy", "given.yaml"), defaults=[path, {"ce_weight": "2e-1", "weighting": "matched"}]
    )
    assert (args.ce_weight, args.kd_weight, args.weighting) == (0.2, 0.3, "entropy")
    with pytest.raises(ValueError, match="^settings: unknown setting 'ce_wieght'; did you mean 'ce_weight'"):
        read(path, defaults=[{"ce_wieght": 1}])


def test_defaults_files_come_first(config):
    protocol, other = config("ce_weight: 0.7\nkd_weight: 0.3", "1.yaml"), config("ce_weight: 0.2", "2.yaml")
    args = read(config("weighting: entropy"), defaults=[protocol, other])
    assert (args.ce_weight, args.kd_weight, args.weighting) == (0.2, 0.3, "entropy")


def test_a_required_setting_may_come_from_the_file_but_must_come(config, capsys):
    argv = ["--output_dir", "out", "--use_cpu"]
    path = config("dataset: cifar100")
    assert parse([DistillationArguments, DataArguments], [*argv, "--config", path])[1].dataset == "cifar100"
    with pytest.raises(SystemExit):
        parse([DistillationArguments, DataArguments], argv)
    assert "--dataset" in capsys.readouterr().err


def test_an_empty_file_changes_nothing(config):
    assert read(config("# nothing yet\n")).kd_weight == 0.9


# ---- YAML's types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("learning_rate: 5e-2", "learning_rate", 0.05),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("lr_decay_epochs: [15e1, 18e1, 210]", "lr_decay_epochs", [150.0, 180.0, 210.0]),
        ("lr_decay_epochs: 150", "lr_decay_epochs", [150.0]),
        ("temperature: energy(ratio=0.2)", "temperature", "energy(ratio=0.2)"),
        ("channels_last: no", "channels_last", False),
        ("bf16: true", "bf16", True),
        ("lr_decay_epochs: null", "lr_decay_epochs", None),
        ("save_strategy: 'no'", "save_strategy", "no"),
        ("label_names: labels", "label_names", ["labels"]),
        ("lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
    ],
)
def test_a_line_is_read_as_the_command_line_would(config, line, name, value):
    got = getattr(read(config(line)), name)
    assert got == value
    assert type(got) is type(value) or isinstance(got, str)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate: fast", "config.yaml: learning_rate: 'fast' is not a number"),
        ("learning_rate: [1]", r"learning_rate: \[1\] is not a number"),
        ("ce_weight: yes", "ce_weight: True is not a number"),
        ("seed: 1.5", "seed: 1.5 is not a whole number"),
        ("lr_decay_epochs: [a]", "lr_decay_epochs: 'a' is not a number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(config, line, message):
    with pytest.raises(ValueError, match=message):
        read(config(line))


# ---- files that are not settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        ("tempreture: 4", "unknown setting 'tempreture'; did you mean 'temperature'"),
        ("zzzzzz: 4", "unknown setting 'zzzzzz'$"),
        ("config: other.yaml", "unknown setting 'config'"),
        ("_n_gpu: 4", "unknown setting '_n_gpu'"),
        ("- a\n- b", "must hold `name: value` lines, and holds a list"),
        ("just words", "holds a str"),
        ("1: 2", "must hold `name: value` lines"),
        ("a: [1", "is not a YAML file of settings"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe", "is not a YAML file of settings"),
        (b"\x00\x01\x02", "is not a YAML file of settings"),
        ("[" * 5000, "is not a YAML file of settings"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(config, content, message):
    with pytest.raises(ValueError, match=message):
        read(config(content))


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.yaml: there is no such file"):
        read(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read(str(tmp_path))


@pytest.mark.parametrize("tag", ["object/apply:os.system", "object/new:os.system", "object/apply:subprocess.getoutput"])
def test_no_code_in_a_file_runs(config, tmp_path, tag):
    planted = tmp_path / "planted"
    with pytest.raises(ValueError, match="is not a YAML file of settings"):
        read(config(f'objective: !!python/{tag} ["touch {planted}"]'))
    assert not planted.exists()


# ---- the command line ------------------------------------------------------------------------------------------------


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        parse([DistillationArguments, DataArguments], ["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("--config FILE.yaml", "--weighting", "Multiply the learning rate by lr_decay_factor", "A Hub id or"):
        assert text in shown


def test_every_setting_of_ours_is_explained():
    theirs = {f.name: f for f in fields(TrainingArguments)}
    ours = [f for f in fields(DistillationArguments) if f is not theirs.get(f.name) and f.init]
    changed = [f for f in ours if f.name not in theirs or f.default != theirs[f.name].default]
    assert {"objective", "kd_weight", "bf16", "lr_decay_epochs", "scan_cache_dir"} <= {f.name for f in changed}
    for f in changed:
        assert f.metadata.get("help", "").endswith("."), f"{f.name} needs help that is a sentence"


@pytest.mark.parametrize("argv", [["--learning_rte", "1"], ["--learning", "1"], ["stray"]])
def test_an_unknown_or_shortened_flag_is_refused(argv):
    with pytest.raises(ValueError, match=argv[0]):
        parse([DistillationArguments], ["--output_dir", "out", *argv])


def test_config_without_a_file_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse([DistillationArguments], ["--output_dir", "out", "--config"])
    assert "--config: expected at least one argument" in capsys.readouterr().err
