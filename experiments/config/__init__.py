"""The parameters of every command, and the values of "auto"."""
