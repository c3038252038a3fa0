"""The command line: one thin module a command group, over the library's public functions."""
