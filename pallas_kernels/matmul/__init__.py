"""Matrix product with a fused epilogue: one call, one file a backend, nothing imported before it is used."""

from pallas_kernels.matmul.dispatch import IMPLEMENTATIONS, matmul

__all__ = ['IMPLEMENTATIONS', 'matmul']
