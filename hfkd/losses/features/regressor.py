"""The connector from a student's map to the shape of a teacher's: FitNet's regressor.

B images, C channels, H and W pixels; s student, t teacher.
"""

from collections.abc import Sequence

from torch import Tensor, nn


def fitting_convolution(student: Sequence[int], teacher: Sequence[int]) -> nn.Module:
    """A convolution from maps (C_s, H_s, W_s) to (C_t, H_t, W_t), as RepDistiller and mdistiller choose it.

    Twice the teacher's size: 3x3 of stride 2. Half of it: transposed, 4x4 of stride 2. Otherwise a kernel of
    (H_s - H_t + 1, W_s - W_t + 1) without padding; 1x1 at the same size. Raises ValueError if the student's map is
    smaller, unless by half.
    """
    (c_s, *size_s), (c_t, *size_t) = student, teacher
    if all(s == 2 * t for s, t in zip(size_s, size_t, strict=True)):
        return nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
    if all(2 * s == t for s, t in zip(size_s, size_t, strict=True)):
        return nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
    kernel = tuple(s - t + 1 for s, t in zip(size_s, size_t, strict=True))
    if min(kernel) < 1:
        raise ValueError(
            f"the student's map is {size_s[0]}x{size_s[1]} and the teacher's {size_t[0]}x{size_t[1]}: a smaller "
            "student map can only be enlarged by a factor of two; choose layers of other sizes"
        )
    return nn.Conv2d(c_s, c_t, (kernel[0], kernel[1]))


class Regressor(nn.Sequential):
    """ReLU(BN(conv(F_s))): [B, C_s, H_s, W_s] -> [B, C_t, H_t, W_t]. Named as in the authors' code."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.add_module("conv", fitting_convolution(student, teacher))
        self.add_module("bn", nn.BatchNorm2d(teacher[0]))
        self.add_module("relu", nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(next(self.parameters()).dtype))
