"""What an embedding knows of analogies: is b - a + c nearest to d? (Mikolov et al. 2013, arXiv:1301.3781, section 4.)

The questions come from the vocabulary itself: pairs of tokens that differ by a capital, a plural or a space in front,
such as (` house`, ` houses`) to (` king`, ?).
"""

from collections.abc import Callable

import numpy as np

RELATIONS: dict[str, Callable[[str], str]] = {
    'capital': lambda word: word[:1] + word[1:2].upper() + word[2:] if word[:1] == ' ' else word[:1].upper() + word[1:],
    'plural': lambda word: word + 's',
    'space': lambda word: ' ' + word,
}


def pairs(table: tuple[bytes, ...]) -> dict[str, list[tuple[int, int]]]:
  """{relation: [(token, its partner)]} for the tokens of at least 3 letters, all of them lower case."""
  words = {token.decode(): i for i, token in enumerate(table) if token and _is_text(token)}
  def plain(word):
    letters = word.removeprefix(' ')
    return len(letters) >= 3 and letters.isascii() and letters.isalpha() and letters.islower()
  return {name: [(i, words[partner]) for word, i in words.items()
                 if plain(word) and (partner := relate(word)) != word and partner in words]
          for name, relate in RELATIONS.items()}


def _is_text(token: bytes) -> bool:
  try:
    token.decode()
  except UnicodeDecodeError:
    return False
  return True


def accuracy(embedding_VxD: np.ndarray, related: list[tuple[int, int]]) -> tuple[float, int]:
  """(share of the questions (a, b, c) answered with d, number of questions); a, b and c are no answers.

  Nearest is by the cosine, of rows less their mean: all rows of a trained embedding share a direction.
  """
  unit_VxD = np.asarray(embedding_VxD, np.float64)
  unit_VxD = unit_VxD - unit_VxD.mean(0)
  unit_VxD /= np.maximum(np.linalg.norm(unit_VxD, axis=1, keepdims=True), 1e-30)
  right = asked = 0
  for a, b in related:
    others = np.array([pair for pair in related if not {a, b} & set(pair)]).reshape(-1, 2)
    if len(others):
      cosine_QxV = (unit_VxD[b] - unit_VxD[a] + unit_VxD[others[:, 0]]) @ unit_VxD.T
      cosine_QxV[:, [a, b]] = -np.inf
      cosine_QxV[np.arange(len(others)), others[:, 0]] = -np.inf
      right += int((cosine_QxV.argmax(1) == others[:, 1]).sum())
      asked += len(others)
  return right / max(asked, 1), asked
