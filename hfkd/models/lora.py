"""The flags of a student that learns through LoRA adapters."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoraArguments:
    """Train low-rank adapters in place of the whole student."""

    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters; the student's weights stay."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Their scale is lora_alpha / lora_r."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules that get adapters; unset: PEFT's choice for the architecture."}
    )

    def config(self) -> Any:
        """The PEFT configuration, None without --use_peft."""
        if not self.use_peft:
            return None
        from peft import LoraConfig  # needed by those who ask for it only

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            target_modules=self.lora_target_modules,
        )
