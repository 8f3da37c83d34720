// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// settings is how IPVS must be set (Documentation/networking/ipvs-sysctl.rst),
// below /proc/sys/net/ipv4/vs.
var settings = []struct {
	name, value string
	// optional ones are missing in older kernels, or only save work.
	optional bool
	why      string
}{
	{name: "conntrack", value: "1", why: "masquerading needs connection tracking"},
	{name: "conn_reuse_mode", value: "1", why: "a reused client port must not lead to where its last connection went"},
	{name: "expire_nodest_conn", value: "1", why: "what goes to a removed endpoint must be scheduled anew"},
	{name: "expire_quiescent_template", value: "1", why: "affinity must not keep clients with a removed endpoint"},
	{name: "run_estimation", value: "0", optional: true, why: "rates nobody reads cost time with many Services"},
}

// ensureSettings writes what differs, below proc, "" for /proc/sys. A container that may not write there can
// still run where the node has the right values already.
func ensureSettings(proc string) error {
	var errs []error
	for _, s := range settings {
		path := filepath.Join(cmp.Or(proc, "/proc/sys"), "net/ipv4/vs", s.name)
		have, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && s.optional {
			continue
		}
		if err == nil && strings.TrimSpace(string(have)) == s.value {
			continue
		}
		if err == nil {
			err = os.WriteFile(path, []byte(s.value), 0o644)
		}
		if err != nil && !s.optional {
			errs = append(errs, fmt.Errorf("set net.ipv4.vs.%s=%s (%s): %w; run on the node: sysctl -w net.ipv4.vs.%s=%s",
				s.name, s.value, s.why, err, s.name, s.value))
		}
	}
	return errors.Join(errs...)
}
