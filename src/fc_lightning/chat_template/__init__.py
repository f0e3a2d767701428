"""From a conversation to token ids and the mask of supervised tokens."""
