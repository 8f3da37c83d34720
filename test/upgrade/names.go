// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

// The tables of open connections, as this version names them and as those up to 0.1 do.
const (
	presentTable = "causeway-handover"
	formerTable  = "causeway-strays"
)

// rename is a condition that versions up to 0.1 write on an object and the one that
// this version writes instead, as "Type=Status". The objects of servicesToName and
// poolsToName are such that each type is there with something to do.
type rename struct {
	object          string // resource/name
	former, present string
}

var renames = []rename{
	{"loadbalancerpools/full", "Exhausted=True", "Available=False"},
	{"loadbalancerpools/full", "Overlapping=False", "Disjoint=True"},
	{"loadbalancerpools/of-nodes", "Exhausted=True", "Available=False"},
	{"loadbalancerpools/of-nodes", "Overlapping=True", "Disjoint=False"},
	{"loadbalancerpools/lan", "Exhausted=False", "Available=True"},
	{"clusterippools/outside", "OutsideServiceCIDR=True", "InServiceCIDR=False"},
	{"clusterippools/outside", "Overlapping=False", "Disjoint=True"},
	{"clusterippools/outside", "Strays=True", "InPolicy=False"},
	{"clusterippools/of-nodes", "Overlapping=True", "Disjoint=False"},
	{"nodeportpools/outside", "OutsideNodePortRange=True", "InNodePortRange=False"},
	{"nodeportpools/outside", "Overlapping=False", "Disjoint=True"},
	{"nodeportpools/outside", "Strays=True", "InPolicy=False"},
	{"loadbalanceraddresses/" + contested.String(), "Conflict=True", "Uncontested=False"},
	{"services/handed-back", "causeway.dev/EndpointSlices=False", "causeway.dev/EndpointSlicesManaged=False"},
	{"nodes/control-plane", "CausewayProxyMode=True", "CausewayProxyModeSupported=True"},
	{"nodes/node-1", "CausewayProxyMode=True", "CausewayProxyModeSupported=True"},
	{"nodes/node-2", "CausewayProxyMode=True", "CausewayProxyModeSupported=True"},
	{"nodes/node-3", "CausewayProxyMode=True", "CausewayProxyModeSupported=True"},
}

// formerAnnotation is one that only versions up to 0.1 write: on the IPAddress of a
// ClusterIP in quarantine.
const formerAnnotation = "causeway.dev/rests-until"

// contested is an address that a Service asks for and that the client has.
var contested = netip.MustParseAddr("192.0.2.212")

// servicesToName are Services about which there is something to say once
// poolsToName are there.
const servicesToName = `
apiVersion: v1
kind: Service
metadata: {name: in-no-pool, labels: {upgrade: in-no-pool}}
spec:
  type: NodePort
  selector: {app: none}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: handed-back, annotations: {causeway.dev/endpoint-slices: hand-back}}
spec:
  selector: {app: none}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: contested, annotations: {causeway.dev/addresses: 192.0.2.212}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv4]
  selector: {app: go-http}
  ports: [{name: http, port: 80, targetPort: http}]
`

const poolsToName = `
apiVersion: causeway.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: full}
spec: {addresses: [192.0.2.190/32], autoAssign: false}
---
apiVersion: v1
kind: Service
metadata: {name: fills, annotations: {causeway.dev/pool: full}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: SingleStack
  ipFamilies: [IPv4]
  selector: {app: go-http}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: causeway.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: of-nodes}
spec: {addresses: [192.0.2.11-192.0.2.12], autoAssign: false}
---
apiVersion: causeway.dev/v1alpha1
kind: ClusterIPPool
metadata: {name: outside}
spec:
  ranges: [203.0.113.1-203.0.113.9]
  serviceSelector: {matchLabels: {upgrade: in-no-pool}}
---
apiVersion: causeway.dev/v1alpha1
kind: ClusterIPPool
metadata: {name: of-nodes}
spec:
  ranges: [192.0.2.11-192.0.2.12]
  serviceSelector: {matchLabels: {upgrade: none}}
---
apiVersion: causeway.dev/v1alpha1
kind: ClusterIPPool
metadata: {name: short}
spec:
  ranges: [10.96.255.16/28]
  quarantine: 40s
  serviceSelector: {matchLabels: {upgrade: short-lived}}
---
apiVersion: causeway.dev/v1alpha1
kind: NodePortPool
metadata: {name: outside}
spec:
  ranges: [40000-40009]
  serviceSelector: {matchLabels: {upgrade: in-no-pool}}
`

// nameAll makes the objects of which renames speaks.
func (j *journey) nameAll(ctx context.Context) error {
	if err := j.Machine(lab.Client).AddAddress(lab.Interface, netip.PrefixFrom(contested, 32)); err != nil {
		return err
	}
	for _, manifests := range []string{servicesToName, poolsToName} {
		if _, err := j.Kubectl(ctx, strings.NewReader(manifests), "apply", "-f", "-"); err != nil {
			return err
		}
	}
	return j.hasNames(ctx, true)
}

// quarantine releases a ClusterIP, and waits until the former version keeps it from
// others.
func (j *journey) quarantine(ctx context.Context) error {
	const service = `{apiVersion: v1, kind: Service, metadata: {name: short-lived, labels: {upgrade: short-lived}}, spec: {ports: [{port: 80}]}}`
	if _, err := j.Kubectl(ctx, strings.NewReader(service), "apply", "-f", "-"); err != nil {
		return err
	}
	if _, err := j.Kubectl(ctx, nil, "delete", "service", "short-lived"); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return j.Wait(within, "an IPAddress in quarantine", func(ctx context.Context) (bool, string, error) {
		objects, err := j.objects(ctx)
		return slices.ContainsFunc(objects, func(o object) bool { return o.Metadata.Annotations[formerAnnotation] != "" }), "none", err
	})
}

// object is what all that can have conditions or annotations of Causeway have in
// common.
type object struct {
	Kind     string            `json:"kind"`
	Metadata metav1.ObjectMeta `json:"metadata"`
	Status   struct {
		Conditions []metav1.Condition `json:"conditions"`
	} `json:"status"`
}

func (o *object) is(name string) bool {
	resource, name, _ := strings.Cut(name, "/")
	return o.Metadata.Name == name && strings.HasPrefix(resource, strings.ToLower(o.Kind))
}

// objects are all that Causeway writes conditions or annotations to.
func (j *journey) objects(ctx context.Context) ([]object, error) {
	out, err := j.Kubectl(ctx, nil, "get", "causeway,services,nodes,ipaddresses", "-A", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []object `json:"items"`
	}
	err = json.Unmarshal([]byte(out), &list)
	return list.Items, err
}

// hasNames waits until the cluster has the names of the one version; those of the
// former version go when this one is installed.
func (j *journey) hasNames(ctx context.Context, former bool) error {
	within, cancel := context.WithTimeout(ctx, 90*time.Second) // quarantines end too
	defer cancel()
	what := "the names of this version"
	if former {
		what = "the names of the former version"
	}
	return j.Wait(within, what, func(ctx context.Context) (bool, string, error) {
		objects, err := j.objects(ctx)
		if err != nil {
			return false, "", err
		}
		wrong := wrongConditions(objects, former)
		if !former {
			wrong = append(wrong, formerNames(objects)...)
		}
		for _, n := range j.machines() {
			w, err := wrongTables(n, former)
			if err != nil {
				return false, "", err
			}
			wrong = append(wrong, w...)
		}
		return len(wrong) == 0, strings.Join(wrong, "; "), nil
	})
}

// wrongConditions are those that the version that is installed should have written
// and has not.
func wrongConditions(objects []object, former bool) (wrong []string) {
	for _, r := range renames {
		want := r.present
		if former {
			want = r.former
		}
		i := slices.IndexFunc(objects, func(o object) bool { return o.is(r.object) })
		if i < 0 {
			wrong = append(wrong, r.object+" is not there")
			continue
		}
		var have []string
		for _, c := range objects[i].Status.Conditions {
			have = append(have, c.Type+"="+string(c.Status))
		}
		if !slices.Contains(have, want) {
			wrong = append(wrong, fmt.Sprintf("%s has %v and not %s", r.object, have, want))
		}
	}
	return wrong
}

// formerNames are the names of the former version that are left.
func formerNames(objects []object) (left []string) {
	var types []string
	for _, r := range renames {
		former, _, _ := strings.Cut(r.former, "=")
		types = append(types, former)
	}
	for _, o := range objects {
		for _, c := range o.Status.Conditions {
			if slices.Contains(types, c.Type) {
				left = append(left, fmt.Sprintf("%s %s/%s still has condition %s", o.Kind, o.Metadata.Namespace, o.Metadata.Name, c.Type))
			}
		}
		if until, ok := o.Metadata.Annotations[formerAnnotation]; ok {
			left = append(left, fmt.Sprintf("%s %s still has annotation %s=%s", o.Kind, o.Metadata.Name, formerAnnotation, until))
		}
	}
	return left
}

// wrongTables are a node's tables of open connections that should be there and are
// not, or the other way round. A former version leaves this one's.
func wrongTables(n *lab.Node, former bool) (wrong []string, err error) {
	err = n.Namespace().Do(func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		for _, family := range nft.Families {
			tables, err := conn.Tables(family)
			if err != nil {
				return errors.Join(err, conn.Close())
			}
			want, not := presentTable, formerTable
			if former {
				want, not = formerTable, ""
			}
			if !slices.Contains(tables, want) {
				wrong = append(wrong, fmt.Sprintf("%s has no table %s %s", n.Name(), family, want))
			}
			if not != "" && slices.Contains(tables, not) {
				wrong = append(wrong, fmt.Sprintf("%s still has table %s %s", n.Name(), family, not))
			}
		}
		return conn.Close()
	})
	return wrong, err
}

// removeTables removes this version's tables of open connections from a node.
func removeTables(n *lab.Node) error {
	return n.Namespace().Do(func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		var tables []nft.Table
		for _, family := range nft.Families {
			tables = append(tables, nft.Table{Family: family, Name: presentTable})
		}
		return errors.Join(conn.RemoveTables(tables...), conn.Close())
	})
}
