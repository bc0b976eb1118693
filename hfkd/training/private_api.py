"""Every private name of transformers and accelerate that hfkd uses: a new release may rename any of them.

`tests/training/test_private_api.py` checks that each still exists. Public names are not listed.
"""

# Methods of transformers.Trainer that DistillationTrainer extends.
TRAINER_METHODS = (
    "_determine_best_metric",
    "_finalize_training",
    "_get_dataloader",
    "_get_grad_norm",
    "_get_num_items_in_batch",
    "_get_output_dir",
    "_get_train_sampler",
    "_inner_training_loop",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_load_scaler",
    "_push_from_checkpoint",
    "_run_epoch",
    "_save",
    "_save_checkpoint",
)
# Methods of transformers.Trainer that it calls.
TRAINER_CALLED = ("_prepare_inputs",)
# Attributes that a Trainer has once it is built, or while it trains.
TRAINER_ATTRIBUTES = (
    "_created_lr_scheduler",
    "_hp_search_setup",
    "_tr_loss",
    "_total_loss_scalar",
    "_train_batch_size",
)
# The attribute in which a Trainer keeps loaders of evaluation sets; it has none before it keeps one.
KEPT_LOADERS = "_eval_dataloaders"
# The attribute with the hook that adds noise to embeddings (NEFTune), once training has started.
NOISE = "neftune_hook_handle"
# The step at which a Trainer's training began; versions before 5.23 do not have it, and divide by all steps.
FIRST_STEP = "_initial_global_step"
# What was called on SIGTERM before a Trainer asked to be, of its `CheckpointManager`.
CHECKPOINT_MANAGER_ATTRIBUTES = ("_original_sigterm_handler",)
# accelerate: the models that `save_state` writes, and the forward inside of its autocast.
ACCELERATOR_ATTRIBUTES = ("_models",)
PREPARED_MODEL_ATTRIBUTES = ("_original_forward", "_is_accelerate_prepared")
# The entries of accelerate's state, which all accelerators of a process share.
STATE_ATTRIBUTES = ("_shared_state",)
# accelerate: the hook of a layer that it has spread over devices, with the device on which the layer computes
# (`hfkd.utils.devices`).
SPREAD_LAYER_ATTRIBUTES = ("_hf_hook",)
# What `from_pretrained` leaves on a model (`hfkd.models.started_from`, `hfkd.models.conversion`).
LOADED_MODEL_ATTRIBUTES = ("_weight_conversions",)
# The attention function that a model of transformers is set to.
CONFIG_ATTRIBUTES = ("_attn_implementation",)
