// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// PortTaken is the error of a port that a Service that came first serves at the
// same address.
const PortTaken = "causeway.dev/PortTaken"

// Ensure implements provisioner.Provisioner. The agents serve and announce; it
// reports what they say. Where two Services share an address and have the same
// port, the one that came first serves it and the others get an error at that
// port.
func (p *Provisioner) Ensure(_ context.Context, want provisioner.Desired) (provisioner.Result, error) {
	var out provisioner.Result
	records := make([]Record, 0, len(want.Addresses))
	for _, a := range want.Addresses {
		r, ok := p.Index.Lookup(a)
		if !ok {
			r = Record{Address: a}
		}
		records = append(records, r)
		out.Ingress = append(out.Ingress, provisioner.Ingress{
			Address: a, IPMode: corev1.LoadBalancerIPModeVIP, PortErrors: p.portErrors(want, r),
		})
	}
	if len(records) > 0 {
		out.Conditions = []metav1.Condition{announced(records)}
	}
	return out, nil
}

// portErrors are the ports that an earlier owner of the record has, too.
func (p *Provisioner) portErrors(want provisioner.Desired, r Record) map[provisioner.Port]string {
	var errs map[provisioner.Port]string
	for _, o := range r.Owners {
		if o.Is(want.Owner) {
			break
		}
		for _, port := range p.Ports(o) {
			if !slices.ContainsFunc(want.Ports, func(sp provisioner.ServicePort) bool { return sp.Port == port }) {
				continue
			}
			if errs == nil {
				errs = map[provisioner.Port]string{}
			}
			errs[port] = PortTaken
		}
	}
	return errs
}

// announced sums up what the agents say of a Service's addresses: the worst
// state of one is that of all, and the message has a part for each.
func announced(records []Record) metav1.Condition {
	worst := metav1.Condition{Type: v1alpha1.ServiceAnnounced, Status: metav1.ConditionTrue, Reason: "Announced"}
	var parts []string
	for _, r := range records {
		c := announcedAt(r)
		parts = append(parts, c.Message)
		if rank(c.Status) > rank(worst.Status) {
			worst.Status, worst.Reason = c.Status, c.Reason
		}
	}
	worst.Message = strings.Join(parts, "; ")
	return worst
}

func announcedAt(r Record) metav1.Condition {
	a := r.Announcement
	switch {
	case a.Conflict != "":
		return metav1.Condition{Status: metav1.ConditionFalse, Reason: "AddressConflict",
			Message: fmt.Sprintf("%s is not announced: %s", r.Address, a.Conflict)}
	case a.Status == metav1.ConditionTrue || a.Status == "" && a.Node != "":
		return metav1.Condition{Status: metav1.ConditionTrue, Message: fmt.Sprintf("%s is announced by %s", r.Address, where(a))}
	case a.Status == "" || a.Status == metav1.ConditionUnknown:
		return metav1.Condition{Status: metav1.ConditionUnknown, Reason: "NoReport",
			Message: fmt.Sprintf("No agent has said whether it announces %s: see that the agents run on the nodes that its pool selects", r.Address)}
	}
	return metav1.Condition{Status: metav1.ConditionFalse, Reason: cmp.Or(a.Reason, "NotAnnounced"),
		Message: fmt.Sprintf("%s is not announced: %s", r.Address, cmp.Or(a.Message, "no node is eligible"))}
}

func where(a Announcement) string {
	switch {
	case a.Node == "":
		return "an unnamed node"
	case a.Interface == "":
		return a.Node
	}
	return a.Node + " on " + a.Interface
}

func rank(s metav1.ConditionStatus) int {
	return slices.Index([]metav1.ConditionStatus{metav1.ConditionTrue, metav1.ConditionUnknown, metav1.ConditionFalse}, s)
}

// Sharers returns the other Services that hold an address together with owner.
func (x *Index) Sharers(owner alloc.Owner) []alloc.Owner {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []alloc.Owner
	for a := range x.byOwner[nameOf(owner)] {
		r := x.records[a]
		out = append(out, r.others(owner)...)
	}
	return out
}
