// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/provisioner/haproxy"
	"github.com/causeway-lb/causeway/internal/testkit"
)

const (
	externalClass = "example.com/haproxy"
	externalIP    = "192.0.2.60"
)

const externalFile = `loadBalancers:
- class: ` + externalClass + `
  haproxy:
    runtime: tcp://` + externalIP + `:9999
    addresses: [` + externalIP + `]
    ports: ["8080-8089"]
    mapFile: %s/causeway.map
    slots: 8
    resync: 2s
`

// A Service whose class is that of an HAProxy on a machine of its own is served
// there, through NodePorts, and follows the nodes.
func TestExternalLoadBalancer(t *testing.T) {
	ctx := need(t)
	file, haproxy := startHAProxy(t)
	configure(t, ctx, file)
	external := func(port int32) change {
		return func(s *corev1.Service) {
			s.Spec.LoadBalancerClass = ptr.To(externalClass)
			s.Spec.Ports[0].Port = port
		}
	}
	service := create(t, ctx, "external", external(8080))
	if got := ready(t, ctx, service); !slices.Equal(got, []netip.Addr{netip.MustParseAddr(externalIP)}) {
		t.Fatalf("given %v, want %s", got, externalIP)
	}
	answering(t, ctx, lab.Client, externalIP+":8080", all())

	keeping := create(t, ctx, "external-local", external(8081), local)
	ready(t, ctx, keeping)
	results := answering(t, ctx, lab.Client, externalIP+":8081", all())
	if sources := results.Sources(); len(sources) != 1 || sources[externalIP] == 0 {
		t.Errorf("with policy Local the Pods see %v, want HAProxy at %s alone", sources, externalIP)
	}

	node := servers[all()[0]].Spec.NodeName
	label(t, ctx, node, map[string]any{corev1.LabelNodeExcludeBalancers: "true"})
	rest := slices.DeleteFunc(all(), func(name string) bool { return slices.Contains(on(node), name) })
	answering(t, ctx, lab.Client, externalIP+":8081", rest)
	label(t, ctx, node, map[string]any{corev1.LabelNodeExcludeBalancers: nil})
	answering(t, ctx, lab.Client, externalIP+":8081", all())

	taint(t, ctx, node, corev1.Taint{Key: "ToBeDeletedByClusterAutoscaler", Effect: corev1.TaintEffectNoSchedule})
	answering(t, ctx, lab.Client, externalIP+":8081", rest)
	taint(t, ctx, node)
	answering(t, ctx, lab.Client, externalIP+":8081", all())

	followsNodes(t, ctx, node, rest)
	haproxy.repaired(t, ctx)

	if err := api.Delete(ctx, keeping); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 15*time.Second, "no answer after deletion", func() error {
		if result := request(ctx, lab.Client, externalIP+":8081"); result.Err == nil {
			return fmt.Errorf("%s answers", result.Answer.Host)
		}
		return nil
	})
	answering(t, ctx, lab.Client, externalIP+":8080", all())
}

// followsNodes powers a node off, whereupon HAProxy's health check takes it out,
// and on again.
func followsNodes(t *testing.T, ctx context.Context, name string, rest []string) {
	t.Helper()
	node := cluster.Node(name)
	if err := node.PowerOff(); err != nil {
		t.Fatal(err)
	}
	on := sync.OnceValue(node.PowerOn)
	t.Cleanup(func() {
		if err := on(); err != nil {
			t.Error(err)
		}
	})
	answering(t, ctx, lab.Client, externalIP+":8081", rest)
	if err := on(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cluster.WaitInstalled(ctx), cluster.WaitDeployment(ctx, "default", "go-http")); err != nil {
		t.Fatal(err)
	}
	answering(t, ctx, lab.Client, externalIP+":8081", all())
}

// repaired harms HAProxy in the ways that a stranger or a crash could, and waits
// until each is put right.
func (h *haproxyHost) repaired(t *testing.T, ctx context.Context) {
	t.Helper()
	for what, harm := range map[string]func(t *testing.T){
		"the map is emptied": func(t *testing.T) { h.do(t, ctx, "clear map "+h.dir+"/causeway.map") },
		"HAProxy crashes": func(t *testing.T) {
			h.kill()
			h.run(t)
		},
	} {
		harm(t)
		if result := request(ctx, lab.Client, externalIP+":8081"); result.Err == nil {
			t.Logf("%s: repaired before the first request", what)
		}
		answering(t, ctx, lab.Client, externalIP+":8081", all())
		answering(t, ctx, lab.Client, externalIP+":8080", all())
	}
}

// haproxyHost is a machine on the LAN that runs HAProxy.
type haproxyHost struct {
	machine     *network.Namespace
	binary, dir string
	said        bytes.Buffer // of those that have ended
	stop, done  chan struct{}
}

// run keeps HAProxy running until kill, as the host's systemd would: some versions
// crash now and then when a server is deleted while it is being checked.
func (h *haproxyHost) run(t *testing.T) {
	t.Helper()
	start := func() (*exec.Cmd, error) {
		cmd := exec.Command(h.binary, "-db", "-f", filepath.Join(h.dir, "haproxy.cfg"))
		cmd.Stdout, cmd.Stderr = &h.said, &h.said
		return cmd, h.machine.Start(cmd)
	}
	cmd, err := start()
	if err != nil {
		t.Fatalf("start HAProxy: %v", err)
	}
	h.stop, h.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(h.done)
		for {
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case <-h.stop:
				_ = cmd.Process.Kill()
				<-ended
				return
			case err := <-ended:
				t.Logf("HAProxy ended by itself, and is started again: %v", err)
			}
			select { // not over and over, if it cannot run
			case <-h.stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			if cmd, err = start(); err != nil {
				t.Errorf("start HAProxy again: %v", err)
				return
			}
		}
	}()
}

func (h *haproxyHost) kill() {
	close(h.stop)
	<-h.done
}

// do sends a command to the runtime interface, from HAProxy's own machine.
func (h *haproxyHost) do(t *testing.T, ctx context.Context, command string) {
	t.Helper()
	conn, err := h.machine.Dial(ctx, "tcp", externalIP+":9999")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, command); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || len(bytes.TrimSpace(answer)) > 0 {
		t.Fatalf("%s: %s, %v", command, answer, err)
	}
}

// startHAProxy makes a machine on the LAN that runs HAProxy, and returns the
// controller's file about it.
func startHAProxy(t *testing.T) (string, *haproxyHost) {
	t.Helper()
	binary, err := exec.LookPath("haproxy")
	if err != nil {
		if binary = "/usr/sbin/haproxy"; !executable(binary) {
			if os.Getenv("REQUIRE_KERNEL") == "1" {
				t.Fatal("haproxy is not installed: apt-get install haproxy")
			}
			t.Skip("haproxy is not installed: apt-get install haproxy")
		}
	}
	dir := t.TempDir()
	file := fmt.Sprintf(externalFile, dir)
	config, err := haproxy.RenderFile([]byte(file), externalClass)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"haproxy.cfg": config, "causeway.map": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := &haproxyHost{machine: plugIn(t, "haproxy", netip.MustParsePrefix(externalIP+"/24")), binary: binary, dir: dir}
	host.run(t)
	t.Cleanup(func() {
		host.kill()
		if t.Failed() {
			t.Logf("HAProxy said:\n%s", host.said.String())
		}
	})
	return file, host
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
}

// plugIn makes another machine on the LAN, which knows the way to the Pods of
// each node.
func plugIn(t *testing.T, name string, address netip.Prefix) *network.Namespace {
	t.Helper()
	machine, err := network.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := machine.Delete(); err != nil {
			t.Error(err)
		}
	})
	err = errors.Join(
		network.Connect(network.End{Namespace: machine, Name: lab.Interface}, network.End{Namespace: cluster.Machine(lab.LAN), Name: name}),
		cluster.Machine(lab.LAN).Plug(name, "br0"),
		machine.Up(lab.Interface),
		machine.AddAddress(lab.Interface, address),
	)
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := cluster.Kubernetes.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes.Items {
		pods, via := netip.MustParsePrefix(node.Spec.PodCIDR), netip.MustParseAddr(node.Status.Addresses[0].Address)
		if err := machine.AddRoute(pods, via, lab.Interface); err != nil {
			t.Fatal(err)
		}
	}
	return machine
}

// configure gives the controller a file of external load balancers, and takes
// it away with the test.
func configure(t *testing.T, ctx context.Context, file string) {
	t.Helper()
	settings := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: lab.SystemNamespace, Name: "external-load-balancers"},
		Data:       map[string]string{"file.yaml": file},
	}
	if err := api.Create(ctx, settings); err != nil {
		t.Fatal(err)
	}
	var before corev1.PodTemplateSpec
	edit := func(ctx context.Context, change func(*corev1.PodSpec)) error {
		deployment := &appsv1.Deployment{}
		if err := api.Get(ctx, client.ObjectKey{Namespace: lab.SystemNamespace, Name: "causeway-controller"}, deployment); err != nil {
			return err
		}
		before = *deployment.Spec.Template.DeepCopy()
		change(&deployment.Spec.Template.Spec)
		if err := api.Update(ctx, deployment); err != nil {
			return err
		}
		return cluster.WaitDeployment(ctx, lab.SystemNamespace, "causeway-controller")
	}
	err := edit(ctx, func(spec *corev1.PodSpec) {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "external", VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: settings.Name}}}})
		c := &spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "external", MountPath: "/etc/causeway"})
		c.Args = append(c.Args, "--external-load-balancers=/etc/causeway/file.yaml")
	})
	if err != nil {
		t.Fatal(err)
	}
	original := before.Spec
	t.Cleanup(func() {
		// The Services have been deleted by now: the last clean-up runs first.
		// They go when the controller has let go of them.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		testkit.Eventually(t, 15*time.Second, "Services gone", func() error {
			var list corev1.ServiceList
			if err := api.List(ctx, &list); err != nil {
				return err
			}
			for _, s := range list.Items {
				if ptr.Deref(s.Spec.LoadBalancerClass, "") == externalClass {
					return fmt.Errorf("Service %s is there", s.Name)
				}
			}
			return nil
		})
		err := edit(ctx, func(spec *corev1.PodSpec) { *spec = original })
		if err := errors.Join(err, api.Delete(ctx, settings)); err != nil {
			t.Error(err)
		}
	})
}

// taint sets a node's taints.
func taint(t *testing.T, ctx context.Context, node string, taints ...corev1.Taint) {
	t.Helper()
	obj := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	if err := api.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
		t.Fatal(err)
	}
	base := obj.DeepCopy()
	obj.Spec.Taints = taints
	if err := api.Patch(ctx, obj, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
}

// label sets a node's labels; nil removes one.
func label(t *testing.T, ctx context.Context, node string, labels map[string]any) {
	t.Helper()
	obj := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	if err := api.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
		t.Fatal(err)
	}
	base := obj.DeepCopy()
	for k, v := range labels {
		if text, set := v.(string); set {
			metav1.SetMetaDataLabel(&obj.ObjectMeta, k, text)
		} else {
			delete(obj.Labels, k)
		}
	}
	if err := api.Patch(ctx, obj, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
}
