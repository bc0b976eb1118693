"""The flags of a student that is trained with LoRA adapters."""

from dataclasses import dataclass
from typing import Any

from hfkd.utils.dependent_settings import refuse_without_effect
from hfkd.utils.flags import flag


@dataclass
class LoraArguments:
    """Train low-rank adapters instead of the whole student."""

    use_peft: bool = flag(False, "Train LoRA adapters; the student's weights stay frozen.")
    lora_r: int = flag(16, "Rank of the adapters.")
    lora_alpha: int = flag(32, "Their scale is lora_alpha / lora_r.")
    lora_target_modules: list[str] | None = flag(
        None, "Modules that get adapters; unset: PEFT's choice for the architecture."
    )

    def __post_init__(self) -> None:
        refuse_without_effect(self)  # the whole student would be trained

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
