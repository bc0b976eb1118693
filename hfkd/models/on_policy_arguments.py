"""The flags of training on generated responses."""

from dataclasses import dataclass
from typing import Any

from hfkd.utils.argument_types import Count, NotNegative, Share, fitting
from hfkd.utils.flags import flag


@dataclass
class OnPolicyArguments:
    """Responses generated in training by the student (GKD, Agarwal et al., ICLR 2024) or the teacher (SeqKD, 2016)."""

    on_policy: float = flag(
        0.0,
        "Share of optimizer steps (GKD's lambda) in which the student generates the responses to the rows' "
        "prompts. These steps have no cross-entropy on labels; ce_weight applies to the other steps.",
    )
    seq_kd: bool = flag(
        False, "In the other steps, the teacher generates the responses, which replace those of the dataset."
    )
    on_policy_max_new_tokens: int = flag(128, "Maximum length of a generated response in tokens.")
    on_policy_temperature: float = flag(1.0, "Sampling temperature of generated responses; 0 is greedy decoding.")
    on_policy_top_k: int = flag(0, "Sample from this many of the most likely tokens; 0: from all.")
    on_policy_top_p: float = flag(1.0, "Sample from the most likely tokens with this total probability.")
    on_policy_batch_size: int | None = flag(
        None, "Number of responses generated at once on each process; unset: all of an optimizer step."
    )
    log_completions: bool = flag(
        False, "Save the responses of logged steps in output_dir/completions, in one file per process."
    )

    @property
    def writes(self) -> bool:
        """Whether responses are generated in training."""
        return bool(self.on_policy or self.seq_kd)

    def check_on_policy(self) -> None:
        """Raise ValueError for invalid or conflicting values."""
        kinds: dict[str, Any] = {"on_policy": Share, "on_policy_max_new_tokens": Count}
        kinds |= {"on_policy_temperature": NotNegative, "on_policy_top_k": NotNegative, "on_policy_top_p": Share}
        kinds |= {} if self.on_policy_batch_size is None else {"on_policy_batch_size": Count}
        for name, kind in kinds.items():
            fitting("DistillationArguments", name, getattr(self, name), kind)
        if self.on_policy_top_p == 0:
            raise ValueError("on_policy_top_p=0 leaves no token to sample: set it above 0 (1 keeps all tokens)")
        if self.seq_kd and self.on_policy == 1:
            raise ValueError(
                "with seq_kd=True the teacher generates the responses of the steps that are not on-policy, but "
                "on_policy=1 leaves no such step: lower on_policy, or leave seq_kd out"
            )

    @property
    def written_responses(self) -> dict[str, Any]:
        """The settings by name that determine the generated responses; empty if none are generated."""
        names = ("on_policy", "seq_kd", *(f"on_policy_{one}" for one in ("max_new_tokens", *SAMPLING)))
        return {name: getattr(self, name) for name in names} if self.writes else {}


SAMPLING = ("temperature", "top_k", "top_p")
