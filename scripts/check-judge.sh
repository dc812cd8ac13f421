#!/usr/bin/env bash
# Judges a small run with llama.cpp's server, which serves the same model on loopback: readable verdicts, a wrong key, a server
# that dies in the middle and comes back. Needs Python; installs llama.cpp's wheel (34 MB) from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
mope="$target/release/mope"
folder="$(mktemp -d)"
server=""
stop() { [ -z "$server" ] || { kill -9 "$server" && wait "$server"; } 2>/dev/null || true; server=""; }
trap 'stop; rm -rf "$folder"' EXIT
fail() { echo "check-judge: $1" >&2; exit 1; }

cargo build --release --locked
venv="${MOPE_JUDGE_VENV:-$HOME/.cache/mope/judge}"
if ! "$venv/bin/python" -c "import xllamacpp" 2>/dev/null; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install -q -r scripts/judge/requirements.txt
fi
model="$("$mope" fetch smollm2-135m-instruct | tail -n 1)"
export LLAMA_KEY="sk-of-this-check-only"

# serve PORT: starts the server and waits until it answers; its address is in $url.
serve() {
    "$venv/bin/python" scripts/judge/serve.py "$model" --port "$1" >"$folder/address" 2>"$folder/server.log" &
    server=$!
    for _ in $(seq 120); do
        url="$(grep -o '^http://[0-9.]*:[0-9]*' "$folder/address" || true)"
        [ -z "$url" ] || return 0
        kill -0 "$server" 2>/dev/null || { cat "$folder/server.log" >&2; fail "the server did not start"; }
        sleep 0.5
    done
    fail "the server does not answer"
}

cat >"$folder/small.ron" <<EOF
(
    name: "small",
    model: "smollm2-135m-instruct",
    dimensions: {"style": (scorer: Style, low: "unfriendly", high: "friendly")},
    experts: {"friendly": Prompted("Be very friendly.")},
    preferences: {"kind": (text: "Be kind.", weights: {"friendly": 1.0})},
    strategies: {"base": Base(), "prompting": Prompting()},
    prompts: "prompts.txt",
    samples: 2,
    generation: (max_new_tokens: 16),
)
EOF
printf '%s\n' "Why is the sky blue?" "How do bees find flowers?" "What is rust?" >"$folder/prompts.txt"
"$mope" run "$folder/small.ron" --out "$folder/run" >/dev/null

serve 0
port="${url##*:}"
cat >"$folder/judges.ron" <<EOF
(
    judges: {
        "server": Endpoint(url: "$url/v1", model: "smollm2", key_variable: "JUDGE_KEY", attempts: 2, backoff: 0.1),
        "local": Local("smollm2-135m-instruct"),
    },
    criteria: {"friendliness": "Which of two responses to the question is friendlier?"},
)
EOF
judge() { JUDGE_KEY="$1" NO_PROXY="*" no_proxy="*" "$mope" judge "$folder/run" "$folder/judges.ron"; }
kept="$folder/run/judgements/server.jsonl"
verdicts() { wc -l <"$kept"; }

if judge "sk-wrong" >"$folder/said" 2>&1; then fail "a wrong key was taken"; fi
grep -q "401" "$folder/said" || { cat "$folder/said" >&2; fail "a wrong key is not named"; }
[ "$(verdicts)" = 0 ] || fail "a refusal was kept as a verdict"

# Dies after a few verdicts.
judge "$LLAMA_KEY" >"$folder/said" 2>&1 & asking=$!
for _ in $(seq 600); do
    [ "$(verdicts)" -lt 3 ] && kill -0 "$asking" 2>/dev/null || break
    sleep 0.05
done
stop
if wait "$asking"; then fail "it ended well without a server"; fi
before="$(verdicts)"
[ "$before" -ge 3 ] || { cat "$folder/said" >&2; fail "no verdict before the server died"; }
cp "$kept" "$folder/before"

serve "$port"
judge "$LLAMA_KEY" | tee "$folder/said"
head -n "$before" "$kept" | cmp - "$folder/before" || fail "a verdict was lost"
after="$(verdicts)"
stop
# Everything is known: nobody is asked, so nobody has to be there.
judge "$LLAMA_KEY" >"$folder/again" 2>/dev/null
cmp "$folder/said" "$folder/again" || fail "asked again, it says something else"
[ "$(verdicts)" = "$after" ] || fail "a verdict was written twice"
if grep -rqE "sk-wrong|$LLAMA_KEY" "$folder/run"; then fail "a key was written"; fi

python3 - "$folder/run" <<'EOF'
import csv, json, pathlib, sys

run = pathlib.Path(sys.argv[1])
records = [json.loads(line) for line in (run / "judgements/server.jsonl").read_text().splitlines()]
assert len({r["key"] for r in records}) == len(records), "a verdict twice"
rows = {r["judge"]: r for r in csv.DictReader((run / "judgements/verdicts.csv").open())}
assert rows["server"]["pairs"] == "6" and float(rows["server"]["unreadable"]) <= 0.5, rows
# The same model read by the same letters: where the reply's first word decides, both judges agree.
agreement = list(csv.DictReader((run / "judgements/agreement.csv").open()))
assert any({"server", "local"} == {r["judge"], r["other"]} for r in agreement), agreement
print(f"judge behind llama.cpp: {len(records)} verdicts, {rows['server']['unreadable']} unreadable")
EOF
