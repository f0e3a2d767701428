"""Export of a checkpoint, one module per target."""
