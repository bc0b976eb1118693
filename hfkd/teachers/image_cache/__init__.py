"""A teacher of images whose logits are stored as training meets them."""
