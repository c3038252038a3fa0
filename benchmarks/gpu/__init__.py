"""What one GPU does in minutes: a model of 3 billion parameters made on it, and every operator; see `__main__`."""
