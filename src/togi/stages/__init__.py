"""The stages of recipes: they combine data, models, rewards, objectives and benchmarks."""
