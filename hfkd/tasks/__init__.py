"""What a network's head means: the items of a batch, its labels, and the loss it was made for."""
