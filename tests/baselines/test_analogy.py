"""Analogies: the pairs of a vocabulary, and embeddings that know them or do not."""

import numpy as np

from framework.baselines import analogy


def test_pairs_of_a_vocabulary():
  words = ['house', 'houses', ' house', 'House', ' House', 'cat', 'cats', 'is', 'iss', 'x1y', 'x1ys', 'ABC', '\n\n\n']
  table = (*(word.encode() for word in words), b'\xff', b'')
  named = {name: [(words[a], words[b]) for a, b in pairs] for name, pairs in analogy.pairs(table).items()}
  assert named == {'capital': [('house', 'House'), (' house', ' House')],
                   'plural': [('house', 'houses'), ('cat', 'cats')], 'space': [('house', ' house')]}


def test_an_embedding_that_adds_the_relation_answers_all():
  rng = np.random.default_rng(0)
  related = [(2 * i, 2 * i + 1) for i in range(12)]
  embedding = rng.normal(size=(40, 16))
  embedding[1:24:2] = embedding[0:24:2] + 2 * rng.normal(size=16)
  assert analogy.accuracy(embedding, related) == (1.0, 12 * 11)
  assert analogy.accuracy(embedding + 5.0, related)[0] == 1.0  # a shared direction says nothing
  assert analogy.accuracy(rng.normal(size=(40, 16)), related)[0] < 0.2
  assert analogy.accuracy(embedding, related[:1]) == (0.0, 0)


def test_the_words_of_the_question_are_no_answers():
  # Without that, the nearest to b - a + c is c itself when the relation is a small step.
  embedding = np.random.default_rng(0).normal(size=(20, 8))
  embedding[1:8:2] = embedding[0:8:2] + 0.05
  assert analogy.accuracy(embedding, [(0, 1), (2, 3), (4, 5), (6, 7)])[0] == 1.0
