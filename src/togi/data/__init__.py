"""Data before training: reading rows, filters with reasons, near-duplicates, selection, pairs, few-shot prompts.

`hub` downloads data sets; `importing` and `document_files` read files, with the help of `files` and `rows`. The other
files compute on rows and records. Callers pass in models as an `Embedder` or a detector.
"""
