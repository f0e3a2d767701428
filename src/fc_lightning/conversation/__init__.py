"""Conversations: types, the grammar of a model turn, comparison of calls, and JSON schemas.

Needs the standard library and jsonschema only.
"""
