// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"fmt"
	"slices"

	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// render returns the elements of one Service; nil has none.
func render(svc *model.Service, families []model.Family) elements.Map[setID] {
	out := elements.Map[setID]{}
	if svc == nil {
		return out
	}
	for i := range svc.Frontends {
		if f := &svc.Frontends[i]; slices.Contains(families, f.Family()) {
			renderFrontend(out, f)
		}
	}
	return out
}

func renderFrontend(out elements.Map[setID], f *model.Frontend) {
	fam, key := f.Family(), elements.FrontendKey(f.Key)
	switch f.Kind {
	case model.ClusterIP:
		out.Address(setClusterIPs, f.Addr)
	case model.LoadBalancerIP:
		out.Address(setLoadBalancerIPs, f.Addr)
	}
	if !proxied(f.Protocol) {
		return
	}
	inside, outside := setServices, setServicesOutside
	if f.Kind == model.NodePort {
		inside, outside = setNodePorts, setNodePortsOutside
	}
	out[elementID{Family: fam, Set: inside, Key: key}] = actionOf(f.Inside).data()
	if !f.Outside.Equal(f.Inside) {
		out[elementID{Family: fam, Set: outside, Key: key}] = actionOf(f.Outside).data()
	}
	out.SourceRanges(f, setRestricted, setSourceRanges)
}

func actionOf(t *model.Target) action {
	switch t.Action {
	case model.Reject:
		return actionReject
	case model.Drop:
		return actionDrop
	}
	return Mark
}

// proxied says whether the mode does a protocol at all.
func proxied(p model.Protocol) bool { return p == model.TCP || p == model.UDP }

// problems are what the mode cannot do of a Service.
func problems(svc *model.Service) []model.Problem {
	var ps []model.Problem
	seen := map[uint16]bool{}
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		if proxied(f.Protocol) || f.Kind != model.ClusterIP || seen[f.Port] {
			continue
		}
		seen[f.Port] = true
		ps = append(ps, model.Problem{Service: svc.Name, Reason: "ProtocolUnsupported", Message: fmt.Sprintf(
			"port %d/%s is not served by this node: proxy mode userspace carries TCP and UDP only; use mode nftables, iptables or ipvs for it",
			f.Port, f.Protocol)})
	}
	return ps
}
