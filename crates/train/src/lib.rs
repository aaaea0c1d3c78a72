//! One trainer: objectives, optimizers, schedules, run directory, checkpoints, metrics.
