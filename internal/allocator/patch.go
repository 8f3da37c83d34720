// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"gomodules.xyz/jsonpatch/v2"

	"github.com/causeway-lb/causeway/internal/alloc/services"
)

const (
	clusterIPPath   = "/spec/clusterIP"
	clusterIPsPath  = "/spec/clusterIPs"
	healthCheckPath = "/spec/healthCheckNodePort"
	nodePortPath    = "/spec/ports/%d/nodePort"
)

// Patch returns a grant as JSON patch of the Service (RFC 6902); empty if the grant
// changes nothing.
func Patch(g services.Grant) []jsonpatch.Operation {
	var out []jsonpatch.Operation
	if len(g.ClusterIPs) > 0 {
		out = append(out, jsonpatch.NewOperation("add", clusterIPPath, g.ClusterIPs[0]), jsonpatch.NewOperation("add", clusterIPsPath, g.ClusterIPs))
	}
	for _, i := range slices.Sorted(maps.Keys(g.NodePorts)) {
		out = append(out, jsonpatch.NewOperation("add", fmt.Sprintf(nodePortPath, i), g.NodePorts[i]))
	}
	if g.HealthCheckNodePort != 0 {
		out = append(out, jsonpatch.NewOperation("add", healthCheckPath, g.HealthCheckNodePort))
	}
	return out
}

// FromPatch is the inverse of Patch, of operations that were read from JSON.
func FromPatch(operations []jsonpatch.Operation) (g services.Grant, err error) {
	g.NodePorts = map[int]uint16{}
	for _, o := range operations {
		var i int
		switch _, scanErr := fmt.Sscanf(o.Path, nodePortPath, &i); {
		case o.Path == clusterIPPath: // the first of the list
		case o.Path == clusterIPsPath:
			list, _ := o.Value.([]any)
			for _, v := range list {
				g.ClusterIPs = append(g.ClusterIPs, fmt.Sprint(v))
			}
		case o.Path == healthCheckPath:
			g.HealthCheckNodePort, err = portOf(o.Value)
		case scanErr == nil:
			g.NodePorts[i], err = portOf(o.Value)
		default:
			err = fmt.Errorf("read grant: unknown path %s", o.Path)
		}
		if err != nil {
			return services.Grant{}, err
		}
	}
	return g, nil
}

func portOf(v any) (uint16, error) {
	n, err := strconv.ParseUint(fmt.Sprint(v), 10, 16)
	if err != nil {
		return 0, fmt.Errorf("read grant: %w", err)
	}
	return uint16(n), nil
}
