"""Which backend can do what: the table of pallas_kernels/README.md, made from the cases that the tests run.

`python -m tests.kernels.support` writes it; tests/kernels/test_support.py fails while it is stale. A cell says yes
where tracing the case with that backend succeeds, as on the backend's own device, and is empty where it raises
NotImplementedError.
"""

import os
import pathlib

os.environ['TRITON_INTERPRET'] = '0'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from pallas_kernels import attention, matmul  # noqa: E402
from pallas_kernels.runtime import targets  # noqa: E402
from tests.kernels import cases  # noqa: E402

README = pathlib.Path(__file__).parents[2] / 'pallas_kernels' / 'README.md'
BEGIN, END = '<!-- made by python -m tests.kernels.support -->\n', '<!-- end -->\n'
TARGET = {'cudnn': 'h100', 'triton': 'h100', 'mosaic_gpu': 'h100', 'mosaic_tpu': 'v5e', 'pallas_triton': 'h100'}
LENGTH = 256


def able(implementation, f, *arguments) -> bool:
  """Whether the case can be traced for the backend's device, forward and backward."""
  try:
    if implementation in TARGET:
      with targets.tracing(TARGET[implementation]):
        jax.eval_shape(f, *arguments)
    else:
      jax.eval_shape(f, *arguments)
  except NotImplementedError:
    return False
  except ModuleNotFoundError as error:
    return error.name == 'cuDNN'  # which it looks for when it has refused what it cannot honour
  return True


def attention_table():
  """{row: {implementation: whether}}; dtypes with a causal mask, masks and extras in the best dtype of each."""
  masks, extras = cases.attention_masks(LENGTH, LENGTH), cases.attention_extras(LENGTH, LENGTH)
  rows = {dtype: (dtype, {'is_causal': True}) for dtype in ('float32', 'bfloat16', 'float16')}
  rows |= {name: ('bfloat16', arguments) for name, arguments in (masks | extras).items()}
  rows['log-sum-exp returned'] = 'bfloat16', {'return_residual': True}
  out = {}
  for name, (dtype, arguments) in rows.items():
    arrays = [jax.ShapeDtypeStruct(x.shape, dtype) for x in cases.attention_arrays(LENGTH, LENGTH, K=64)]
    def f(*x, implementation, arguments=arguments):
      def loss(*x):
        out = attention.dot_product_attention(*x, implementation=implementation, **arguments)
        return jax.tree.leaves(out)[0].astype(jnp.float32).sum()
      return jax.grad(loss, (0, 1, 2))(*x)
    out[name] = {i: able(i, lambda *x, i=i: f(*x, implementation=i), *arrays) for i in attention.IMPLEMENTATIONS}
  return out


def matmul_table():
  """The same for matmul: dtypes, then epilogues in bfloat16."""
  out = {}
  M, N, K = 256, 256, 512
  extras = cases.matmul_extras(M, N, K)
  extras['sparse'] = {'block_mask': jnp.ones((2, 4), bool)}
  rows = {name: (name, {}) for name in cases.MATMUL_DTYPES} | {
      name: ('bfloat16', arguments) for name, arguments in extras.items() if name != 'plain'}
  rows['batches'] = 'bfloat16', {}
  for name, (dtype, arguments) in rows.items():
    a, b, more = cases.matrices(dtype, M, N, K, batch=(2,) if name == 'batches' else ())
    out[name] = {i: able(i, lambda a, b, i=i: matmul.matmul(a, b, implementation=i, **arguments, **more), a, b)
                 for i in matmul.IMPLEMENTATIONS}
  return out


def markdown(table) -> str:
  names = list(next(iter(table.values())))
  lines = ['| | ' + ' | '.join(names) + ' |', '|---' * (len(names) + 1) + '|']
  lines += [f'| {row} | ' + ' | '.join('yes' if cells[n] else '' for n in names) + ' |' for row, cells in table.items()]
  return '\n'.join(lines) + '\n'


def text() -> str:
  return (f'{BEGIN}\n`dot_product_attention`, with its gradients:\n\n{markdown(attention_table())}\n'
          f'`matmul`:\n\n{markdown(matmul_table())}\n{END}')


def main():
  page = README.read_text()
  start, end = page.index(BEGIN), page.index(END) + len(END)
  README.write_text(page[:start] + text() + page[end:])


if __name__ == '__main__':
  main()
