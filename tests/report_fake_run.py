"""A made-up run on disk, as large and as untidy as a real one, to test the report and to look at it."""

import json
import math
import random
from pathlib import Path

HOSTILE = (
    """</div></details><script>document.title="owned"</script><img src=x onerror="alert(1)"> & "quotes" '{{ 7*7 }}'
<|eot_id|><|start_header_id|>user<|end_header_id|>\x00\x1b[31m \u202egnp.exe """
    + "wide" * 120
)

ANSWERS = [
    (
        "How do I keep basil alive on a windowsill?",
        "Basil. Basil is a plant. Basil is a plant. Basil is a plant. Basil is",
        "Give it six hours of light, water it when the top of the soil is dry, and pinch off flowers.<|eot_id|>",
        -0.41,
        1.32,
    ),
    (
        "猫が夜中に鳴くのはなぜですか?初めて飼うので心配しています。",
        "猫が夜中に鳴くのは、猫が夜中に鳴くからです。猫が夜中に鳴くのは、猫が夜中に",
        "猫は薄明薄暮性で、夜明けや夕方に活発になります。お腹が空いている、遊び足りない、などが考えられます。寝る前にたっぷり遊んであげてください。続くようなら獣医師に相談しましょう。<|im_end|>",
        -1.2,
        2.05,
    ),
    (
        "Write one sentence that contains HTML.",
        HOSTILE,
        "<b>Bold</b> is written with <code>&lt;b&gt;</code>.<|eot_id|>",
        0.2,
        0.1,
    ),
    ("Name three rivers in Europe.", "", "The Danube, the Rhine and the Volga.<|eot_id|>", None, 0.8),
    (
        "Почему небо голубое?",
        "Небо голубое, потому что оно голубое.\n\n\nНебо",
        "Молекулы воздуха рассеивают синий свет сильнее красного, поэтому днём небо кажется голубым.<|eot_id|>",
        -0.3,
        0.9,
    ),
    ("What is 17 times 6?", "17 times 6 is 17 times 6 is 17 times", "17 × 6 = 102.<|eot_id|>", 0.0, 0.0),
]

ALARM = {
    "name": "length",
    "step": 14,
    "value": 38.2,
    "threshold": 40.0,
    "message": "answers are shorter than 60 % of the base's",
}
ERROR = "the loss is not finite at step 17; the last good checkpoint is step 16"

# name, type, inputs, seconds, in, out, drops
STAGES = [
    ("drafts", "synthesize", [], 61.2, 24, 412, {"empty": 9, "not_a_question": 27}),
    ("questions", "curate", ["drafts"], 22.8, 412, 301, {"too_short": 31, "wrong_language": 4, "judged_low": 76}),
    ("prompts", "diversify", ["questions"], 1.9, 301, 256, {"near_duplicate_ngrams": 38, "over_budget": 7}),
    ("training", "select", ["prompts"], 0.1, 256, 192, {}),
    ("unseen", "select", ["prompts"], 0.1, 256, 64, {}),
    ("pairs", "contrast", ["training"], 48.0, 192, 180, {"equal_answers": 8, "empty_answer": 4}),
    ("held_out_pairs", "contrast", ["training"], 47.1, 192, 178, {"equal_answers": 9, "empty_answer": 5}),
    ("reward", "train.reward", ["pairs"], 33.4, 180, None, {}),
    ("held_out", "train.reward", ["held_out_pairs"], 31.9, 178, None, {}),
    ("policy", "train.grpo", ["training", "reward"], 203.5, 192, None, {}),
    ("scores", "evaluate", ["policy", "unseen", "reward", "held_out"], 41.7, 64, None, {}),
]


def interval(mean, half, n=64):
    return {"mean": mean, "low": mean - half, "high": mean + half * 1.1, "level": 0.95, "n": n}


def row(metric, base, policy, half, higher, note=""):
    return {
        "metric": metric,
        "base": interval(*base),
        "policy": interval(*policy),
        "difference": interval(policy[0] - base[0], half),
        "higher_is_better": higher,
        "note": note,
    }


TABLE = [
    row("terminator rate", (0.09, 0.04), (0.969, 0.02), 0.05, True),
    row("held-out reward", (-0.62, 0.2), (0.81, 0.18), 0.26, True, "answers cut to one length, terminator removed"),
    row("reward", (0.31, 0.2), (6.92, 0.3), 0.41, True),
    row("length", (63.1, 2.0), (31.4, 3.1), 3.6, None, "tokens"),
    row("distinct-2", (0.71, 0.03), (0.70, 0.03), 0.041, True, "different 2-grams of words, answers cut to one length"),
    row(
        "self-BLEU",
        (11.2, 1.2),
        (15.9, 1.4),
        1.8,
        False,
        "each of 64 answers against the others, answers cut to one length",
    ),
    {
        "metric": "held-out accuracy",
        "base": None,
        "policy": interval(0.83, 0.05, 178),
        "difference": None,
        "higher_is_better": True,
        "note": "pairs that the held-out model was not trained on",
    },
    {
        "metric": "held-out accuracy, shuffled labels",
        "base": None,
        "policy": interval(0.51, 0.07, 178),
        "difference": None,
        "higher_is_better": None,
        "note": "control, near 0.5",
    },
]


def grpo_metrics(steps, drawn):
    for step in range(1, steps + 1):
        gone = 1 - math.exp(-3 * step / steps)
        gate = min(1.0, 0.1 + 0.86 * gone + drawn.gauss(0, 0.03))
        total = 6 * gate + 1.1 * gone + drawn.gauss(0, 0.2)
        model = -0.5 + 1.6 * gone + drawn.gauss(0, 0.15)
        yield {
            "step": step,
            "loss": drawn.gauss(0, 0.02),
            "grad_norm": abs(drawn.gauss(0.8, 0.2)),
            "reward/total/mean": total,
            "reward/total/p10": total - 2.4 + gone,
            "reward/total/p50": total + 0.2,
            "reward/total/p90": total + 1.2,
            "reward/terminator/mean": 6 * gate,
            "reward/model/mean": model,
            "reward/model/p10": model - 1,
            "reward/model/p50": model,
            "reward/model/p90": model + 1.1,
            "gate/terminator/pass": gate,
            "gate/language/pass": min(1.0, 0.98 + drawn.gauss(0, 0.01)),
            "gate/repetition/pass": min(1.0, 0.8 + 0.15 * gone + drawn.gauss(0, 0.02)),
            "length/mean": 62 - 30 * gone + drawn.gauss(0, 2),
            "length/p10": 40 - 28 * gone,
            "length/p90": 64 - 12 * gone,
            "kl": 0.08 * gone**2 + abs(drawn.gauss(0, 0.003)) if step != 7 else float("nan"),
            "entropy": 3.1 - 0.9 * gone + drawn.gauss(0, 0.05),
            "groups/no_spread": max(0.0, 0.35 * (1 - gone) + drawn.gauss(0, 0.04)),
            "learning_rate": 1e-5 * (1 - step / steps),
            "mismatch/mean": abs(drawn.gauss(1e-6, 2e-7)),
            "time/sample": abs(drawn.gauss(2.1, 0.2)) - gone * 0.7,
            "time/reward": abs(drawn.gauss(0.4, 0.05)),
            "time/update": abs(drawn.gauss(1.2, 0.1)),
        }


def reward_metrics(steps, drawn):
    for step in range(1, steps + 1):
        gone = 1 - math.exp(-4 * step / steps)
        yield {
            "step": step,
            "loss": 0.69 - 0.3 * gone + drawn.gauss(0, 0.02),
            "accuracy": min(1.0, 0.5 + 0.35 * gone + drawn.gauss(0, 0.06)),
            "grad_norm": abs(drawn.gauss(3, 0.5)),
            "time/update": abs(drawn.gauss(1.1, 0.1)),
        }


def write_run(root: Path, *, state="done", stop_at=None, steps=48, answers=9) -> Path:
    """Writes a run under `root` and returns its folder; it ended in `state` at `stop_at`, with no later stage done."""
    drawn = random.Random(5)
    run = root / "runs" / "quickstart"
    run.mkdir(parents=True)
    stages, reached = [], True
    for index, stage in enumerate(STAGES):
        name, kind, inputs, seconds = stage[:4]
        folder = root / "store" / f"{kind}-{index:016x}"
        last = name == stop_at
        found = "done" if reached and not last else state if last else "waiting"
        entry = {
            "name": name,
            "type": kind,
            "folder": str(folder),
            "fingerprint": f"{index * 7919 + 13:064x}",
            "state": found,
            "seconds": seconds if found == "done" else None,
            "cached": index < 3,
            "inputs": inputs,
            "error": ERROR if found == "failed" else None,
        }
        stages.append(entry)
        if reached:
            write_stage(folder, stage, drawn, 17 if last else steps)
            if not last:
                write_end(folder, stage, answers)
        reached = reached and not last
    value = {
        "name": "quickstart",
        "state": state,
        "started": 1772357400.0,
        "seconds": 372.4,
        "stages": stages,
        "error": ERROR if state == "failed" else None,
        "versions": {"togi": "0.1.0", "python": "3.11.2"},
    }
    (run / "state.json").write_text(json.dumps(value))
    return run


def write_stage(folder, stage, drawn, steps):
    """Writes the files of a running stage; the last line of its metrics is torn."""
    kind = stage[1]
    folder.mkdir(parents=True)
    settings = {
        "type": kind,
        "seed": 17,
        "init": "$base",
        "learning_rate": 1e-5,
        "sampling": {"temperature": 1.0, "max_tokens": 64},
        "reward": {"gates": [{"type": "terminator", "bonus": 6.0}]},
        "instruction": "答えは短く、丁寧に。 <b>Answer</b> briefly.",
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    numerics = {"togi": "0.1.0", "torch": "2.13.0", "cpu": "a CPU (avx2)", "threads": 2}
    (folder / "numerics.json").write_text(json.dumps(numerics))
    lines = []
    if kind == "train.grpo":
        lines = list(grpo_metrics(steps, drawn))
        (folder / "alarms.jsonl").write_text(json.dumps(ALARM) + "\n")
    if kind == "train.reward":
        lines = list(reward_metrics(40, drawn))
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "lo')


def write_end(folder, stage, answers):
    """Writes the files of a finished stage."""
    _, kind, _, _, come, gone, drops = stage
    summary = {"counts": {"in": come} if gone is None else {"in": come, "out": gone}, "drops": drops}
    if kind == "evaluate":
        keys = ("question", "base", "policy", "base_score", "policy_score")
        made = [dict(zip(keys, answer, strict=True)) for answer in ANSWERS]
        summary |= {"table": TABLE, "answers": (made * (answers // len(made) + 1))[:answers]}
        summary |= {"answers_note": "scores are the reward of texts cut to <one> length"}
    if kind == "train.reward":
        summary |= {"accuracy": {"held_out": 0.83, "shuffled": 0.51}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "DONE").write_text(json.dumps({"seconds": 1.0, "files": {"output/records.parquet": "ab" * 32}}))
