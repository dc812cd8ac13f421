#!/usr/bin/env bash
# Fails when a crate depends on one that it must not know:
# kernels <- lm <- {experts, pcm, eval} <- mixing (uses experts, pcm) <- harness <- training <- bench <- mope,
# or when a crate other than bench knows the library of the command line. Tests may use `pico`, and what lies below it.
#
#   scripts/dependency-direction.sh                checks the workspace
#   scripts/dependency-direction.sh --self-test    checks that it fails when it should
set -euo pipefail
cd "$(dirname "$0")/.."

check='
import json, sys

ORDER = {
    "kernels": "",
    "lm": "kernels",
    "experts": "kernels lm",
    "pcm": "kernels lm",
    "eval": "kernels lm",
    "mixing": "kernels lm experts pcm",
    "harness": "kernels lm experts pcm eval mixing",
    "training": "kernels lm experts pcm eval mixing harness",
    "bench": "kernels lm experts pcm eval mixing harness training",
    "mope": "kernels lm experts pcm eval mixing harness training bench",
    "pico": "kernels lm experts",
}
# Known to tests alone.
TESTS = {"pico"}
# External crates, and who may know them.
ONLY = {"clap": {"bench"}}

mistakes = []
crates = {p["name"].removeprefix("mope-"): p["dependencies"] for p in json.load(sys.stdin)["packages"]}
for crate, dependencies in sorted(crates.items()):
    if crate not in ORDER:
        mistakes.append(f"crate {crate!r} has no place in the dependency order: give it one in {sys.argv[1]}")
        continue
    allowed = set(ORDER[crate].split())
    for dependency in dependencies:
        name = dependency["name"].removeprefix("mope-")
        test = dependency["kind"] == "dev"
        if dependency["name"] in ONLY and crate not in ONLY[dependency["name"]]:
            mistakes.append(f"{crate} must not depend on {name}")
        if name not in crates or dependency.get("source"):
            continue
        if name not in allowed and not (test and name in TESTS):
            mistakes.append(f"{crate} must not depend on {name}")
print(*mistakes, sep="\n", file=sys.stderr, end="\n" if mistakes else "")
sys.exit(1 if mistakes else 0)
'
metadata="$(cargo metadata --format-version 1 --no-deps --locked)"
look() { python3 -c "$check" "$0"; }

if [ "${1:-}" = --self-test ]; then
    # add CRATE DEPENDENCY KIND SENTENCE: with this dependency more, the check fails and says the sentence.
    add() {
        local changed said
        changed="$(python3 -c '
import json, sys
data, crate, name, kind = json.load(sys.stdin), *sys.argv[1:4]
package = next(p for p in data["packages"] if p["name"] == crate)
package["dependencies"].append({"name": name, "kind": None if kind == "normal" else kind, "source": None})
json.dump(data, sys.stdout)' "$1" "$2" "$3" <<<"$metadata")"
        if said="$(look <<<"$changed" 2>&1)"; then
            echo "dependency direction: $1 -> $2 ($3) was not noticed" >&2
            exit 1
        fi
        [ "$said" = "$4" ] || { echo "dependency direction: '$said', not '$4'" >&2; exit 1; }
    }
    add mope-kernels mope-lm normal "kernels must not depend on lm"
    add mope-eval mope-experts normal "eval must not depend on experts"
    add mope-pcm mope-mixing dev "pcm must not depend on mixing"
    add mope-harness mope-training build "harness must not depend on training"
    add mope-training mope-bench normal "training must not depend on bench"
    add mope-bench mope normal "bench must not depend on mope"
    add mope-mixing pico normal "mixing must not depend on pico"
    add mope-harness clap normal "harness must not depend on clap"
    add mope clap dev "mope must not depend on clap"
fi
look <<<"$metadata"
echo "dependency direction: 1 passed, 0 failed"
