"""Loading, adapting, sharding and saving models, and the loss."""
