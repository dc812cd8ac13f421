#!/usr/bin/env bash
# Runs an experiment over tiny models, opens its report in Chromium and computes its tables again in Python.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
fixtures="$PWD/crates/lm/tests/fixtures/pico"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

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
    },
    prompts: "prompts.txt",
    samples: 2,
    retention: (text: "prose.txt", questions: "questions.jsonl", preferences: ["even", "kind"]),
    generation: (max_new_tokens: 12, sampling: (temperature: 0.9)),
)
EOF
printf '%s\n\n' "A weir is low." "Rain falls on the sea." "Ice floats." > "$folder/prose.txt"
cat > "$folder/questions.jsonl" <<EOF
{"question": "Which floats?", "options": ["Ice", "Lead", "Sand"], "answer": 0}
{"question": "Which falls?", "options": ["The sky", "Rain"], "answer": 1}
EOF
printf '%s\n' "Why?" "How so?" "And </script> then?" "Who <b>asks</b>?" > "$folder/prompts.txt"
"$target/release/mope" run "$folder/tiny.ron" --out "$folder/run"
python3 scripts/check-report.py "$folder/run/report.html"

venv="${MOPE_VENV:-$HOME/.cache/mope/recompute}"
if ! "$venv/bin/python" -c "import pandas, pyarrow, pymoo, sacrebleu, scipy, uniseg" 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r scripts/recompute/requirements.txt
fi
"$venv/bin/python" scripts/recompute/recompute.py "$folder/run"
