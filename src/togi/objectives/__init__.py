"""Objectives: losses over log-probabilities, scores, masks and numbers.

`base` holds the shared types and segment sums. `sft`, `reward`, `dpo`, `smpo` and `grpo` are one objective each;
`advantages` turns rewards into GRPO's advantages. A new objective is one small file with `needs`, `counts`, `loss`.
"""
