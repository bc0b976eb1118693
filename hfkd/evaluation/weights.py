"""Which step's weights an evaluation is of."""

from transformers import TrainerState, TrainingArguments


def step_of_weights(state: TrainerState, args: TrainingArguments, training: bool) -> int:
    """The step of the weights in memory, which `save_model` writes: the last one, or that of the reloaded best ones."""
    if args.load_best_model_at_end and state.best_model_checkpoint and not training:
        return int(state.best_model_checkpoint.rstrip("/").rpartition("-")[2])
    return state.global_step
