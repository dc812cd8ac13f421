#!/usr/bin/env bash
# Fails when a crate depends on one that it must not know:
# kernels <- lm <- {experts, pcm, eval} <- mixing (uses experts, pcm) <- bench.
set -euo pipefail
cd "$(dirname "$0")/.."

allowed() {
  case "$1" in
    kernels) echo "" ;;
    lm) echo "kernels" ;;
    experts | pcm | eval) echo "kernels lm" ;;
    mixing) echo "kernels lm experts pcm" ;;
    bench) echo "kernels lm experts pcm eval mixing" ;;
    # For tests alone.
    pico) echo "kernels lm experts" ;;
    *) echo "crate '$1' has no place in the dependency order: give it one in $0" >&2; return 1 ;;
  esac
}

failed=0
for manifest in crates/*/Cargo.toml; do
  crate=$(basename "$(dirname "$manifest")")
  permitted=" $(allowed "$crate") "
  for other in crates/*/; do
    other=$(basename "$other")
    [ "$other" = "$crate" ] && continue
    # Tests may use what the library must not know.
    if sed '/^\[dev-dependencies\]/,/^\[/d' "$manifest" | grep -qE "^$other(\.workspace)? *=" && [[ "$permitted" != *" $other "* ]]; then
      echo "$crate must not depend on $other" >&2
      failed=1
    fi
  done
done
[ "$failed" = 0 ] && echo "dependency direction: 1 passed, 0 failed"
exit "$failed"
