"""Figures of whatever text comes."""

import re

import numpy as np

from experiments.reports import figures as draw


def test_tokens_beside_an_attention_matrix_stand_as_they_are(tmp_path):
  """A dollar begins no formula, and long tokens stand upright where they would overlap."""
  weights_NxHxQxT = np.tril(np.ones((1, 2, 4, 4))) / 4
  for labels, upright in ((['∅', '$\\x$', ' import', '$a_$'], True), (list('ab$\n'), False)):
    draw.attention(weights_NxHxQxT, labels, tmp_path / 'a.svg')
    text = (tmp_path / 'a.svg').read_text()
    assert ('rotate(-90' in re.sub(r'<!-- reads -->.*?</g>', '', text, flags=re.DOTALL)) == upright
    assert all(f'<!-- {label.translate({10: "⏎", 32: "␣"})} -->' in text for label in labels)
