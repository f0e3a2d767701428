"""Support code that knows nothing of models: atomic files, secrets, HTML pages, memory, base folders."""
