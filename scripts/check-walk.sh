#!/usr/bin/env bash
# Follows CONTRIBUTING.md: adds the strategy, the reward and the kind of expert that it walks through to a copy of the
# tree, from the blocks in its text and from nothing else, and runs the tests that the walks name.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"
target="${CARGO_TARGET_DIR:-$root/target}"
# Always the same place, so that crates that did not change are not built again.
copy="$target/walk"

python3 - "$root" "$copy" <<'PYTHON'
import re, subprocess, sys
from pathlib import Path

root, copy = map(Path, sys.argv[1:])
listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, check=True,
                        capture_output=True, text=True).stdout
files = {name: (root / name).read_bytes() for name in listed.split("\0") if name and (root / name).is_file()}
text = files["CONTRIBUTING.md"].decode()
walks = re.findall(r"^## (Adding an? [^\n]+)\n(.*?)(?=^## )", text, re.M | re.S)
titles = [title for title, _ in walks]
assert titles == ["Adding a strategy", "Adding a reward", "Adding an expert kind"], titles

def dedent(block):
    lines = block.splitlines(True)
    indent = min(len(line) - len(line.lstrip(" ")) for line in lines if line.strip())
    return "".join(line[indent:] if line.strip() else line for line in lines)

# Hunks of a walk at most: what is more belongs into the new file, or the code asks for too much.
MOST = 6
changes = []
for title, walk in walks:
    hunks, new = 0, 0
    for language, rest, block in re.findall(r"^ *```(\S+)([^\n]*)\n(.*?)^ *```$", walk, re.M | re.S):
        name, block = rest.strip(), dedent(block)
        if name:
            assert name not in files, f"{title}: {name} is there already: the walk adds what is not"
            files[name] = block.encode()
            new += 1
        elif language == "diff":
            changes.append(block)
            hunks += len(re.findall(r"^@@ ", block, re.M))
    assert new and 0 < hunks <= MOST, f"{title}: {new} new files and {hunks} hunks"
    print(f"{title}: {new} new files, {hunks} hunks")

# A version of its own: cargo tells crates of one name and version apart by nothing else, and must not take those of
# the copy for those of the tree.
manifest = files["Cargo.toml"].decode()
version = re.search(r'^version = "([^"]+)"$', manifest, re.M).group(1)
numbered = re.compile(rf'^(version = "|.* version = "){re.escape(version)}"(?=$|, path = )', re.M)
files["Cargo.toml"] = numbered.sub(rf'\g<1>{version}-walk"', manifest).encode()
manifests = [name for name in files if re.fullmatch(r"crates/[^/]+/Cargo.toml", name)]
packages = [re.search(rb'^name = "([^"]+)"$', files[name], re.M).group(1).decode() for name in manifests]
# What is built for one run is hardly worth optimising, except for the loops over numbers.
for package in packages:
    if package != "mope-kernels":
        files["Cargo.toml"] += f"\n[profile.release.package.{package}]\nopt-level = 0\n".encode()
locked = re.compile(rf'(name = "(?:{"|".join(packages)})"\nversion = "{re.escape(version)})"')
files["Cargo.lock"], count = locked.subn(r'\1-walk"', files["Cargo.lock"].decode())
assert count == len(packages), f"{count} of {len(packages)} packages are in Cargo.lock"
files["Cargo.lock"] = files["Cargo.lock"].encode()

# Only what differs is written, so that nothing else looks new to cargo.
changed = re.findall(r"^\+\+\+ b/(\S+)", "".join(changes), re.M)
for name, content in files.items():
    path = copy / name
    if name in changed or not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
for path in copy.rglob("*"):
    if path.is_file() and str(path.relative_to(copy)) not in files:
        path.unlink()
for change in changes:
    # Lines may have moved since; what stands around them must not have changed.
    subprocess.run(["patch", "-p1", "-F0", "--no-backup-if-mismatch", "-d", copy], input=change, text=True, check=True)
PYTHON

venv="${MOPE_VENV:-$HOME/.cache/mope/recompute}"
if ! "$venv/bin/python" -c "import numpy, scipy" 2>/dev/null; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q -r scripts/recompute/requirements.txt
fi
cd "$copy"
"$venv/bin/python" scripts/fixtures/strategies.py
cargo fmt --all --check
CARGO_TARGET_DIR="$target" cargo test --workspace --release --locked \
    --test references --test pico --test registry --test sharpen --test questions --test language
echo "walks: 3 passed, 0 failed"
