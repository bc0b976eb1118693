"""The precision of autocast that follows from `fp16`, `bf16`, the launcher and the device."""

import logging
import os

import torch

logger = logging.getLogger(__name__)


def chosen_precision(fp16: bool | None, bf16: bool | None, on_cpu: bool) -> tuple[bool, bool]:
    """(fp16, bf16), where None becomes the precision of `accelerate launch`, else what is fast on this device."""
    launched = _launched()
    if fp16 is None:
        fp16 = launched == "fp16" and not bf16
    if bf16 is None:
        bf16 = (launched == "bf16" or (launched == "no" and computes_bf16(on_cpu))) and not fp16
    if launched not in ("no", mixed_precision(fp16, bf16)):
        logger.warning(
            "accelerate was launched with mixed_precision=%s; the arguments fp16=%s and bf16=%s take precedence.",
            launched,
            fp16,
            bf16,
        )
    return fp16, bf16


def mixed_precision(fp16: bool | None, bf16: bool | None) -> str:
    """accelerate's name of that precision; its others (fp8) have no flag and are the launcher's."""
    if fp16 or bf16:
        return "fp16" if fp16 else "bf16"
    return "no" if _launched() in ("fp16", "bf16") else _launched()


def computes_bf16(on_cpu: bool) -> bool:
    """Whether bfloat16 is faster than float32 here."""
    if on_cpu:
        return _cpu_computes_bf16()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def warn_of_slow_bf16(bf16: bool | None, on_cpu: bool) -> None:
    """Warn of bfloat16 on a CPU that emulates it."""
    if bf16 and on_cpu and not _cpu_computes_bf16():
        logger.warning(
            "bf16=True, but this CPU is not known to support bfloat16 natively. Emulated, convolutions take "
            "about ten times as long as in float32; leave bf16 out, or set it to false."
        )


def _cpu_computes_bf16() -> bool:
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def _launched() -> str:
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
