"""Shared by the tests of formats."""

import pytest

from fc_lightning.data.formats import FORMATS


@pytest.fixture
def registry():
    """The formats are afterwards what they were before."""
    before = dict(FORMATS)
    yield
    FORMATS.clear()
    FORMATS.update(before)
