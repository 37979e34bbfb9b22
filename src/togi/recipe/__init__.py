"""Recipes: reading and checking them, their graph, the store, and the runs that do their stages."""
