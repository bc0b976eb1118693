import os
import pickle
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from hfkd.models import image_classifier, load_checkpoint

NET = "cifar_wrn_16_2"


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(NET, num_classes=10).eval()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"epoch": 240, "model": s, "accuracy": torch.tensor(76.1), "optimizer": {"state": {}, "lr": [0.1]}},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "best_acc1": 0.7},
        lambda s: {f"timm_model.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.timm_model.{k}": v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappings(tmp_path, source, wrap, legacy):
    path = tmp_path / "weights.pth"
    torch.save(wrap(source.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    net = timm.create_model(NET, num_classes=10)
    load_checkpoint(net, path)
    assert same_weights(net, source)


def test_weights_that_were_averaged_over_training_beside_those_that_are_loaded(tmp_path, source, caplog):
    state, path = source.state_dict(), tmp_path / "last.pth.tar.pth"
    averaged = {f"module.{name}": torch.zeros_like(value) for name, value in state.items()}
    torch.save({"epoch": 9, "state_dict": state, "state_dict_ema": averaged, "optimizer": {"state": {0: 1}}}, path)
    net = timm.create_model(NET, num_classes=10)
    load_checkpoint(net, path)
    assert same_weights(net, source)
    assert "other weights of this network under 'state_dict_ema'" in caplog.text
    caplog.clear()
    torch.save({"state_dict": state, "optimizer": {"state": {0: 1}}, "teacher": {"fc.weight": torch.zeros(1)}}, path)
    load_checkpoint(net, path)
    assert caplog.text == ""


def test_safetensors_into_a_wrapped_model(tmp_path, source):
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = image_classifier(NET, 10, checkpoint=tmp_path / "weights.safetensors")
    assert same_weights(model.timm_model, source)
    parallel = nn.DataParallel(timm.create_model(NET, num_classes=10))
    load_checkpoint(parallel, tmp_path / "weights.safetensors")
    assert same_weights(parallel.module, source)


def test_mismatch_names_the_keys_and_the_remedy(tmp_path, source):
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("block3.layer.1.conv")}
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "a.pth")
    net = timm.create_model(NET, num_classes=20)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as error:
        load_checkpoint(net, tmp_path / "a.pth")
    message = str(error.value)
    assert str(tmp_path / "a.pth") in message
    assert "num_labels" in message
    assert "architecture" in message
    assert "2 missing (block3.layer.1.conv1.weight, block3.layer.1.conv2.weight)" in message
    assert "1 unexpected (extra.weight)" in message
    assert "2 wrong-shaped (fc.weight: file (10, 128), model (20, 128)" in message
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())  # a refused file changes nothing


def test_another_architecture_is_named_in_short(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"missing \(.*, \.\.\.\)") as error:
        load_checkpoint(timm.create_model("cifar_resnet20"), tmp_path / "a.pth")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(tmp_path, source, value):
    state = {k: v.clone() for k, v in source.state_dict().items()}
    state["block2.layer.0.bn1.running_var"][3] = value
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"1 of the 32 values of block2.layer.0.bn1.running_var"):
        load_checkpoint(timm.create_model(NET, num_classes=10), tmp_path / "a.pth")


def test_refuses_weights_that_overflow_the_model(tmp_path, source):
    state = {k: v.double() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 1e300)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"conv1.weight are NaN or infinite"):
        load_checkpoint(timm.create_model(NET, num_classes=10), tmp_path / "a.pth")


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickled_code_is_not_run(tmp_path, writer, protocol):
    trap, path = tmp_path / "trap", tmp_path / "evil.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"model": Malicious(trap)}, protocol=protocol))
    else:
        torch.save({"model": Malicious(trap)}, path, pickle_protocol=max(protocol, 2))
    with pytest.raises(ValueError, match="never run"):
        load_checkpoint(nn.Linear(1, 1), path)
    assert not trap.exists()


def test_files_that_hold_no_weights(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    save_file(source.state_dict(), tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    broken = {
        "truncated.pth": whole[: len(whole) // 2],
        "truncated.safetensors": tensors[: len(tensors) // 2],
        "text.pt": b"<html>404 not found</html>",
        "lfs.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "empty.pth": b"",
        "pickled.safetensors": whole,
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of tensors"):
            load_checkpoint(source, tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        load_checkpoint(source, tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_checkpoint(source, tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({}, "holds nothing"),
        ({"model": {}}, "holds nothing"),
        ({"epoch": 3, "lr": 0.1}, r"not named tensors \(epoch, lr\)"),
        ({0: torch.zeros(1)}, r"not named tensors \(0\)"),
    ],
)
def test_tensor_files_that_are_not_state_dicts(tmp_path, source, content, message):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(source, tmp_path / "odd.pth")


def compressed(path, size=1 << 26):
    """A checkpoint of zeros as torch.save writes it, its entries compressed: 64 MB in 64 kB."""
    torch.save({"conv.weight": torch.zeros(size // 4)}, path.with_suffix(".whole"))
    with (
        zipfile.ZipFile(path.with_suffix(".whole")) as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in whole.infolist():
            small.writestr(entry.filename, whole.read(entry))
    path.with_suffix(".whole").unlink()
    assert path.stat().st_size < size / 500


def test_a_file_that_unfolds_to_more_than_it_is_is_not_read(tmp_path):
    compressed(tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"weights\.pth is a compressed archive of [\d,]+ bytes that expands to 67,1.*does not write"
    ):
        load_checkpoint(nn.Linear(2, 2), tmp_path / "weights.pth")


def test_nor_is_one_in_a_folder_of_a_model(tmp_path):
    image_classifier("cifar_resnet20", 3).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    compressed(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a compressed archive"):
        image_classifier(tmp_path, 3)
