"""Networks of a section `model` alone, for tests."""

from framework import config as config_lib
from framework import models


def build(model: config_lib.Model, vocabulary: int, length: int):
  """The model of that name for windows of `length` tokens."""
  config = config_lib.Config(model=model, data=config_lib.Data(window=length))
  return models.build(config_lib.resolve(config), vocabulary)
