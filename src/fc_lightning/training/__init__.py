"""The LightningModule, checkpoints, resuming, and the processes of a run."""
