"""Forward passes from a batch to the loss: whole logits, target tokens only, chunks, mixed images."""
