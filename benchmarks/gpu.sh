#!/usr/bin/env bash
# Tests and bars of a machine with a GPU, in nine minutes at most: bash benchmarks/gpu.sh
#
# Needs a copy of the tree, nothing else: it runs on $PYTHON, on .venv, or on the python3 of the
# system, and where that lacks packages in an environment of its own on top of it. Every step has a
# limit, rows are written as they come, and a step that is cut off leaves the earlier rows behind.
# Rows, pages, logs and a summary go to $OUT, results/gpu by default. Ends with 0 if all tests
# passed and every bar was measured, with 1 if not, and with 2 if it could not begin.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TOTAL=535 TESTS=120 BAR=75 REST=120
readonly BARS=(H3 H1 H2 H4 H6 H8 H5)
readonly NEEDED=(torch torch_geometric numpy scipy networkx sklearn jinja2 triton filelock
  matplotlib psutil rich tyro pytest hypothesis)
OUT=${OUT:-results/gpu}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

fail() {
  echo "gpu.sh: $1" >&2
  exit 2
}

sees_gpu() {
  "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
}

lacks() {
  "$1" - "${NEEDED[@]}" <<'PYTHON'
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PYTHON
}

left() {
  echo $((TOTAL - SECONDS))
}

# step LOG LIMIT COMMAND...: run within LIMIT seconds and what is left of all; say how it went.
step() {
  local log=$OUT/$1.log limit=$2 code=0
  shift 2
  if (($(left) < limit)); then limit=$(left); fi
  if ((limit < 15)); then
    echo "left out, no time: $*"
    return 1
  fi
  echo "$* (at most ${limit} s)"
  timeout --kill-after=5 "$limit" "$@" >"$log" 2>&1 || code=$?
  tail -n 3 "$log" | cut -c1-200
  if ((code == 124 || code == 137)); then echo "cut off after ${limit} s"; fi
  return "$code"
}

if [[ -n ${PYTHON:-} ]]; then
  python=$PYTHON
elif [[ -x .venv/bin/python ]] && sees_gpu .venv/bin/python; then
  python=.venv/bin/python
else
  python=python3
fi
command -v "$python" >/dev/null || fail "no $python; name a Python of at least 3.11 in PYTHON"
sees_gpu "$python" || nvidia-smi -L 2>/dev/null | grep -q GPU || fail "no GPU here, nothing was done"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$python is too old; name a Python of at least 3.11 in PYTHON"
mkdir -p "$OUT"

if ! sees_gpu "$python" || [[ -n $(lacks "$python") ]]; then
  # Only what is lacking: the PyTorch of the machine is the one that knows its GPU.
  venv=$OUT/venv
  read -ra packages <<<"$(lacks "$python" | sed 's/sklearn/scikit-learn/')"
  sees_gpu "$python" || packages+=(--ignore-installed torch)
  echo "setting up $venv with ${packages[*]}"
  { "$python" -m venv --system-site-packages "$venv" &&
    timeout 200 "$venv/bin/python" -m pip install -q "${packages[@]}"; } >"$OUT/setup.log" 2>&1 ||
    fail "cannot set up $venv, see $OUT/setup.log; name a Python that has these packages in PYTHON"
  python=$venv/bin/python
  sees_gpu "$python" || fail "torch in $venv sees no GPU; name a Python whose torch does in PYTHON"
fi

failed=0
step gpu 30 "$python" -m torch.utils.collect_env || true
step tests "$TESTS" "$python" -m pytest -q -m gpu tests/kernels || failed=1
for bar in "${BARS[@]}"; do
  step "$bar" "$BAR" "$python" -m gsym_bench kernels --device cuda --only "$bar" --out "$OUT" ||
    failed=1
done
# What the CPU interprets elsewhere, compiled; last, for its kernels take longest.
step triton "$REST" "$python" -m pytest -q tests/kernels/test_triton.py || failed=1

"$python" - "$OUT" "${BARS[@]}" <<'PYTHON' | tee "$OUT/summary.txt"
import csv, pathlib, sys
out, bars = pathlib.Path(sys.argv[1]), sys.argv[2:]
path = out / "kernels.csv"
rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
for log in ("tests", "triton"):
    lines = (out / f"{log}.log").read_text().splitlines() if (out / f"{log}.log").exists() else []
    print(f"{log}: {lines[-1] if lines else 'not run'}")
for bar in bars:
    own = [row for row in rows if row["device"] == "cuda" and row["bar"] == bar]
    if not own:
        print(f"{bar}: not measured")
    for row in own:
        print(f"{bar}: {row['case']}, {row['mode']}, {row['setting']}, {row['variant']}: ratio "
              f"{row['ratio']}, asked for {row['least']}: {row['met']}")
PYTHON
grep -q "not measured" "$OUT/summary.txt" && failed=1
echo "$SECONDS s; rows and logs are in $OUT"
exit "$failed"
