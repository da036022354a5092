"""Model cards, rendered from the templates in this folder."""

from mmbert_hf.model_cards.cards import encoder_card
from mmbert_hf.model_cards.pruned import pruned_embedder_card

__all__ = ["encoder_card", "pruned_embedder_card"]
