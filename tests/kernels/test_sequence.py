"""Attention over a window that is split over devices, gathered and as a ring, on every backend with a log-sum-exp."""

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


def with_gradients(f):
  """f(query, key, value, *rest) -> (its output, the gradients of the sum of its sine)."""
  def both(*x):
    def loss(*qkv):
      out = f(*qkv, *x[3:]).astype(jnp.float32)
      return jnp.sin(out).sum(), out
    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*x[:3])
    return out, *gradients
  return both


def errors(implementation: str, form: str, parts: int, one_device: bool = False) -> dict[str, float]:
  """Largest differences of the output and the gradients from those of the whole window on one device.

  Args:
    one_device: an axis of vmap stands for the devices.
  """
  arrays, order = cases.attention_arrays(LENGTH, LENGTH), sharding.zigzag(LENGTH, parts)
  places, segments = np.arange(LENGTH, dtype=np.int32), (np.arange(LENGTH) >= FIRST).astype(np.int32) + 1
  def whole(*x):
    return dot_product_attention(*x, stamps=places, segment_ids=segments[None], implementation='xla')
  def local(q, k, v, places, segments):
    return attention_over_sequence(q, k, v, 'sequence', form, stamps=(places, places),
                                   segment_ids=(segments[None], segments[None]), implementation=implementation)
  def by_vmap(q, k, v, *rest):
    split = [jnp.stack(jnp.split(x, parts, axis)) for x, axis in zip((q, k, v, *rest), (1, 1, 1, 0, 0))]
    return [jnp.concatenate(list(x), 1) for x in jax.vmap(with_gradients(local), axis_name='sequence')(*split)]
  spread = by_vmap if one_device else with_gradients(jax.shard_map(
      local, mesh=jax.sharding.Mesh(np.asarray(jax.devices()[:parts]), ('sequence',)),
      in_specs=(P(None, 'sequence'),) * 3 + (P('sequence'),) * 2, out_specs=P(None, 'sequence'), check_vma=False))
  found = jax.jit(spread)(*(x[:, order] for x in arrays), places[order], segments[order])
  names = 'out', 'd_query', 'd_key', 'd_value'
  return {name: float(np.abs(np.float64(x)[:, np.argsort(order)] - np.float64(y)).max())
          for name, x, y in zip(names, found, jax.jit(with_gradients(whole))(*arrays))}


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


@pytest.mark.parametrize('form', FORMS)
def test_an_axis_of_vmap_stands_for_devices(form):
  assert max(errors('xla', form, 2, one_device=True).values()) < 1e-5
