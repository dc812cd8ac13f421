#!/usr/bin/env bash
# Checks the texts: spelling (typos), links and line widths (check-markdown.py), the book (mdbook), and that the
# experiment in the README is one. Installs typos with pip and mdbook with cargo where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
tools="${MOPE_TOOLS:-$HOME/.cache/mope/tools}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

typos="$(command -v typos || echo "$tools/python/bin/typos")"
if [ ! -x "$typos" ]; then
    python3 -m venv "$tools/python"
    "$tools/python/bin/pip" install -q typos==1.52.0
fi
"$typos"
echo "spelling: 1 passed, 0 failed"

python3 scripts/check-markdown.py

mdbook="$(command -v mdbook || echo "$tools/bin/mdbook")"
if [ ! -x "$mdbook" ]; then
    # Without its server and its search index: a build is all that is needed.
    CARGO_TARGET_DIR="$tools/target" cargo install -q --locked --no-default-features --root "$tools" mdbook
    rm -rf "$tools/target"
fi
"$mdbook" build docs --dest-dir "$work/book" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
if grep -E "WARN|ERROR" "$work/log"; then
    echo "the book builds with warnings" >&2
    exit 1
fi
echo "book: $(find "$work/book" -name '*.html' | wc -l) pages"

# The experiment of the README, as if it were saved in a checkout.
mope="${MOPE:-${CARGO_TARGET_DIR:-target}/release/mope}"
awk '/^```ron$/ { inside = 1; next } /^```$/ { inside = 0 } inside' README.md > "$work/mine.ron"
[ -s "$work/mine.ron" ] || { echo "README.md has no experiment" >&2; exit 1; }
ln -s "$PWD/experiments" "$work/experiments"
if [ -x "$mope" ]; then
    "$mope" check "$work/mine.ron" >/dev/null
    echo "experiment of the README: 1 passed, 0 failed"
else
    echo "experiment of the README: not checked, $mope is not built"
fi
