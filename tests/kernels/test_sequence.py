"""Attention over a window that is split over devices, gathered and as a ring, on every backend with a log-sum-exp."""

import functools

import jax
from jax.sharding import PartitionSpec as P
import jax.numpy as jnp
import numpy as np
import pytest

from framework import sharding
from pallas_kernels.attention import attention_over_sequence, dot_product_attention, sequence
from pallas_kernels.attention.sequence import FORMS
from tests.kernels import cases

LENGTH, FIRST = 64, 23  # of a window, and of the first of the two documents in it


def errors(implementation: str, form: str, parts: int, dtype: str = 'float32') -> dict[str, float]:
  """Largest differences of the output and the gradients from those of the whole window on one device."""
  arrays = cases.attention_arrays(LENGTH, LENGTH, dtype=dtype)
  order = sharding.zigzag(LENGTH, parts)
  places, segments = np.arange(LENGTH, dtype=np.int32), (np.arange(LENGTH) >= FIRST).astype(np.int32) + 1
  def whole(*x):
    return dot_product_attention(*x, stamps=places, segment_ids=segments[None], implementation='xla')
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:parts]), ('sequence',))
  @functools.partial(jax.shard_map, mesh=mesh,
                     in_specs=(P(None, 'sequence'),) * 3 + (P('sequence'),) * 2, out_specs=P(None, 'sequence'), check_vma=False)
  def over_devices(q, k, v, places, segments):
    return attention_over_sequence(q, k, v, 'sequence', form, stamps=(places, places),
                                   segment_ids=(segments[None], segments[None]), implementation=implementation)
  def split(*x):
    out = over_devices(*(x[:, order] for x in x), places[order], segments[order])
    return out[:, np.argsort(order)]
  found = []
  for f in (whole, split):
    value = jax.jit(jax.value_and_grad(lambda *x, f=f: (jnp.sin(out := f(*x).astype(jnp.float32)).sum(), out), (0, 1, 2),
                                       has_aux=True))
    (_, out), gradients = value(*arrays)
    found.append(dict(zip(('out', 'd_query', 'd_key', 'd_value'), map(np.float64, (out, *gradients)))))
  return {name: float(np.abs(found[0][name] - found[1][name]).max()) for name in found[0]}


CASES = [pytest.param(implementation, form, parts, marks=[pytest.mark.slow] if (implementation, parts) == ('mosaic_tpu', 4)
                      else []) for implementation in ('xla', 'xla_chunked', 'mosaic_tpu') for form in FORMS
         for parts in (2, 4)]


@pytest.mark.parametrize('implementation, form, parts', CASES)
def test_split_windows_give_what_whole_ones_do(implementation, form, parts):
  assert max(errors(implementation, form, parts).values()) < 1e-5


@pytest.mark.parametrize('form', FORMS)
def test_split_windows_give_what_whole_ones_do_with_triton(form):
  pytest.importorskip('triton', reason='triton is not installed (extra gpu)')
  from tests.kernels.test_triton import start
  with start() as ask:
    assert max(ask('sequence_errors', form, 2).values()) < 2e-5


def test_parts_that_are_merged_alike_would_be_seen(monkeypatch):
  monkeypatch.setattr(sequence, 'merged', lambda out, lse, one, lse_one: (out + one / 2, jnp.logaddexp(lse, lse_one)))
  assert max(errors('xla', 'ring', 2).values()) > 1e-2
