"""Training: configuration, tasks, engine, the one loop, checkpoints and the stages of a run."""
