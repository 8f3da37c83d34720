#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target for a time (first argument, such as 10s), JOBS (2) of
# them at once; with a second argument, those of packages whose path has it. What they find new stays in Go's build cache and is where the
# next run begins; an input that fails is written to the package's testdata.
set -euo pipefail
cd "$(dirname "$0")/.."
export FUZZTIME=${1:?usage: test/fuzz.sh TIME [PACKAGE]}

one() {
  local package=$1 target=$2 out
  for try in 1 2; do
    if out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" -parallel 2 "./$package" 2>&1); then
      echo "$package $target: $(grep -oE 'execs: [0-9]+' <<<"$out" | tail -1 || true)"
      return
    fi
    # On a busy machine the end of the time itself can count as a failure
    # (golang/go#56238); one that was found has an input.
    if grep -q 'Failing input written' <<<"$out" || ! grep -q 'context deadline exceeded' <<<"$out"; then
      break
    fi
  done
  printf '%s\n%s %s failed\n' "$out" "$package" "$target"
  return 1
}
export -f one

# Packages are built one after the other, which go does in parallel anyway.
list=$(grep -rHE '^func Fuzz' --include='*_test.go' api cmd controllers internal test |
  sed -nE 's,^(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]+).*,\1 \2,p' | grep -F "${2:-}" | sort -u)
echo "$list" | xargs -P "${JOBS:-2}" -L 1 bash -c 'one "$0" "$1"'
echo "$(wc -l <<<"$list") targets, $FUZZTIME each"
