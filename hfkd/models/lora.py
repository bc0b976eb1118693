"""The flags of a student that is trained with LoRA adapters."""

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class LoraArguments:
    """Train low-rank adapters instead of the whole student."""

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters; the student's weights stay frozen."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Their scale is lora_alpha / lora_r."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get adapters; unset: PEFT's choice for the architecture."}
    )

    def __post_init__(self) -> None:
        """Raise ValueError for settings of adapters that are not asked for: the whole student would be trained."""
        changed = next((f.name for f in fields(self) if getattr(self, f.name) != f.default), None)
        if not self.use_peft and changed is not None:
            raise ValueError(
                f"{changed}={getattr(self, changed)} is of adapters, and without use_peft the whole student is "
                "trained: set use_peft, or leave it out"
            )

    def config(self) -> Any:
        """The PEFT configuration, None without --use_peft."""
        if not self.use_peft:
            return None
        from peft import LoraConfig  # only needed with --use_peft

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            target_modules=self.lora_target_modules,
        )
