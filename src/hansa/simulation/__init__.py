"""Plans run on one machine: the engine, executors, baselines, checkpoints, replay."""
