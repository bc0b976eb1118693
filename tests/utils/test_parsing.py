"""One command line and YAML files: who wins, what is refused, and that no file is ever executed."""

import logging
import re
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest
from transformers import TrainingArguments

import hfkd.utils.precedence
from hfkd.arguments import DistillationArguments
from hfkd.utils.parsing import given_settings, parse


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


def test_a_tilde_is_the_home_folder_where_the_shell_leaves_it(config, tmp_path, monkeypatch):
    """`~` itself is a name like any other: a folder called so was made in the working directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    args = read(config("scan_cache_dir: ~/scans\nreport_to: ['~/a', b~/c]\n"), "--teacher_cache_dir=~/cache")
    assert (args.scan_cache_dir, args.teacher_cache_dir) == (f"{tmp_path}/scans", f"{tmp_path}/cache")
    assert args.report_to == [f"{tmp_path}/a", "b~/c"]
    config("ce_weight: 0.7", "home.yaml")
    assert read("~/home.yaml", "--run_name", "~").ce_weight == 0.7
    data = parse([DataArguments], ["--dataset=~/pictures"], [{"dataset": "~/others"}])[0]
    assert data.dataset == f"{tmp_path}/pictures"


def test_what_is_given_is_read_before_it_is_checked(config):
    """lr_decay_factor alone is refused by the arguments."""
    path = config("lr_decay_factor: 0.2")
    given = given_settings([DistillationArguments], ["--config", path, "--seed=3", "--unknown"])
    assert given == {"lr_decay_factor": 0.2, "seed": 3}
    with pytest.raises(ValueError, match="has no effect without lr_decay_epochs"):
        read(path)


def test_several_config_flags_are_read_like_one_with_several_files(config):
    first, second = config("ce_weight: 0.7\nkd_weight: 0.3", "1.yaml"), config("ce_weight: 0.2", "2.yaml")
    for more in ((second,), ("--config", second), (f"--config={second}",)):
        args = read(first, *more)
        assert (args.ce_weight, args.kd_weight) == (0.2, 0.3)


def test_a_file_has_settings_for_another_one(config):
    """They go on top of both, in whichever order the two are named, and below a later file and the command line."""
    pair = config("ce_weight: 0.7\nkd_weight: 0.3\nwith: {method: {kd_weight: 5}, other: {ce_weight: 9}}", "pair.yaml")
    method = config("kd_weight: 2.0\ntemperature: 3.0", "method.yaml")
    for files in ((pair, method), (method, pair)):
        args = read(*files)
        assert (args.ce_weight, args.kd_weight, args.temperature) == (0.7, 5.0, "3.0")
    assert read(pair).kd_weight == 0.3
    assert read(pair, method, config("kd_weight: 1.0", "last.yaml")).kd_weight == 1.0
    assert read(pair, method, "--kd_weight", "4").kd_weight == 4.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("with: 3", "with must be a mapping from names of other files to settings"),
        ("with: {method: 3}", "with must be a mapping from names of other files to settings"),
        ("with: {method: {kdweight: 3}}", r"with method: unknown setting 'kdweight'; did you mean 'kd_weight'"),
        ("with: {method: {kd_weight: high}}", r"with method: kd_weight: 'high'"),
    ],
)
def test_settings_for_another_file_that_are_none(config, text, message):
    method = config("kd_weight: 2.0", "method.yaml")
    with pytest.raises(ValueError, match=message):
        read(config(text, "pair.yaml"), method)


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


CONSTANT = "lr_scheduler_type: constant\n"  # which takes any settings


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
        (CONSTANT + "lr_scheduler_kwargs: {num_cycles: 2}", "lr_scheduler_kwargs", {"num_cycles": 2}),
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
        ("learning_rate: [1]", r"learning_rate: \['1'\] is not a number"),
        ("ce_weight: yes", "ce_weight: 'yes' is not a number"),
        ("seed: 1.5", "seed: '1.5' is not a whole number"),
        ("lr_decay_epochs: [a]", "lr_decay_epochs: 'a' is not a number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(config, line, message):
    with pytest.raises(ValueError, match=message):
        read(config(line))


@dataclass
class OtherArguments:
    """A field of each kind that the recipes' dataclasses have."""

    student_name: str = "resnet"
    run_id: str | None = None
    flip: bool = True
    resident: bool | None = None
    limit: int | None = None
    names: list[str] = field(default_factory=lambda: ["a"])
    seeds: list[int] = field(default_factory=lambda: [1])
    mix: Literal["cutmix", "mixup"] = "cutmix"


def others(path):
    return parse([OtherArguments, DistillationArguments], ["--use_cpu", "--config", path])


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("output_dir: 2026-11-28", "output_dir", "2026-11-28"),
        ("output_dir: 0012", "output_dir", "0012"),
        ("output_dir: 1e3", "output_dir", "1e3"),
        ("run_name: 12:30", "run_name", "12:30"),
        ("run_name: 1.10", "run_name", "1.10"),
        ("run_name: null", "run_name", None),
        ("run_name: 'null'", "run_name", "null"),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("eval_strategy: epoch", "eval_strategy", "epoch"),
        ("report_to: none", "report_to", []),
        ("report_to: [tensorboard]", "report_to", ["tensorboard"]),
        ("temperature: 4", "temperature", "4"),
        (CONSTANT + "lr_scheduler_kwargs: {a: 1e-1, mode: no}", "lr_scheduler_kwargs", {"a": 0.1, "mode": "no"}),
        (CONSTANT + "lr_scheduler_kwargs: {a: False, b: TRUE}", "lr_scheduler_kwargs", {"a": False, "b": True}),
        ("student_name: no", "student_name", "no"),
        ("student_name: 0012", "student_name", "0012"),
        ("student_name: ''", "student_name", ""),
        ("run_id:", "run_id", None),
        ("run_id: ~", "run_id", None),
        ("flip: off", "flip", False),
        ("flip: 1", "flip", True),
        ("resident: ~", "resident", None),
        ("resident: 'no'", "resident", False),
        ("limit: 0100", "limit", 100),
        ("names: [no, 007, b]", "names", ["no", "007", "b"]),
        ("names: 12:30", "names", ["12:30"]),
        ("seeds: [1, 2]", "seeds", [1, 2]),
        ("seeds: 3", "seeds", [3]),
        ("mix: mixup", "mix", "mixup"),
    ],
)
def test_a_value_is_what_its_field_takes_it_for(config, line, name, value):
    other, args = others(config(line))
    got = getattr(other if hasattr(other, name) else args, name)
    assert got == value
    assert isinstance(got, type(value))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed:", "config.yaml: seed has no value: set one, or remove the line"),
        ("learning_rate:", "learning_rate has no value"),
        ("student_name: ~", "student_name has no value"),
        ("names:", "names has no value"),
        ("flip: ~", "flip has no value"),
        ("seeds: [1, ~]", "seeds has no value"),
        ("flip: [false]", r"flip: \['false'\] is not true or false"),
        ("flip: maybe", "flip: 'maybe' is not true or false"),
        ("flip: 2", "flip: '2' is not true or false"),
        ("resident: [true]", r"resident: \['true'\] is not true or false"),
        ("student_name: [a]", r"student_name: \['a'\] is not text"),
        ("student_name: !!bool no", "student_name: False is not text"),
        ("student_name: {a: 1}", "student_name: {'a': '1'} is a mapping of settings, but a single value is expected"),
        ("seed: 12:30", "seed: '12:30' is not a whole number"),
        ("seed: yes", "seed: 'yes' is not a whole number"),
        ("limit: 2026-11-28", "limit: '2026-11-28' is not a whole number"),
        ("seeds: [1, no]", "seeds: 'no' is not a whole number"),
        ("seeds: [[1]]", r"seeds: \['1'\] is not a whole number"),
        ("mix: no", r"mix: 'no' is not one of \['cutmix', 'mixup'\]"),
        ("mix: [mixup]", r"mix: \['mixup'\] is not one of"),
        ("eval_strategy: yes", "eval_strategy: 'yes' is not one of .*epoch"),
        ("optim: sdg", "optim: 'sdg' is not one of"),
        ("parallelism_config: x", "parallelism_config: 'x' cannot be set in a file"),
    ],
)
def test_a_value_that_its_field_does_not_take_is_refused(config, line, message):
    with pytest.raises(ValueError, match=f"^--config .*{message}"):
        others(config(line))


def test_a_mapping_of_defaults_has_values_already():
    given = {"flip": False, "limit": 3, "learning_rate": 1, "names": ["a", "b"], "run_id": None, "temperature": 2.0}
    other, args = parse([OtherArguments, DistillationArguments], ["--use_cpu"], [given])
    assert (other.flip, other.limit, other.names, other.run_id) == (False, 3, ["a", "b"], None)
    assert (args.learning_rate, args.temperature) == (1.0, "2.0")
    for wrong in ({"flip": [False]}, {"student_name": True}, {"seed": None}, {"limit": "x"}):
        with pytest.raises(ValueError, match=f"^settings: {next(iter(wrong))}"):
            parse([OtherArguments, DistillationArguments], ["--use_cpu"], [wrong])


# ---- a user's choice over the protocol's -----------------------------------------------------------------------------

PROTOCOL = {"lr_decay_epochs": [150, 180], "optim": "sgd", "optim_args": "momentum=0.9", "eval_strategy": "epoch"}
PROTOCOL |= {"logging_strategy": "epoch", "save_strategy": "epoch"}
LANGUAGE = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-7}}


def chosen(*argv, protocol=PROTOCOL, files=()):
    config = ["--config", *files] if files else []
    return parse([DistillationArguments], ["--output_dir=out", "--use_cpu", *config, *argv], [protocol])[0]


@pytest.mark.parametrize(
    ("argv", "protocol", "expected", "said"),
    [
        (
            ["--lr_scheduler_type", "cosine", "--warmup_steps=5"],
            PROTOCOL,
            {"lr_decay_epochs": None, "lr_scheduler_type": "cosine", "warmup_steps": 5},
            "lr_scheduler_type=cosine replaces lr_decay_epochs=[150.0, 180.0].",
        ),
        (["--lr_scheduler_type=linear"], PROTOCOL, {"lr_decay_epochs": None}, "replaces lr_decay_epochs"),
        (["--warmup_steps=5"], PROTOCOL, {"lr_decay_epochs": [150, 180], "warmup_steps": 5}, None),
        (["--lr_decay_epochs=5"], PROTOCOL, {"lr_decay_epochs": [5], "lr_scheduler_type": "linear"}, None),
        (
            ["--lr_decay_epochs", "5", "8"],
            LANGUAGE,
            {"lr_decay_epochs": [5, 8], "lr_scheduler_type": "linear", "lr_scheduler_kwargs": None},
            "lr_decay_epochs=[5.0, 8.0] replaces lr_scheduler_type=cosine_with_min_lr",
        ),
        (["--lr_scheduler_type=cosine"], LANGUAGE, {"lr_scheduler_kwargs": None}, "replaces lr_scheduler_kwargs="),
        (["--lr_scheduler_type=cosine_with_min_lr"], LANGUAGE, {"lr_scheduler_kwargs": {"min_lr": 1e-7}}, None),
        (["--optim=adamw_torch"], PROTOCOL, {"optim_args": None}, "optim=adamw_torch replaces optim_args"),
        (["--optim=sgd"], PROTOCOL, {"optim_args": "momentum=0.9"}, None),
        (["--num_train_epochs=3"], {"max_steps": 20}, {"max_steps": -1}, "replaces max_steps=20"),
        (["--num_train_epochs=3"], {"max_steps": -1}, {"max_steps": -1}, None),
        (["--max_steps=3"], {"num_train_epochs": 20}, {"max_steps": 3, "num_train_epochs": 20}, None),
        (
            ["--eval_steps=7"],
            PROTOCOL,
            {"eval_strategy": "steps", "save_strategy": "epoch"},
            "replaces eval_strategy=epoch",
        ),
        (["--eval_steps=7", "--eval_strategy=epoch"], PROTOCOL, {"eval_strategy": "epoch"}, None),
        (["--eval_steps=7"], {}, {"eval_strategy": "steps"}, None),
        (
            ["--logging_steps=7"],
            PROTOCOL,
            {"logging_strategy": "steps", "logging_steps": 7},
            "replaces logging_strategy",
        ),
        (["--save_steps=7"], PROTOCOL, {"save_strategy": "steps"}, "save_steps=7.0 replaces save_strategy"),
    ],
)
def test_a_flag_is_not_beaten_by_the_protocol(caplog, argv, protocol, expected, said):
    hfkd.utils.precedence._say.cache_clear()
    caplog.set_level(logging.INFO, "hfkd")
    args = chosen(*argv, protocol=protocol)
    assert {name: getattr(args, name) for name in expected} == expected
    assert (said in caplog.text) if said else "replaces" not in caplog.text


def test_a_file_is_not_beaten_by_the_protocol_nor_a_flag_by_a_file(config):
    path = config("lr_scheduler_type: cosine")
    assert chosen(files=[path]).lr_decay_epochs is None
    args = chosen("--lr_decay_epochs=3", files=[path])
    assert (args.lr_decay_epochs, args.lr_scheduler_type) == ([3], "linear")


def test_what_was_given_is_known(config):
    argv = ["--output_dir=out", "--use_cpu", "--no-flip", "--config", config("seed: 3\nmix: mixup")]
    parsed = parse([OtherArguments, DistillationArguments], argv, [PROTOCOL])
    assert parsed.given == {"output_dir", "use_cpu", "flip", "seed", "mix"}
    assert (parsed[0].flip, len(parsed)) == (False, 2)


# ---- what a command does not do --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--do_train=false"], "do_train=False: recipes always train.*--evaluate_only.*leave do_train out"),
        (
            ["--do_eval=false", "--eval_strategy=epoch"],
            "do_eval=False: evaluation is controlled by eval_strategy",
        ),
        (["--do_eval"], "do_eval=True: evaluation is controlled"),
        (["--do_predict"], "do_predict=True: no recipe predicts"),
    ],
)
def test_what_will_not_be_done_is_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        parse([DistillationArguments], ["--output_dir=out", "--use_cpu", *argv])


def test_what_will_be_done_may_be_said():
    argv = ["--do_train", "--do_eval", "--eval_strategy=epoch", "--do_predict=false"]
    assert parse([DistillationArguments], ["--output_dir=out", "--use_cpu", *argv])[0].do_train
    argv = ["--do_train=false", "--do_eval=false"]
    with pytest.raises(ValueError, match="do_train"):
        parse([DistillationArguments], ["--output_dir=out", "--use_cpu", *argv])


# ---- files that are not settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        ("tempreture: 4", "unknown setting 'tempreture'; did you mean 'temperature'"),
        ("zzzzzz: 4", "unknown setting 'zzzzzz'$"),
        ("config: other.yaml", "unknown setting 'config'"),
        ("_n_gpu: 4", "unknown setting '_n_gpu'"),
        ("- a\n- b", "must have `name: value` lines, but has a list"),
        ("just words", "has a str"),
        ("1: 2", "unknown setting '1'$"),
        ("~: 2", "must have `name: value` lines"),
        ("seed: 1\nlearning_rate: 2\nseed: 3", "'seed' occurs twice"),
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
    with pytest.raises(ValueError, match=r"nowhere\.yaml: this file does not exist"):
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


def test_an_unknown_flag_gets_a_suggestion(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--learning_rat", "0.1"]
    with pytest.raises(ValueError, match=r"unknown flag --learning_rat; did you mean --learning_rate\?"):
        parse([DistillationArguments], argv)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning_rat", "0.1"], "unknown flag --learning_rat; did you mean --learning_rate?"),
        (["--objective", "kdd"], "unknown objective 'kdd'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: this file does not exist"),
    ],
)
def test_what_was_typed_wrong_ends_a_program_with_a_line(monkeypatch, tmp_path, flags, said):
    """Python prints an exit's words without a traceback; to whoever calls from Python it is a ValueError."""
    monkeypatch.setattr("sys.argv", ["recipe.py", "--output_dir", str(tmp_path / "run"), *flags])
    with pytest.raises(SystemExit) as end:
        parse([DistillationArguments])
    assert said in end.value.code
    assert isinstance(end.value, ValueError)
    assert not (tmp_path / "run").exists()


def test_the_settings_of_hfkd_are_told_before_those_of_every_trainer(capsys):
    with pytest.raises(SystemExit):
        parse([DistillationArguments, DataArguments], ["--help"])
    shown = capsys.readouterr().out
    ours, theirs = shown.split("flags of transformers' Trainer:")
    for flag in ("--objective", "--weighting", "--kd_weight", "--teacher_cache_dir"):
        assert re.search(rf"^  {flag}[ ,]", ours, re.MULTILINE)
    for flag in ("--learning_rate", "--output_dir", "--save_steps"):
        assert re.search(rf"^  {flag}[ ,]", theirs, re.MULTILINE)
        assert not re.search(rf"^  {flag}[ ,]", ours, re.MULTILINE)
