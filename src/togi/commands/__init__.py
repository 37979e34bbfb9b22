"""The work of commands that are not stages. `cli` has their options and their output."""
