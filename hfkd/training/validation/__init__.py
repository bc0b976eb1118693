"""What is refused when a trainer is built, before anything is written."""
