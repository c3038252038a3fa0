"""What the operators share: bit views, hashing, rounding, dispatch and launch settings."""
