// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"fmt"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// elements are values by element, "" where a set has none.
type elements map[elementID]string

// render gives the elements of one Service; nil has none.
func render(svc *model.Service, families []model.Family) elements {
	out := elements{}
	if svc == nil {
		return out
	}
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		for _, fam := range families {
			if f.Family() == fam {
				out.frontend(f)
			}
		}
	}
	return out
}

func (out elements) frontend(f *model.Frontend) {
	fam, key := f.Family(), frontendKey(f.Key)
	switch f.Kind {
	case model.ClusterIP:
		out[elementID{family: fam, set: setClusterIPs, key: string(f.Addr.AsSlice())}] = ""
	case model.LoadBalancerIP:
		out[elementID{family: fam, set: setLoadBalancerIPs, key: string(f.Addr.AsSlice())}] = ""
	}
	if !proxied(f.Protocol) {
		return
	}
	inside, outside := setServices, setServicesOutside
	if f.Kind == model.NodePort {
		inside, outside = setNodePorts, setNodePortsOutside
	}
	out[elementID{family: fam, set: inside, key: key}] = actionOf(f.Inside).data()
	if !f.Outside.Equal(f.Inside) {
		out[elementID{family: fam, set: outside, key: key}] = actionOf(f.Outside).data()
	}
	if f.Restricted {
		out[elementID{family: fam, set: setRestricted, key: key}] = ""
		for _, p := range f.SourceRanges {
			id := elementID{family: fam, set: setSourceRanges, key: key + string(p.Addr().AsSlice())}
			id.keyEnd = key + string(model.RangeOf(p).Last.AsSlice())
			out[id] = ""
		}
	}
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

// renderNode gives the elements that follow from the node alone.
func renderNode(n *model.Node, families []model.Family) elements {
	out := elements{}
	for _, fam := range families {
		var pods []netip.Prefix
		for _, p := range n.PodCIDRs {
			if model.FamilyOf(p.Addr()) == fam {
				pods = append(pods, p.Masked())
			}
		}
		for _, p := range model.Disjoint(pods) {
			out.addRange(elementID{family: fam, set: setLocalPods}, model.RangeOf(p))
		}
		for _, r := range n.NodePortRanges(fam) {
			out.addRange(elementID{family: fam, set: setNodePortAddresses}, r)
		}
	}
	return out
}

// addRange writes an inclusive range the way a single-part interval set wants
// it: its start, and the first address behind it marked as the end.
func (out elements) addRange(id elementID, r model.AddrRange) {
	id.key = string(r.First.AsSlice())
	out[id] = ""
	if next := r.Last.Next(); next.IsValid() {
		id.key, id.end = string(next.AsSlice()), true
		out[id] = ""
	}
}

// wanted adds up the elements of all Services: several can have the same.
type wanted map[elementID]*count

type count struct {
	value string
	refs  int
}

// replace takes elements out and puts others in. touched collects what may
// have changed.
func (w wanted) replace(out, in elements, touched map[elementID]bool) {
	for id := range out {
		touched[id] = true
		if c := w[id]; c != nil {
			if c.refs--; c.refs == 0 {
				delete(w, id)
			}
		}
	}
	for id, value := range in {
		touched[id] = true
		c := w[id]
		if c == nil {
			c = &count{}
			w[id] = c
		}
		c.value = value
		c.refs++
	}
}
