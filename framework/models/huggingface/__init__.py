"""Decoders from and to folders of Hugging Face's format: config.json, model.safetensors, tokenizer.json.

A family of models is a table in a file of this package, see `family.Family`: its settings in ours and back, and the names
of its tensors. README.md beside this file lists the families, what was measured, and what is refused.
"""

from framework.models.huggingface.folder import FAMILIES, from_tensors, load, load_with_source, save, to_tensors

__all__ = ['FAMILIES', 'from_tensors', 'load', 'load_with_source', 'save', 'to_tensors']
