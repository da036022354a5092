"""Model cards, rendered from the templates in this folder."""

from mmbert_hf.model_cards.cards import encoder_card

__all__ = ["encoder_card"]
