"""Checkpoints in, one checkpoint out: TIES, linear and exponentially weighted averages, tensor by tensor."""

from mmbert_hf.merging.merge import MERGE_FILE, MergeMethod, merge_checkpoints

__all__ = ["MERGE_FILE", "MergeMethod", "merge_checkpoints"]
