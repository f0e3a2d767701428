"""Conversations, tools and calls: types, parsing, comparison, JSON schemas. Standard library and jsonschema only."""
