"""Support code without knowledge of training: atomic files, secrets, HTML, allocator, environment, base models."""
