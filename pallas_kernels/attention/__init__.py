"""Scaled dot-product attention: one call, one file a backend, nothing imported before it is used."""

from pallas_kernels.attention.dispatch import IMPLEMENTATIONS, dot_product_attention, reads_dense_mask
from pallas_kernels.attention.sequence import attention_over_sequence
from pallas_kernels.attention.sharded import sharded_attention

__all__ = ['IMPLEMENTATIONS', 'attention_over_sequence', 'dot_product_attention', 'reads_dense_mask',
           'sharded_attention']
