"""What an evaluation measures and how surely: intervals over prompts, accuracy, diversity, answers cut to one length.

Nothing here loads a model: values, texts and vectors are handed in, rows of a before/after table come out.
"""
