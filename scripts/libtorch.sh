#!/usr/bin/env bash
# Sets up the CPU libtorch that feature `tch` links to, from PyPI wheels, and prints the variables to export:
#   eval "$(scripts/libtorch.sh)" && cargo build --release --features tch
# Folder: ${MOPE_LIBTORCH:-~/.cache/mope/libtorch}. Nothing is done when it is already there.
set -euo pipefail

root="${MOPE_LIBTORCH:-$HOME/.cache/mope/libtorch}"
torch="torch==2.9.1"
# The wheel's libraries are linked against these two even where no GPU is used.
cuda=("nvidia-cuda-runtime-cu12==12.8.90" "nvidia-cuda-cupti-cu12==12.8.90")

if [ ! -f "$root/done" ]; then
    work="$(mktemp -d "${TMPDIR:-/tmp}/libtorch.XXXXXX")"
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheels" "$torch" "${cuda[@]}" >&2
    python3 - "$work" <<'PYTHON'
import pathlib, sys, zipfile
work = pathlib.Path(sys.argv[1])
libraries = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libtorch_global_deps.so"}
for wheel in (work / "wheels").glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            kept = name.startswith("torch/include/") or name.startswith("nvidia/")
            if kept or (name.startswith("torch/lib/") and pathlib.PurePath(name).name in libraries):
                archive.extract(name, work / "site")
PYTHON
    # The linker looks for libtorch, which the wheel fills with CUDA code; the processor's part is all we need.
    ln -s libtorch_cpu.so "$work/site/torch/lib/libtorch.so"
    touch "$work/site/done"
    mkdir -p "$(dirname "$root")"
    rm -rf "$root"
    mv "$work/site" "$root"
fi

cat <<VARIABLES
export LIBTORCH="$root/torch"
export LIBTORCH_CXX11_ABI=1
export LD_LIBRARY_PATH="$root/torch/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
VARIABLES
