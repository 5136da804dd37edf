"""The public names are where the package says, without a type checker too."""

import pytest

import fedbonsai


@pytest.mark.parametrize("name", fedbonsai.__all__)
def test_a_public_name_can_be_imported(name):
    assert getattr(fedbonsai, name) is not None
