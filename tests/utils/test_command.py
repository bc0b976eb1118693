"""The command on a model card can be typed again, and gives nothing away."""

import pytest

from hfkd.utils.command import command, without_secrets

TOKEN = "hf_" + "aB3dE5gH7" * 4


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["recipes/a.py", "--seed", "1"], "python recipes/a.py --seed 1"),
        (["a.py", "--hub_token", "secret", "--seed", "1"], "python a.py --hub_token HIDDEN --seed 1"),
        (["a.py", "--hub_token=secret"], "python a.py --hub_token=HIDDEN"),
        (["a.py", "--api-key", "abc", "--password=x y"], "python a.py --api-key HIDDEN --password=HIDDEN"),
        (["a.py", "--tokenizer_name", "gpt2", "--max_new_tokens", "5"], None),
        (
            ["a.py", "--items", "token", "--objective", "dkd(beta=8.0)"],
            "python a.py --items token --objective 'dkd(beta=8.0)'",
        ),
        (["/home/me/a.py", "--data", "/data/me/cifar", "--out=/x/y"], "python a.py --data cifar --out=y"),
        (["a.py", "--teacher", "~/nets/wrn.pth", "--out", "../me/runs"], "python a.py --teacher wrn.pth --out runs"),
        (["a.py", "--teacher", "timm/resnet50.a1_in1k", "--out", "runs/1"], None),
        (
            ["a.py", "--temperature", "stored(file='/home/me/t.pt')"],
            """python a.py --temperature 'stored(file='"'"'t.pt'"'"')'""",
        ),
        (["a.py", "--url", "https://host/x/y"], "python a.py --url https://host/x/y"),
        (["a.py", "--data", "file:///home/me/cifar", "--x=file:///y/z"], "python a.py --data cifar --x=z"),
        (["a.py", "--url", "https://me:pw@host/x"], "python a.py --url https://HIDDEN@host/x"),
        (["a.py", "--note", f"see {TOKEN}"], "python a.py --note 'see HIDDEN'"),
        (["a.py", "--note", f"see my_{TOKEN}"], "python a.py --note 'see my_HIDDEN'"),
        (["a.py", "--note", "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJz-x_1.QQ"], "python a.py --note HIDDEN"),
        (
            ["train_hf_distillation.py", "--teacher_name", "hf_checkpoints/vit", "--hub_model_id", "me/hf_distilled"],
            None,
        ),
    ],
)
def test_a_command_without_secrets_and_folders(argv, shown):
    assert command(argv) == (shown or "python " + " ".join(argv))


def test_a_folder_below_the_working_directory_is_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        command([str(tmp_path / "recipes" / "a.py"), f"--out={tmp_path}/runs/1"]) == "python recipes/a.py --out=runs/1"
    )


@pytest.mark.parametrize("script", ["", "-c", "-m", "/env/ipykernel_launcher.py"])
def test_nobody_typed_a_notebook(script):
    assert command([script, "-f", "/run/user/1/kernel.json"]) is None


def test_secrets_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    monkeypatch.setenv("SHORT_KEY", "a")
    monkeypatch.setenv("WANDB_PROJECT", "project")
    assert without_secrets("key 0123456789 of project a, known") == "key HIDDEN of project a, known"
    assert without_secrets("known", ["known", None]) == "HIDDEN"
