"""The documentation: every block of its pages runs, what it names exists, and the site builds without a warning."""
