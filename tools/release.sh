#!/usr/bin/env bash
# Build the sdist and the wheel of the version in pyproject.toml, check them, and tag the commit.
# Nothing is uploaded: the last line says how.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
version=$("$python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')

fail() { echo "release: $1" >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || fail "there are changes that are not committed"
! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || fail "v$version is tagged already; raise the version in pyproject.toml and CITATION.cff"
grep -q "^version: $version$" CITATION.cff || fail "CITATION.cff is of another version than $version"
grep -q "^## $version" docs/pages/changelog.md || fail "docs/pages/changelog.md has no heading '## $version'"

rm -rf dist
"$python" -m pip wheel -q --no-deps -w dist .
"$python" -m pip install -q --target "$(mktemp -d)" --no-deps dist/*.whl
"$python" tools/sdist.py dist
if "$python" -m twine --version >/dev/null 2>&1; then
  "$python" -m twine check --strict dist/*
else
  echo "release: twine is not installed; the description was not checked" >&2
fi
git tag -a "v$version" -m "gsym $version"
echo "Tagged v$version. To publish: git push origin v$version && twine upload dist/*"
