"""What a decorator says, as values. Nothing here does I/O."""
