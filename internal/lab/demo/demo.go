// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/observe"
	"github.com/causeway-lb/causeway/internal/lab/traffic"
)

// Result is the outcome of a demonstration.
type Result struct {
	Service      string `json:"service"`
	Address      string `json:"address"`
	ClusterIP    string `json:"clusterIP"`
	NodePort     int32  `json:"nodePort"`
	Announcer    string `json:"announcer"`
	NewAnnouncer string `json:"newAnnouncer"`
	// Responses counts answers by Pod, before the failure.
	Responses map[string]int `json:"responses"`
	// FailoverSeconds is from the announcer's death to the first answer to a
	// request that was sent after it, and after which none failed any more.
	FailoverSeconds float64 `json:"failoverSeconds"`
	// ReadySeconds is from kubectl apply of the manifests to the first answer
	// at the load balancer's address.
	ReadySeconds float64 `json:"readySeconds"`
}

// The demonstration's limits: it fails when something takes longer.
const (
	installLimit = 60 * time.Second
	serviceLimit = 30 * time.Second
	// steadyFor is how long requests must succeed after the failure before
	// the client counts as recovered.
	steadyFor = 3 * time.Second
	// recoverLimit is how long it may take until then.
	recoverLimit = 30 * time.Second
	requests     = 60
)

// install installs Causeway as a user does.
func install(ctx context.Context, l *lab.Lab, p *printer) error {
	p.Title("Causeway: kubectl apply -k config/overlays/lab")
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	if err := l.Install(ctx); err != nil {
		return err
	}
	p.Step("Controller and %d agents are ready; each authenticates as its ServiceAccount", len(l.Nodes())+1)
	return nil
}

// demonstration is the state between the parts.
type demonstration struct {
	l      *lab.Lab
	p      *printer
	watch  *observe.Watch
	result Result
	// service and addresses of the sample, and its frontend.
	service   *corev1.Service
	address   netip.Addr
	frontend  string
	announcer *lab.Node
}

// demonstrate shows a LoadBalancer Service from manifest to packet and then
// takes its node away.
func demonstrate(ctx context.Context, l *lab.Lab, options Options, p *printer) error {
	watch, err := observe.Start(l.Machine(lab.Client), lab.Interface)
	if err != nil {
		return err
	}
	defer watch.Close()
	d := &demonstration{l: l, p: p, watch: watch}
	for _, part := range []func(context.Context) error{d.apply, d.ask, d.request, d.kill} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	if err := d.write(options.Result); err != nil {
		return err
	}
	p.Success("All of it worked: %.0f ms after %s died, every request to %s is answered again.",
		1000*d.result.FailoverSeconds, d.result.Announcer, d.address)
	return nil
}

// apply applies the sample and waits for Pods, an address and an answer.
func (d *demonstration) apply(ctx context.Context) error {
	d.p.Title("A Service: kubectl apply -k config/samples/go-http")
	ctx, cancel := context.WithTimeout(ctx, serviceLimit)
	defer cancel()
	began := time.Now()
	// The webhook's endpoints reach the API server's node a moment after the
	// controller is ready.
	if err := d.l.Wait(ctx, "kubectl apply", func(ctx context.Context) (bool, string, error) {
		err := d.l.Apply(ctx, "config/samples/go-http")
		return err == nil, "", err
	}); err != nil {
		return err
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.l.WaitDeployment(groupCtx, "default", "go-http") })
	group.Go(func() error { return d.waitAddress(groupCtx) })
	if err := group.Wait(); err != nil {
		return err
	}
	if err := d.printPods(ctx); err != nil {
		return err
	}
	if err := d.l.Wait(ctx, "an answer of "+d.frontend, func(ctx context.Context) (bool, string, error) {
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		_, err := traffic.Ask(ctx, d.l.Machine(lab.Client), d.frontend)
		return err == nil, "", err
	}); err != nil {
		return err
	}
	d.result.ReadySeconds = seconds(time.Since(began))
	d.p.Step("First answer from %s, %.1f s after kubectl apply began", d.frontend, d.result.ReadySeconds)
	return nil
}

func (d *demonstration) waitAddress(ctx context.Context) error {
	err := d.l.Wait(ctx, "an address for Service default/go-http", func(ctx context.Context) (bool, string, error) {
		service, err := d.l.Kubernetes.CoreV1().Services("default").Get(ctx, "go-http", metav1.GetOptions{})
		if err != nil {
			return false, "", err
		}
		d.service = service
		return len(service.Status.LoadBalancer.Ingress) >= len(service.Spec.ClusterIPs), "pending", nil
	})
	if err != nil {
		return err
	}
	port := d.service.Spec.Ports[0]
	if d.address, err = netip.ParseAddr(d.service.Status.LoadBalancer.Ingress[0].IP); err != nil {
		return fmt.Errorf("read address of Service default/go-http: %w", err)
	}
	d.frontend = netip.AddrPortFrom(d.address, uint16(port.Port)).String()
	d.result.Service = "default/go-http"
	d.result.Address = d.address.String()
	d.result.ClusterIP = d.service.Spec.ClusterIP
	d.result.NodePort = port.NodePort
	addresses := []string{}
	for _, ingress := range d.service.Status.LoadBalancer.Ingress {
		addresses = append(addresses, ingress.IP)
	}
	d.p.Step("Service go-http has %s on the LAN (ClusterIP %s, NodePort %d)", strings.Join(addresses, " and "), d.service.Spec.ClusterIP, port.NodePort)
	return nil
}

func (d *demonstration) printPods(ctx context.Context) error {
	pods, err := d.l.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http"})
	if err != nil {
		return fmt.Errorf("list Pods: %w", err)
	}
	d.p.Step("%d Pods are ready", len(pods.Items))
	for _, pod := range pods.Items {
		d.p.Note("%-26s %-12s %s", pod.Name, pod.Status.PodIP, pod.Spec.NodeName)
	}
	return nil
}

// ask asks the LAN who has each address: exactly one node may answer.
func (d *demonstration) ask(ctx context.Context) error {
	d.p.Title("The client asks the LAN who has them")
	for _, ingress := range d.service.Status.LoadBalancer.Ingress {
		address, err := netip.ParseAddr(ingress.IP)
		if err != nil {
			return fmt.Errorf("read address of Service default/go-http: %w", err)
		}
		node, mac, err := d.whoHas(ctx, address)
		if err != nil {
			return err
		}
		d.p.Step("%s answers: %s is at %s; nobody else does", node.Name(), address, mac)
		if address == d.address {
			d.announcer = node
			d.result.Announcer = node.Name()
		}
	}
	return nil
}

// whoHas asks by ARP or neighbour discovery and finds the node by its MAC.
func (d *demonstration) whoHas(ctx context.Context, address netip.Addr) (*lab.Node, string, error) {
	macs, err := d.watch.Ask(ctx, address, 500*time.Millisecond)
	if err != nil {
		return nil, "", err
	}
	if len(macs) != 1 {
		return nil, "", fmt.Errorf("%d answers to who has %s, want one: %s", len(macs), address, strings.Join(macs, ", "))
	}
	for _, node := range d.l.Nodes() {
		if node.MAC() == macs[0] {
			return node, macs[0], nil
		}
	}
	return nil, "", fmt.Errorf("%s says that it has %s, and is none of the nodes", macs[0], address)
}

// request asks until every Pod has answered.
func (d *demonstration) request(ctx context.Context) error {
	d.p.Title("The client sends %d requests to http://%s", requests, d.frontend)
	ctx, cancel := context.WithTimeout(ctx, serviceLimit)
	defer cancel()
	d.result.Responses = map[string]int{}
	var last any
	for range requests {
		answer, err := traffic.Ask(ctx, d.l.Machine(lab.Client), d.frontend)
		if err != nil {
			return fmt.Errorf("request to %s: %w", d.frontend, err)
		}
		d.result.Responses[answer.Host]++
		last = answer
	}
	text, err := json.Marshal(last)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	d.p.Step("All answered, by %d Pods; the last one: %s", len(d.result.Responses), text)
	for _, pod := range slices.Sorted(maps.Keys(d.result.Responses)) {
		d.p.Note("%-26s %3d  %s", pod, d.result.Responses[pod], strings.Repeat("▇", d.result.Responses[pod]))
	}
	if len(d.result.Responses) != int(*replicas(ctx, d.l)) {
		return errors.New("not every Pod has answered")
	}
	return nil
}

func replicas(ctx context.Context, l *lab.Lab) *int32 {
	deployment, err := l.Kubernetes.AppsV1().Deployments("default").Get(ctx, "go-http", metav1.GetOptions{})
	if err != nil {
		return new(int32)
	}
	return deployment.Spec.Replicas
}

// kill takes the announcing node away while requests are running.
func (d *demonstration) kill(ctx context.Context) error {
	d.p.Title("%s dies: every process killed, the link cut", d.announcer.Name())
	generator := traffic.Generate(ctx, traffic.Config{From: d.l.Machine(lab.Client), Address: d.frontend})
	defer generator.Stop()
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	died := time.Now()
	if err := d.announcer.PowerOff(); err != nil {
		return err
	}
	d.p.Step("%s is off, with 50 requests a second running", d.announcer.Name())
	recovered, err := d.recovery(ctx, generator, died)
	if err != nil {
		return err
	}
	results := generator.Stop().Since(died)
	d.result.FailoverSeconds = seconds(recovered.Sub(died))
	d.p.Step("The client goes on: no answer at all for %d ms, none missing after %.0f ms; %d of %d requests failed",
		results.LongestOutage().Milliseconds(), 1000*d.result.FailoverSeconds, len(results.Failed()), len(results))
	node, mac, err := d.whoHas(ctx, d.address)
	if err != nil {
		return err
	}
	d.result.NewAnnouncer = node.Name()
	d.p.Step("%s answers now: %s is at %s; nobody else does", node.Name(), d.address, mac)
	learned, err := d.l.Machine(lab.Client).Neighbour(lab.Interface, d.address)
	if err != nil {
		return err
	}
	if learned.String() != mac {
		return fmt.Errorf("the client sends %s to %s, and %s announces it", d.address, learned, mac)
	}
	return nil
}

// recovery waits until requests succeed again and keep doing so, and returns
// when the first of those was answered.
func (d *demonstration) recovery(ctx context.Context, generator *traffic.Generator, died time.Time) (time.Time, error) {
	deadline := died.Add(recoverLimit)
	for {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return time.Time{}, err
		}
		results := generator.Results().Since(died)
		if since, ok := results.Steady(); ok && time.Since(since) > steadyFor {
			answered, _ := results.Since(since).FirstAnswer()
			return answered, nil
		}
		if time.Now().After(deadline) {
			failed := results.Failed()
			return time.Time{}, fmt.Errorf("the client has not recovered %s after %s died: %d of %d requests failed, the last one: %w",
				recoverLimit, d.announcer.Name(), len(failed), len(results), failed[len(failed)-1].Err)
		}
	}
}

func (d *demonstration) write(path string) error {
	data, err := json.MarshalIndent(d.result, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// seconds rounds to the millisecond.
func seconds(d time.Duration) float64 {
	value, _ := strconv.ParseFloat(strconv.FormatFloat(d.Seconds(), 'f', 3, 64), 64)
	return value
}
