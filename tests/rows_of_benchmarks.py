"""Rows as each benchmark has them, of made-up texts: as many as a test wants, or as the whole benchmark holds."""

import json

from plaudit import suites

LETTERS = "abcdefghij"


def rewardbench(counts=None):
    """Rows of RewardBench; all 2,985 unless counts says how many of which subset."""
    counts = counts or suites.rows_of("rewardbench")
    return [
        {
            "prompt": f"Question {number} of {subset}?",
            "chosen": f"Answer {number} of {subset}, which is right.",
            "chosen_model": "one",
            "rejected": f"Wrong {number}." + " It goes on." * (number % 3),
            "rejected_model": "two",
            "subset": subset,
            "id": number,
        }
        for subset, count in counts.items()
        for number in range(count)
    ]


def rewardbench2(counts=None):
    """Rows of RewardBench 2; all 1,865 unless counts says how many of which subset."""
    rows = []
    for subset, count in (counts or suites.REWARDBENCH2).items():
        for number in range(count):
            right = 1
            row_id = str(number)
            if subset == "Ties":
                # A prompt's row with one right answer, then that with several.
                right, row_id = (1, f"ref:{number // 2}") if number % 2 == 0 else (3, f"tied:{number // 2}")
            rows.append(
                {
                    "id": row_id,
                    "prompt": f"Question {number} of {subset}?",
                    "chosen": [f"Right {subset} {number} {LETTERS[i]}" for i in range(right)],
                    "rejected": [f"Wrong {subset} {number} {LETTERS[i]}" for i in range(3)],
                    "num_correct": right,
                    "num_incorrect": 3,
                    "total_completions": right + 3,
                    "models": ["m"] * (right + 3),
                    "subset": subset,
                    "additional_metadata": {"category": None},
                }
            )
    return rows


def rm_bench(counts=None):
    """Rows of RM-Bench; all 1,327 unless counts says how many of which domain."""
    counts = counts or {"chat": 129, "math": 529, "code": 228, "safety-refuse": 284, "safety-response": 157}
    return [
        {
            "id": f"{domain}-{number}",
            "prompt": f"Question {number} of {domain}?",
            "chosen": [f"Yes {domain} {number}.", f"Yes, {domain} {number}, because.", f"**Yes**, {domain} {number}."],
            "rejected": [f"No {domain} {number}.", f"No, {domain} {number}, because.", f"**No**, {domain} {number}."],
            "domain": domain,
        }
        for domain, count in counts.items()
        for number in range(count)
    ]


SOURCES = {"mmlu-pro-math": 154, "livebench-reasoning": 98, "livebench-math": 56, "livecodebench": 42}


def judgebench(counts=None):
    """Rows of JudgeBench; all 350 of GPT-4o's answers unless counts says how many of which source."""
    return [
        {
            "pair_id": f"{source}-{number}",
            "original_id": str(number),
            "source": source,
            "question": f"Question {number} of {source}?",
            "response_model": "gpt-4o",
            "response_A": f"A to {source} {number}",
            "response_B": f"B to {source} {number}, at length",
            "label": "A>B" if number % 3 else "B>A",
        }
        for source, count in (counts or SOURCES).items()
        for number in range(count)
    ]


def ppe_correctness(count=2, name="MATH"):
    """Rows of one set of PPE correctness, every third answer right."""
    return [
        {
            "question_id": f"q{number}",
            "prompt": f"{name} question {number}?",
            **{f"response_{k}": f"{name} {number} answer {k}" for k in range(1, 33)},
            "scores": [k % 3 == 0 for k in range(32)],
            "sampled_conflict_pairs": [[0, 1], [2, 3], [4, 6]],
        }
        for number in range(count)
    ]


def ppe_human(winners=("model_a", "model_b", "tie", "tie (bothbad)")):
    """Rows of PPE's human votes, one a winner."""
    return [
        {
            "question_id": f"q{number}",
            "prompt": [{"role": "user", "content": f"Question {number}?"}] if number % 2 else f"Question {number}?",
            "model_a": "one",
            "model_b": "two",
            "response_1": f"First to {number}",
            "response_2": f"Second to {number}",
            "winner": winner,
        }
        for number, winner in enumerate(winners)
    ]


def rmb_pairs(count=2):
    """Rows of RMB's pairs, of conversations of several turns."""
    return [
        {
            "pair_uid": f"p{number}",
            "conversation_input": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": f"Question {number}?"},
            ],
            "chosen": {"answer": f"Good {number}", "llm_name": "one"},
            "reject": {"answer": f"Bad {number}", "llm_name": "two"},
            "category_path": "Helpfulness/Chat",
        }
        for number in range(count)
    ]


def rmb_best(count=2):
    """Rows of RMB's best-of-n."""
    return [
        {
            "bon_uid": f"b{number}",
            "conversation_input": f"Question {number}?",
            "bon_best": {"answer": f"Best {number}"},
            "loser_list": [{"answer": f"Loser {number} {k}"} for k in range(3)],
            "category_path": "Harmlessness/S1",
        }
        for number in range(count)
    ]


def best_of_n(count=2):
    """Rows of best-of-n of one's own: four answers, the third right."""
    return [
        {
            "prompt": f"Question {number}?",
            "responses": [f"Answer {number} {LETTERS[k]}" for k in range(4)],
            "correct": [False, False, True, False],
        }
        for number in range(count)
    ]


def write(path, rows):
    """Write rows as the file's name says, and return its name as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
