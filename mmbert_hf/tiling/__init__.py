"""A wide or deep model from the weights of a narrow one."""

from mmbert_hf.tiling.plan import TilingMethod, widened_config
from mmbert_hf.tiling.tile import tile_model

__all__ = ["TilingMethod", "tile_model", "widened_config"]
