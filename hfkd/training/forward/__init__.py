"""The ways of a batch to the loss: whole logits, target tokens alone, chunks, more images."""
