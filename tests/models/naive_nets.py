"""Each CIFAR network as plain arithmetic on a state_dict with mdistiller's names, strides and order of operations.

Evaluation only. `w` maps parameter names to tensors; every function returns (feats, logits).
"""

import torch
import torch.nn.functional as F
from torch import relu


def conv(w, name, x, stride=1, groups=1):
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w.get(f"{name}.bias"), stride, weight.shape[-1] // 2, groups=groups)


def bn(w, name, x):
    mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"])


def linear(w, name, x):
    return F.linear(x.mean((2, 3)), w[f"{name}.weight"], w[f"{name}.bias"])


def blocks_of(w, stage):
    """'layer2' -> ['layer2.0', 'layer2.1', ...], found in the names alone."""
    numbers = {int(name.removeprefix(f"{stage}.").split(".")[0]) for name in w if name.startswith(f"{stage}.")}
    return [f"{stage}.{number}" for number in sorted(numbers)]


def shuffle(x, groups):
    b, c, h, width = x.shape
    return x.view(b, groups, c // groups, h, width).permute(0, 2, 1, 3, 4).reshape(b, c, h, width)


def staged(w, x, block, strides, head, tail=lambda x: x):
    """A stem, then layer1, layer2, ... whose first blocks have these strides."""
    feats = [relu(bn(w, "bn1", conv(w, "conv1", x)))]
    for number, stride in enumerate(strides, start=1):
        x = feats[-1]
        for index, name in enumerate(blocks_of(w, f"layer{number}")):
            x = block(w, name, x, stride if index == 0 else 1)
        feats.append(x)
    return feats, linear(w, head, tail(x))


def resnet(w, x):
    def block(w, n, x, stride):
        out = bn(w, f"{n}.bn2", conv(w, f"{n}.conv2", relu(bn(w, f"{n}.bn1", conv(w, f"{n}.conv1", x, stride)))))
        if f"{n}.downsample.0.weight" in w:
            x = bn(w, f"{n}.downsample.1", conv(w, f"{n}.downsample.0", x, stride))
        return relu(out + x)

    return staged(w, x, block, (1, 2, 2), "fc")


def resnet50(w, x):
    def block(w, n, x, stride):
        out = relu(bn(w, f"{n}.bn1", conv(w, f"{n}.conv1", x)))
        out = relu(bn(w, f"{n}.bn2", conv(w, f"{n}.conv2", out, stride)))
        out = bn(w, f"{n}.bn3", conv(w, f"{n}.conv3", out))
        if f"{n}.shortcut.0.weight" in w:
            x = bn(w, f"{n}.shortcut.1", conv(w, f"{n}.shortcut.0", x, stride))
        return relu(out + x)

    return staged(w, x, block, (1, 2, 2, 2), "linear")


def wrn(w, x):
    feats = [conv(w, "conv1", x)]
    for stage in ("block1", "block2", "block3"):
        x = feats[-1]
        for index, n in enumerate(blocks_of(w, f"{stage}.layer")):
            stride = 2 if index == 0 and stage != "block1" else 1
            active = relu(bn(w, f"{n}.bn1", x))
            if f"{n}.convShortcut.weight" in w:
                x = conv(w, f"{n}.convShortcut", active, stride)
            x = x + conv(w, f"{n}.conv2", relu(bn(w, f"{n}.bn2", conv(w, f"{n}.conv1", active, stride))))
        feats.append(x)
    return feats, linear(w, "fc", relu(bn(w, "bn1", x)))


def vgg(w, x):
    feats, height = [], x.shape[2]
    for block in range(5):
        if 0 < block < 4 or (block == 4 and height == 64):
            x = F.max_pool2d(x, 2)
        for index in range(0, len(blocks_of(w, f"block{block}")) + 1, 3):
            if f"block{block}.{index}.weight" in w:
                x = relu(bn(w, f"block{block}.{index + 1}", conv(w, f"block{block}.{index}", x)))
        feats.append(x)
    return feats, linear(w, "classifier", x)


def mobilenetv2(w, x):
    x = relu(bn(w, "conv1.1", conv(w, "conv1.0", x, stride=2)))
    feats = [x]
    for row, row_stride in enumerate((1, 1, 2, 2, 1, 2, 1)):
        for index, n in enumerate(blocks_of(w, f"blocks.{row}")):
            stride = row_stride if index == 0 else 1
            out = relu(bn(w, f"{n}.conv.1", conv(w, f"{n}.conv.0", x)))
            out = relu(bn(w, f"{n}.conv.4", conv(w, f"{n}.conv.3", out, stride, groups=out.shape[1])))
            out = bn(w, f"{n}.conv.7", conv(w, f"{n}.conv.6", out))
            x = x + out if stride == 1 and x.shape == out.shape else out
        if row in (1, 2, 4, 6):
            feats.append(x)
    return feats, linear(w, "classifier.0", relu(bn(w, "conv2.1", conv(w, "conv2.0", x))))


def shufflenetv1(w, x):
    def block(w, n, x, stride):
        groups = 1 if x.shape[1] == 24 else 3
        out = shuffle(relu(bn(w, f"{n}.bn1", conv(w, f"{n}.conv1", x, groups=groups))), groups)
        out = relu(bn(w, f"{n}.bn2", conv(w, f"{n}.conv2", out, stride, groups=out.shape[1])))
        out = bn(w, f"{n}.bn3", conv(w, f"{n}.conv3", out, groups=3))
        return relu(torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if stride == 2 else out + x)

    return staged(w, x, block, (2, 2, 2), "linear")


def shufflenetv2(w, x):
    def block(w, n, x, stride):
        if stride == 2:
            left = bn(w, f"{n}.bn1", conv(w, f"{n}.conv1", x, 2, groups=x.shape[1]))
            left = relu(bn(w, f"{n}.bn2", conv(w, f"{n}.conv2", left)))
            right = relu(bn(w, f"{n}.bn3", conv(w, f"{n}.conv3", x)))
            right = bn(w, f"{n}.bn4", conv(w, f"{n}.conv4", right, 2, groups=right.shape[1]))
            right = relu(bn(w, f"{n}.bn5", conv(w, f"{n}.conv5", right)))
        else:
            left, right = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
            right = relu(bn(w, f"{n}.bn1", conv(w, f"{n}.conv1", right)))
            right = bn(w, f"{n}.bn2", conv(w, f"{n}.conv2", right, groups=right.shape[1]))
            right = relu(bn(w, f"{n}.bn3", conv(w, f"{n}.conv3", right)))
        return shuffle(torch.cat([left, right], 1), 2)

    return staged(w, x, block, (2, 2, 2), "linear", tail=lambda x: relu(bn(w, "bn2", conv(w, "conv2", x))))
