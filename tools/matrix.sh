#!/usr/bin/env bash
# Run the tests under every Python that is found and every torch that can be had, oldest first.
# TORCHES="2.11.0 2.13.0" and PYTHONS="python3.11 python3.12" narrow it down; TESTS names the tests.
# A torch without wheel for a Python is named and left out; the last lines say what was tested.
set -uo pipefail
cd "$(dirname "$0")/.."
floor=$(sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
newest=$(sed -n 's/^torch==//p' constraints.txt)
TORCHES=${TORCHES:-"$floor.0 $newest"}
PYTHONS=${PYTHONS:-"python3.11 python3.12 python3.13 python3.14"}
TESTS=${TESTS:-"tests/nn tests/groups tests/kernels tests/risk tests/choosing tests/test_transforms.py tests/test_datasets.py"}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
report=() failed=0
for python in $PYTHONS; do
  "$python" -c '' 2>/dev/null || { report+=("$python: not on this machine"); continue; }
  for torch in $TORCHES; do
    venv="$work/$python-$torch"
    run="$venv/bin/python"
    "$python" -m venv "$venv"
    # All else as constraints.txt has it, which is for the newest torch alone.
    grep -v -e '^torch==' -e '^triton==' constraints.txt >"$work/others.txt"
    address=$("$run" -m pip install -q --dry-run --no-deps --ignore-installed --report - \
      "torch==$torch" 2>/dev/null | sed -n 's/.*"url": "\([^"]*\)".*/\1/p' | head -1)
    if [ -z "$address" ]; then
      report+=("$python, torch $torch: no wheel can be had"); continue
    fi
    # The public index has builds for CUDA under this name, which bring gigabytes of libraries.
    if [ "${CUDA:-0}" = 0 ] && [[ "$address" != *cpu* ]]; then
      report+=("$python, torch $torch: only a build for CUDA can be had; CUDA=1 takes it"); continue
    fi
    if ! "$run" -m pip install -q -c "$work/others.txt" "torch==$torch" '.[cli]' \
      pytest pytest-xdist hypothesis; then
      report+=("$python, torch $torch: cannot be installed"); failed=1; continue
    fi
    if OMP_NUM_THREADS=1 "$run" -m pytest -q -n 2 $TESTS; then
      report+=("$python, torch $torch: passed")
    else
      report+=("$python, torch $torch: FAILED"); failed=1
    fi
  done
done
printf '%s\n' "${report[@]}"
exit $failed
