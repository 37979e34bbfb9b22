"""A recipe that measures, begun: two reward models, a policy, and a benchmark of answers; tests add to it."""

BEGUN = """\
name: measured
seed: 3
models:
  base: {path: model, template: chatml}
data:
  questions: {path: questions.jsonl}
stages:
  pairs: {type: contrast, input: $questions, model: $base, off_topic: true, max_tokens: 12, min_tokens: 1}
  reward: {type: train.reward, init: $base, pairs: $pairs, epochs: 1, batch_size: 2, learning_rate: 1e-3}
  other: {type: train.reward, init: $base, pairs: $pairs, epochs: 2, batch_size: 2, learning_rate: 1e-2}
  policy: {type: train.dpo, init: $base, pairs: $pairs, epochs: 1, batch_size: 2, learning_rate: 1e-3}
  answers:
    type: evaluate
    models: [$base, $policy]
    bootstrap: 100
    benchmarks:
      - {type: answers, prompts: $questions, reward: $reward, samples: 2, max_tokens: 8}
"""
