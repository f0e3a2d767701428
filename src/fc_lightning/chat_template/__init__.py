"""From a conversation to token IDs and the mask of supervised tokens."""
