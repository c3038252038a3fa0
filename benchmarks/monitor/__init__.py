"""What the monitor costs beside a training step, and what its guards spare."""
