// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/observe"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
)

// agents is the label of the agents' Pods.
const agents = "app.kubernetes.io/name=causeway-agent"

// journey is the way there and back.
type journey struct {
	*lab.Lab
	watch   *observe.Watch
	service []netip.Addr // the Service under observation
	streams []stream
	held    []*held
	given   map[string]string // load balancer addresses, by Service
	lost    []string
}

func run(ctx context.Context, l *lab.Lab) error {
	watch, err := observe.Start(l.Machine(lab.Client), lab.Interface)
	if err != nil {
		return err
	}
	defer watch.Close()
	j := &journey{Lab: l, watch: watch}
	if err := j.install(ctx); err != nil {
		return err
	}
	if err := j.begin(ctx); err != nil {
		return err
	}
	defer func() {
		for _, s := range j.streams {
			s.stop()
		}
	}()
	if err := j.phase(ctx, "nothing changes", 0, func(ctx context.Context) error { return sleep(ctx, 3*time.Second) }); err != nil {
		return err
	}
	for _, down := range []bool{false, true} {
		if err := j.travel(ctx, down); err != nil {
			return err
		}
	}
	for _, down := range []bool{false, true} {
		if err := j.atOnce(ctx, down); err != nil {
			return err
		}
	}
	if len(j.lost) > 0 {
		return errors.New("something was lost:\n  " + strings.Join(j.lost, "\n  "))
	}
	return nil
}

// install installs the former version, and what clients ask.
func (j *journey) install(ctx context.Context) error {
	manifests, err := render(ctx, j.Lab, true, true)
	if err != nil {
		return err
	}
	if _, err := j.Kubectl(ctx, strings.NewReader(manifests), "apply", "-f", "-"); err != nil {
		return err
	}
	if err := j.WaitInstalled(ctx); err != nil {
		return err
	}
	if err := j.Wait(ctx, "the webhooks", func(ctx context.Context) (bool, string, error) {
		err := j.Apply(ctx, "config/samples/go-http")
		return err == nil, "", err
	}); err != nil {
		return err
	}
	// For the Services that share across namespaces. Versions that do not know the field
	// drop it, and let all share.
	if _, err := j.Kubectl(ctx, nil, "patch", "loadbalancerpools", "lan", "--type=merge", "-p", `{"spec":{"sharing":"Cluster"}}`); err != nil {
		return err
	}
	if _, err := j.Kubectl(ctx, strings.NewReader(echoManifests), "apply", "-f", "-"); err != nil {
		return err
	}
	for _, name := range []string{"go-http", "echo"} {
		if err := j.WaitDeployment(ctx, "default", name); err != nil {
			return err
		}
	}
	return j.nameAll(ctx)
}

const echoManifests = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      nodeSelector: {kubernetes.io/hostname: control-plane}
      tolerations: [{operator: Exists}]
      containers: [{name: echo, image: echo, ports: [{containerPort: 38002, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: echo}
  ports: [{name: echo, port: 7, protocol: UDP, targetPort: 38002}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  type: LoadBalancer
  sessionAffinity: ClientIP
  selector: {app: go-http}
  ports: [{name: http, port: 30001, targetPort: http}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: scaled}
spec:
  replicas: 3
  selector: {matchLabels: {app: scaled}}
  template:
    metadata: {labels: {app: scaled}}
    spec: {containers: [{name: server, image: go-http, ports: [{name: http, containerPort: 38001}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: scaled}
spec:
  selector: {app: scaled}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: v1
kind: Service
metadata: {name: shares, annotations: {causeway.dev/sharing-key: key, causeway.dev/addresses: 192.0.2.210}}
spec:
  type: LoadBalancer
  selector: {app: go-http}
  ports: [{name: http, port: 81, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: shares, namespace: other, annotations: {causeway.dev/sharing-key: key, causeway.dev/addresses: 192.0.2.210}}
spec:
  type: LoadBalancer
  selector: {app: go-http}
  ports: [{name: http, port: 82, targetPort: http}]
`

// addresses waits for a Service's.
func (j *journey) addresses(ctx context.Context, name string) (addresses []netip.Addr, clusterIPs []string, err error) {
	err = j.Wait(ctx, "addresses of "+name, func(ctx context.Context) (bool, string, error) {
		s, err := j.Kubernetes.CoreV1().Services("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		addresses, clusterIPs = nil, s.Spec.ClusterIPs
		for _, ingress := range s.Status.LoadBalancer.Ingress {
			addresses = append(addresses, netip.MustParseAddr(ingress.IP))
		}
		return len(addresses) == len(s.Spec.ClusterIPs), fmt.Sprint(addresses), nil
	})
	return addresses, clusterIPs, err
}

// all gives the load balancer addresses of every Service.
func (j *journey) all(ctx context.Context) (map[string]string, error) {
	list, err := j.Kubernetes.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	given := map[string]string{}
	for _, s := range list.Items {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			var addresses []string
			for _, ingress := range s.Status.LoadBalancer.Ingress {
				addresses = append(addresses, ingress.IP)
			}
			given[s.Namespace+"/"+s.Name] = strings.Join(addresses, ", ")
		}
	}
	return given, nil
}

// begin starts the traffic.
func (j *journey) begin(ctx context.Context) error {
	web, internal, err := j.addresses(ctx, "go-http")
	if err != nil {
		return err
	}
	j.service = web
	udp, _, err := j.addresses(ctx, "echo")
	if err != nil {
		return err
	}
	if _, _, err := j.addresses(ctx, "shares"); err != nil {
		return err
	}
	sticky, _, err := j.addresses(ctx, "sticky")
	if err != nil {
		return err
	}
	if err := j.Wait(ctx, "all addresses", func(ctx context.Context) (bool, string, error) {
		j.given, err = j.all(ctx)
		return !slices.Contains(slices.Collect(maps.Values(j.given)), ""), fmt.Sprint(j.given), err
	}); err != nil {
		return err
	}
	frontend := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	client, node := j.Machine(lab.Client), j.Machine(lab.ControlPlane)
	for _, a := range append(slices.Clone(web), sticky...) {
		if err := j.Wait(ctx, "an answer", func(ctx context.Context) (bool, string, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := traffic.Ask(ctx, client, frontend(a, 30001))
			return err == nil, "", err
		}); err != nil {
			return err
		}
	}
	for _, a := range udp {
		if err := j.Wait(ctx, "an echo", func(ctx context.Context) (bool, string, error) {
			err := ping(ctx, client, frontend(a, 7))
			return err == nil, "", err
		}); err != nil {
			return err
		}
	}
	for _, a := range web {
		h, err := hold(ctx, j.Lab, "open connections to "+a.String(), frontend(a, 30001))
		if err != nil {
			return err
		}
		j.held = append(j.held, h)
		j.streams = append(j.streams, requests(ctx, "requests to "+a.String(), client, frontend(a, 30001)))
	}
	for _, a := range udp {
		j.streams = append(j.streams, datagrams(ctx, "datagrams to "+a.String(), client, frontend(a, 7)))
	}
	j.streams = append(j.streams,
		requests(ctx, "requests with affinity", client, frontend(sticky[0], 30001)),
		requests(ctx, "requests of a node to ClusterIP "+internal[0], node, frontend(netip.MustParseAddr(internal[0]), 30001)))
	return nil
}

// phase does something under traffic and says what was lost, and allows an outage
// of that long.
func (j *journey) phase(ctx context.Context, name string, allowed time.Duration, do func(context.Context) error) error {
	begun := time.Now()
	if err := do(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := sleep(ctx, 1500*time.Millisecond); err != nil {
		return err
	}
	ended := time.Now()
	if err := sleep(ctx, patience+500*time.Millisecond); err != nil { // until the last is answered, or not
		return err
	}
	fmt.Printf("\n%s (%.1f s)\n", name, ended.Sub(begun).Seconds())
	for _, s := range j.streams {
		results := s.results().Since(begun).Until(ended)
		failed := results.Failed()
		line := fmt.Sprintf("%-46s %5d sent, %d lost", s.name, len(results), len(failed))
		if len(failed) > 0 {
			line += fmt.Sprintf(", outage %s from %s: %v", results.LongestOutage().Round(time.Millisecond), failed[0].Sent.Format("05.000"), failed[0].Err)
		}
		if s.name == "requests with affinity" {
			line += fmt.Sprintf("; %d servers", len(results.Hosts()))
		}
		fmt.Println("  " + line)
		if len(failed) > 0 && results.LongestOutage() > allowed {
			j.lost = append(j.lost, name+": "+line)
		}
	}
	for i, h := range j.held {
		errs := h.Check(ctx, patience)
		line := fmt.Sprintf("%-46s %d of %d lost", h.name, len(errs), 12)
		if len(errs) > 0 {
			line += ": " + errs[0].Error()
			if allowed == 0 {
				j.lost = append(j.lost, name+": "+line)
			}
			h.Close()
			again, err := hold(ctx, j.Lab, h.name, netip.AddrPortFrom(j.service[i], 30001).String())
			if err != nil {
				return err
			}
			j.held[i] = again
		}
		fmt.Println("  " + line)
	}
	given, err := j.all(ctx)
	if err != nil {
		return err
	}
	if !maps.Equal(given, j.given) {
		j.lost = append(j.lost, fmt.Sprintf("%s: addresses were %v, are %v", name, j.given, given))
		j.given = given
	}
	for _, a := range j.service {
		if _, err := j.announcer(ctx, a); err != nil {
			j.lost = append(j.lost, name+": "+err.Error())
			fmt.Println("  ", err)
		}
	}
	return nil
}

// announcer is the one node that answers for an address.
func (j *journey) announcer(ctx context.Context, a netip.Addr) (node *lab.Node, err error) {
	within, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = j.Wait(within, "one announcer of "+a.String(), func(ctx context.Context) (bool, string, error) {
		macs, err := j.watch.Ask(ctx, a, 200*time.Millisecond)
		if err != nil || len(macs) != 1 {
			return false, fmt.Sprint(macs), err
		}
		for _, n := range j.Nodes() {
			if n.MAC() == macs[0] {
				node = n
			}
		}
		return node != nil, macs[0], nil
	})
	return node, err
}

// travel goes up, or down.
func (j *journey) travel(ctx context.Context, down bool) error {
	way, of := "up", "new"
	if down {
		way, of = "down", "former"
	}
	manifests, err := render(ctx, j.Lab, down, true)
	if err != nil {
		return err
	}
	if err := j.phase(ctx, way+": controllers", 0, func(ctx context.Context) error {
		if err := j.before(ctx, down); err != nil {
			return err
		}
		if _, err := j.Kubectl(ctx, strings.NewReader(manifests), "apply", "-f", "-"); err != nil {
			return err
		}
		return j.WaitDeployment(ctx, lab.SystemNamespace, "causeway-controller")
	}); err != nil {
		return err
	}
	if err := j.followed(ctx, 4); err != nil {
		return err
	}
	a := j.service[0]
	first, err := j.announcer(ctx, a)
	if err != nil {
		return err
	}
	var others []*lab.Node
	for _, n := range j.Nodes() {
		if n != first {
			others = append(others, n)
		}
	}
	second := others[0]
	if err := j.phase(ctx, way+": a "+of+" agent on "+second.Name(), 0, func(ctx context.Context) error { return j.replace(ctx, second.Name()) }); err != nil {
		return err
	}
	if err := j.phase(ctx, fmt.Sprintf("%s: %s moves to the %s agent of %s", way, a, of, second.Name()), 0, func(ctx context.Context) error { return j.move(ctx, a, second) }); err != nil {
		return err
	}
	if err := j.phase(ctx, fmt.Sprintf("%s: %s moves back to %s", way, a, first.Name()), 0, func(ctx context.Context) error { return j.move(ctx, a, first) }); err != nil {
		return err
	}
	if err := j.phase(ctx, way+": no node is cordoned any more", 0, j.preferAll); err != nil {
		return err
	}
	for _, n := range []*lab.Node{second, first} {
		if err := j.phase(ctx, fmt.Sprintf("%s: %s loses its power", way, n.Name()), 3*time.Second, func(ctx context.Context) error { return j.powerOff(ctx, n) }); err != nil {
			return err
		}
		if err := j.phase(ctx, fmt.Sprintf("%s: %s is back", way, n.Name()), patience, func(ctx context.Context) error { return j.powerOn(ctx, n) }); err != nil {
			return err
		}
	}
	for _, n := range j.machines() {
		if ok, err := j.isNew(ctx, n.Name()); err != nil || ok {
			if err != nil {
				return err
			}
			continue
		}
		if err := j.phase(ctx, fmt.Sprintf("%s: a %s agent on %s", way, of, n.Name()), 0, func(ctx context.Context) error { return j.replace(ctx, n.Name()) }); err != nil {
			return err
		}
	}
	if err := errors.Join(j.followed(ctx, 3), j.after(ctx, down)); err != nil || down {
		return err
	}
	if err := j.phase(ctx, "up: agents of the new version alone", 0, func(ctx context.Context) error { return j.move(ctx, a, second) }); err != nil {
		return err
	}
	// One whose EndpointSlices have never been the former version's.
	_, err = j.Kubectl(ctx, strings.NewReader(lateManifest), "apply", "-f", "-")
	return errors.Join(err, j.followed(ctx, 3))
}

// atOnce goes up or down as `kubectl apply -k` does, with the DaemonSet's own
// strategy.
func (j *journey) atOnce(ctx context.Context, down bool) error {
	way := "up"
	if down {
		way = "down"
	}
	manifests, err := render(ctx, j.Lab, down, false)
	if err != nil {
		return err
	}
	if err := j.phase(ctx, way+": all at once", 0, func(ctx context.Context) error {
		if err := j.before(ctx, down); err != nil {
			return err
		}
		if _, err := j.Kubectl(ctx, strings.NewReader(manifests), "apply", "-f", "-"); err != nil {
			return err
		}
		_, err := j.Kubectl(ctx, nil, "-n", lab.SystemNamespace, "rollout", "status", "daemonset/causeway-agent")
		return errors.Join(err, j.WaitDeployment(ctx, lab.SystemNamespace, "causeway-controller"))
	}); err != nil {
		return err
	}
	return errors.Join(j.followed(ctx, 4), j.after(ctx, down))
}

const lateManifest = `
apiVersion: v1
kind: Service
metadata: {name: late}
spec:
  selector: {app: scaled}
  ports: [{name: http, port: 80, targetPort: http}]
`

// followed scales a Deployment and waits until its Services' slices have its Pods, as
// many as there are and no more.
func (j *journey) followed(ctx context.Context, servers int) error {
	if _, err := j.Kubectl(ctx, nil, "scale", "deployment/scaled", fmt.Sprintf("--replicas=%d", servers)); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return j.Wait(within, "the EndpointSlices", func(ctx context.Context) (bool, string, error) {
		list, err := j.Kubernetes.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, "", err
		}
		ready := map[string]int{}
		for _, s := range list.Items {
			service := s.Labels[discoveryv1.LabelServiceName]
			if service != "scaled" && service != "late" {
				continue
			}
			for _, e := range s.Endpoints {
				if e.Conditions.Ready == nil || *e.Conditions.Ready {
					ready[service+" "+string(s.AddressType)]++
				}
			}
		}
		for _, n := range ready {
			if n != servers {
				return false, fmt.Sprintf("want %d: %v", servers, ready), nil
			}
		}
		return len(ready) > 0, fmt.Sprint(ready), nil
	})
}

// before is what comes before the manifests of a version are applied.
func (j *journey) before(ctx context.Context, down bool) error {
	if down {
		return j.beforeDown(ctx)
	}
	return j.quarantine(ctx)
}

// after looks for the names of the version that is installed now. After the former one
// is, it removes the tables of this version, as docs/upgrade.md says.
func (j *journey) after(ctx context.Context, down bool) error {
	if err := j.hasNames(ctx, down); err != nil || !down {
		return err
	}
	for _, n := range j.machines() {
		if err := removeTables(n); err != nil {
			return err
		}
	}
	return nil
}

// machines are all nodes.
func (j *journey) machines() []*lab.Node { return append(j.Nodes()[:3:3], j.Node(lab.ControlPlane)) }

// beforeDown is what docs/upgrade.md says to do before a former version is applied:
// nothing if it has AgentKeys.
func (j *journey) beforeDown(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(formerTree(j.Setup.Source), "config/crd/bases/causeway.dev_agentkeys.yaml")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := j.Kubectl(ctx, nil, "-n", lab.SystemNamespace, "patch", "deployment", "causeway-controller", "--type=json",
		"-p", `[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--endpoint-slices-own-name"}]`); err != nil {
		return err
	}
	if err := j.WaitDeployment(ctx, lab.SystemNamespace, "causeway-controller"); err != nil {
		return err
	}
	if err := j.Wait(ctx, "slices to have the former name", func(ctx context.Context) (bool, string, error) {
		list, err := j.Kubernetes.DiscoveryV1().EndpointSlices("").List(ctx, metav1.ListOptions{LabelSelector: "causeway.dev/kept-by"})
		if err != nil {
			return false, "", err
		}
		return len(list.Items) == 0, fmt.Sprint(len(list.Items)), nil
	}); err != nil {
		return err
	}
	_, err := j.Kubectl(ctx, nil, "delete", "crd", "agentkeys.causeway.dev")
	return err
}

// agent is the agent's Pod on a node.
func (j *journey) agent(ctx context.Context, node string) (*corev1.Pod, error) {
	pods, err := j.Kubernetes.CoreV1().Pods(lab.SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: agents, FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp == nil {
			return &pods.Items[i], nil
		}
	}
	return nil, nil
}

// isNew tells whether the agent of a node is of the DaemonSet's present template.
func (j *journey) isNew(ctx context.Context, node string) (bool, error) {
	ds, err := j.Kubernetes.AppsV1().DaemonSets(lab.SystemNamespace).Get(ctx, "causeway-agent", metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	pod, err := j.agent(ctx, node)
	if err != nil || pod == nil {
		return false, err
	}
	return pod.Spec.Containers[0].Image == ds.Spec.Template.Spec.Containers[0].Image, nil
}

// replace deletes the agent of a node and waits for the next.
func (j *journey) replace(ctx context.Context, node string) error {
	pod, err := j.agent(ctx, node)
	if err != nil {
		return err
	}
	if err := j.Kubernetes.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	return j.Wait(ctx, "an agent on "+node, func(ctx context.Context) (bool, string, error) {
		next, err := j.agent(ctx, node)
		if err != nil || next == nil || next.Name == pod.Name {
			return false, "none", err
		}
		for _, c := range next.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return true, "", nil
			}
		}
		return false, "not ready", nil
	})
}

// move has an address move to a node, by way of cordons: the one that is left.
func (j *journey) move(ctx context.Context, a netip.Addr, to *lab.Node) error {
	for _, n := range j.Nodes() {
		if err := j.cordon(ctx, n.Name(), n != to); err != nil {
			return err
		}
	}
	return j.Wait(ctx, a.String()+" on "+to.Name(), func(ctx context.Context) (bool, string, error) {
		now, err := j.announcer(ctx, a)
		if err != nil {
			return false, "", err
		}
		return now == to, "on " + now.Name(), nil
	})
}

func (j *journey) preferAll(ctx context.Context) error {
	for _, n := range j.Nodes() {
		if err := j.cordon(ctx, n.Name(), false); err != nil {
			return err
		}
	}
	return nil
}

func (j *journey) cordon(ctx context.Context, node string, yes bool) error {
	patch := fmt.Appendf(nil, `{"spec":{"unschedulable":%v}}`, yes)
	_, err := j.Kubernetes.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// powerOff pulls a node's plug, and waits until others answer for all that it had.
func (j *journey) powerOff(ctx context.Context, n *lab.Node) error {
	for _, a := range j.service {
		now, err := j.announcer(ctx, a)
		if err != nil {
			return err
		}
		fmt.Printf("  (%s was announced by %s)\n", a, now.Name())
	}
	if err := n.PowerOff(); err != nil {
		return err
	}
	for _, a := range j.service {
		if _, err := j.announcer(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// powerOn starts it again, and waits until its Pods have been started anew and the
// slices have their new addresses: until its kubelet has looked at them they count as
// ready, and the controller that led may have been there.
func (j *journey) powerOn(ctx context.Context, n *lab.Node) error {
	before := time.Now().Truncate(time.Second)
	if err := n.PowerOn(); err != nil {
		return err
	}
	if err := j.Wait(ctx, "the Pods of "+n.Name(), func(ctx context.Context) (bool, string, error) {
		pods, err := j.Kubernetes.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + n.Name()})
		if err != nil {
			return false, "", err
		}
		for _, p := range pods.Items {
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Running == nil || c.State.Running.StartedAt.Time.Before(before) || !c.Ready {
					return false, p.Name, nil
				}
			}
		}
		return true, "", nil
	}); err != nil {
		return err
	}
	if err := j.Wait(ctx, "the new addresses in the slices", func(ctx context.Context) (bool, string, error) {
		pods, err := j.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http"})
		if err != nil {
			return false, "", err
		}
		list, err := j.Kubernetes.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=go-http"})
		if err != nil {
			return false, "", err
		}
		var have, want []string
		for _, s := range list.Items {
			for _, e := range s.Endpoints {
				have = append(have, e.Addresses...)
			}
		}
		for _, p := range pods.Items {
			for _, ip := range p.Status.PodIPs {
				want = append(want, ip.IP)
			}
		}
		slices.Sort(have)
		slices.Sort(want)
		return slices.Equal(have, want), fmt.Sprintf("%v, Pods %v", have, want), nil
	}); err != nil {
		return err
	}
	return errors.Join(j.WaitDaemonSet(ctx, lab.SystemNamespace, "causeway-agent", len(j.Nodes())+1), j.WaitDeployment(ctx, "default", "go-http"))
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
