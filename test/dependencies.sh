#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Lists what is linked into the three programs, for review against advisories:
# first the tool chain and the modules that go.mod names, then those that these
# bring along. `govulncheck` without its database reports nothing and is no
# check; with one: govulncheck -db=file:///path/to/vulndb ./...
# Fails where the tool chain is older than go.mod's, or where a module is
# replaced by something else than go.mod says, as nobody would review that.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(awk '$1 == "toolchain" {print $2}' go.mod)
[ -n "$wanted" ] || { echo "go.mod has no toolchain line: the standard library's version is a dependency, too"; exit 1; }
have=$(go env GOVERSION)
if [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -1)" != "$wanted" ]; then
  echo "Go is $have, older than go.mod's $wanted: its fixes of the standard library are missing"
  exit 1
fi
printf 'Tool chain\n  %s\n' "$have"

programs=(./cmd/agent ./cmd/controller ./cmd/causeway)
linked=$(go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{with .Replace}}{{.Path}}{{end}}{{end}}{{end}}' "${programs[@]}" | sort -u)
replaced=$(awk 'NF > 2' <<<"$linked")
[ -z "$replaced" ] || { printf 'Replaced modules:\n%s\n' "$replaced"; exit 1; }
indirect=$(go list -m -f '{{if .Indirect}}{{.Path}}{{end}}' all | sort -u)
for kind in direct indirect; do
  printf '\nLinked, %s\n' "$kind"
  while read -r path version _; do
    if grep -qxF "$path" <<<"$indirect"; then is=indirect; else is=direct; fi
    [ "$is" = "$kind" ] && printf '  %-48s %s\n' "$path" "$version"
  done <<<"$linked" || true
done
