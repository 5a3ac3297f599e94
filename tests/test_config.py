"""The settings themselves, apart from what the launchers say of them."""

import dataclasses

import pytest

from framework import config as config_lib

SETTINGS = [(section.name, field) for section in dataclasses.fields(config_lib.Config)
            for field in dataclasses.fields(section.default_factory)]


@pytest.mark.parametrize('section,field', SETTINGS, ids=[f'{section}.{field.name}' for section, field in SETTINGS])
def test_a_setting_has_help_and_bounds_of_its_own_type(section, field):
  """A whole number is refused with whole numbers: '1 to 1000000000', not '1 to 1000000000.0'."""
  assert field.metadata['help']
  assert {type(field.metadata[end]) for end in ('low', 'high')} in ({type(field.default)}, {type(None)})


def test_a_bound_is_told_as_it_is_written():
  config = config_lib.Config()
  config.training.steps = 0
  with pytest.raises(config_lib.ConfigError, match='training.steps is 0; expected 1 to 1000000000, nearest is 1$'):
    config_lib.resolve(config)
