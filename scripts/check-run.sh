#!/usr/bin/env bash
# Runs an experiment over tiny models, opens its report in Chromium and computes its tables again in Python.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
fixtures="$PWD/crates/lm/tests/fixtures/pico"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
# Four parts at a time share the machine; results don't depend on threads.
export MOPE_THREADS=1

cargo build --release --locked
cat > "$folder/tiny.ron" <<EOF
(
    name: "tiny",
    model: "$fixtures/llama",
    dimensions: {
        "informativeness": (scorer: Informativeness, low: "concise", high: "informative"),
        "style": (scorer: Style, low: "unfriendly", high: "friendly"),
    },
    experts: {
        "informative": Adapter("$fixtures/adapter_plain"),
        "friendly": Prompted("be kind"),
        "concise": Full("$fixtures/qwen3"),
    },
    preferences: {
        "even": (text: "be good", weights: {"informative": 1.0, "friendly": 1.0}),
        "kind": (text: "be kind", weights: {"informative": 0.2, "friendly": 0.8}),
        "short": (text: "be brief", weights: {"concise": 1.0, "friendly": 1.0}),
    },
    strategies: {
        "base": Base(),
        "uniform": Uniform(),
        "fixed": Fixed(),
        "mato": Mato(),
        "canned": Canned(),
        "empty": Empty(),
    },
    repeats: {"mixed": ["uniform", "fixed"]},
    prompts: "prompts.txt",
    samples: 3,
    retention: (text: "prose.txt", questions: "questions.jsonl", preferences: ["even", "kind"]),
    generation: (max_new_tokens: 12, sampling: (temperature: 0.9)),
)
EOF
# Curves, bounds and what chooses by rewards, which parts cannot do.
curves='frontier: {
        "dera": (of: DeRa(), strengths: [0.5, 1.0, 2.0, 4.0, 8.0]),
        "dexperts": (
            of: DExperts(anti: {"informative": "concise", "friendly": "concise", "concise": "informative"}),
            strengths: [0.5, 2.0, 4.0],
        ),
        "best_of_n": (of: BestOfN(), strengths: [1, 2, 4]),
    },
    bounds: (samples: 20),
    hypotheses: {"mixing_helps": (better: "uniform", than: "base", smallest: 0.01)},
    prompts:'
while IFS= read -r line; do printf '%s\n' "${line/prompts:/$curves}"; done < "$folder/tiny.ron" > "$folder/curves.ron"
sed -i 's/"mato": Mato(),/"mato": Mato(), "best": BestOfN(n: 3),/' "$folder/curves.ron"
printf '%s\n\n' "A weir is low." "Rain falls on the sea." "Ice floats." > "$folder/prose.txt"
cat > "$folder/questions.jsonl" <<EOF
{"question": "Which floats?", "options": ["Ice", "Lead", "Sand"], "answer": 0}
{"question": "Which falls?", "options": ["The sky", "Rain"], "answer": 1}
EOF
printf '%s\n' "Why?" "How so?" "And </script> then?" "Who <b>asks</b>?" > "$folder/prompts.txt"
"$target/release/mope" run "$folder/tiny.ron" --out "$folder/run"
python3 scripts/check-report.py "$folder/run/report.html"
"$target/release/mope" study export "$folder/run" --out "$folder/study" --pairs 7 >/dev/null
python3 scripts/check-study.py "$folder/study/study.html" "$folder/ann.json"
"$target/release/mope" study import "$folder/study" "$folder/ann.json"

venv="${MOPE_VENV:-$HOME/.cache/mope/recompute}"
if ! "$venv/bin/python" -c "import pandas, pyarrow, pymoo, sacrebleu, scipy, uniseg" 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r scripts/recompute/requirements.txt
fi
# A tiny judge, with room for a question.
cp -r "$fixtures/llama" "$folder/judge"
sed -i 's/"max_position_embeddings": 128/"max_position_embeddings": 512/' "$folder/judge/config.json"
cat > "$folder/judges.ron" <<EOF
(
    judges: {"small": Local("judge"), "other": Local("$fixtures/llama")},
    criteria: {"kindness": "Which serves {preference} better?", "length": "Which is longer?"},
    directions: {"friendly": "Which is kinder?", "informative": "Which says more?"},
    strategies: ["uniform", "mato"],
    prompts: 2,
)
EOF
"$target/release/mope" judge "$folder/run" "$folder/judges.ron" >/dev/null
"$venv/bin/python" scripts/recompute/recompute.py "$folder/run"
"$target/release/mope" run "$folder/curves.ron" --out "$folder/curves" --preregister "$folder/registered.json"
python3 scripts/check-report.py "$folder/curves/report.html"
"$venv/bin/python" scripts/recompute/recompute.py "$folder/curves"

# What the book does with a run in pandas.
awk '/^```python$/ { inside = 1; next } /^```$/ { inside = 0 } inside' docs/src/pandas.md > "$folder/read_run.py"
[ -s "$folder/read_run.py" ] || { echo "docs/src/pandas.md has no code" >&2; exit 1; }
(cd "$folder" && "$venv/bin/python" read_run.py >/dev/null)
echo "the book's code in pandas: 1 passed, 0 failed"

# Recorded answers and a reward in Python.
"$target/release/mope" run experiments/own/own.ron --out "$folder/own" >/dev/null
grep -q ",elsewhere," "$folder/own/tables/ranking.csv"
echo "an experiment with files of one's own: 1 passed, 0 failed"

# The same run in parts, as Slurm and Kubernetes start them.
export MOPE="$PWD/$target/release/mope"
case "$target" in /*) MOPE="$target/release/mope" ;; esac
parts() {
    local running=()
    for i in 1 2 3 4; do
        "$@" "$i" &
        running+=("$!")
    done
    for pid in "${running[@]}"; do wait "$pid"; done
}
slurm() { SLURM_ARRAY_TASK_ID="$1" SLURM_ARRAY_TASK_COUNT=4 bash experiments/cluster/slurm.sh "$folder/tiny.ron" "$folder/slurm/run"; }
kubernetes() { JOB_COMPLETION_INDEX="$(($1 - 1))" experiments/cluster/part.sh "$folder/tiny.ron" "$folder/kubernetes/run" 4; }
for scheduler in slurm kubernetes; do
    parts "$scheduler" >/dev/null 2>&1
    for table in ranking differences quality; do
        cmp "$folder/run/tables/$table.csv" "$folder/$scheduler/run/tables/$table.csv"
    done
done
echo "in parts it is the same"
