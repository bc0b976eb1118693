"""The flags of training on responses that the networks write themselves."""

from dataclasses import dataclass, field
from typing import Any

from hfkd.utils.argument_types import Count, NotNegative, Share, fitting


@dataclass
class OnPolicyArguments:
    """Responses written in training, by the student (GKD, Agarwal et al., ICLR 2024) or the teacher (SeqKD, 2016)."""

    on_policy: float = field(
        default=0.0,
        metadata={
            "help": "Share of the optimizer steps (GKD's lambda) whose responses the student writes itself, after the "
            "prompts of their rows. These steps have no cross-entropy on labels; ce_weight applies to the others."
        },
    )
    seq_kd: bool = field(
        default=False,
        metadata={"help": "The teacher writes the responses of the other steps, in place of those of the data set."},
    )
    on_policy_max_new_tokens: int = field(
        default=128, metadata={"help": "Tokens of a response that on_policy or seq_kd has written."}
    )
    on_policy_temperature: float = field(
        default=1.0, metadata={"help": "Temperature that responses are sampled at; 0 takes the likeliest token."}
    )
    on_policy_top_k: int = field(default=0, metadata={"help": "Sample from so many of the likeliest tokens; 0: all."})
    on_policy_top_p: float = field(
        default=1.0, metadata={"help": "Sample from the likeliest tokens that have this probability together."}
    )
    on_policy_batch_size: int | None = field(
        default=None,
        metadata={"help": "Responses written at once on each process; unset: all of an optimizer step's."},
    )
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Keep the responses written in steps that are logged, in output_dir/completions, a file a process."
        },
    )

    @property
    def writes(self) -> bool:
        """Whether a network writes responses for training."""
        return bool(self.on_policy or self.seq_kd)

    def check_on_policy(self) -> None:
        """Raise ValueError for values that make no sense."""
        kinds: dict[str, Any] = {"on_policy": Share, "on_policy_max_new_tokens": Count}
        kinds |= {"on_policy_temperature": NotNegative, "on_policy_top_k": NotNegative, "on_policy_top_p": Share}
        kinds |= {} if self.on_policy_batch_size is None else {"on_policy_batch_size": Count}
        for name, kind in kinds.items():
            fitting("DistillationArguments", name, getattr(self, name), kind)
        if self.on_policy_top_p == 0:
            raise ValueError("on_policy_top_p=0 leaves no token to sample: give a share above 0, 1 keeps every token")
        if self.seq_kd and self.on_policy == 1:
            raise ValueError(
                "seq_kd=True has the teacher write the responses of the steps that are not on_policy, and with "
                "on_policy=1 there is none: lower on_policy, or leave seq_kd out"
            )
        if self.log_completions and not self.writes:
            raise ValueError(
                "log_completions keeps what on_policy or seq_kd has written: set one of them, or leave it out"
            )

    @property
    def written_responses(self) -> dict[str, Any]:
        """The settings by name that decide what is written, where anything is."""
        names = ("on_policy", "seq_kd", *(f"on_policy_{one}" for one in ("max_new_tokens", *SAMPLING)))
        return {name: getattr(self, name) for name in names} if self.writes else {}


SAMPLING = ("temperature", "top_k", "top_p")
