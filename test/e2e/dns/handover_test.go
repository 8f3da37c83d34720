// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/endpointslice"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/labtest"
)

// sliceObserver follows the slices of a Service by a watch, and checks after
// every event that no endpoint is missing that was there and stays, and that
// none is in two slices.
type sliceObserver struct {
	watch watch.Interface
	done  chan struct{}

	mu       sync.Mutex
	slices   map[string]*discoveryv1.EndpointSlice
	stay     []string // addresses that must be there all the time
	problems []string
}

func observeSlices(t *testing.T, ctx context.Context, service string) *sliceObserver {
	t.Helper()
	o := &sliceObserver{done: make(chan struct{}), slices: map[string]*discoveryv1.EndpointSlice{}}
	selector := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service}
	list, err := cluster.Kubernetes.DiscoveryV1().EndpointSlices("default").List(ctx, selector)
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		o.slices[list.Items[i].Name] = &list.Items[i]
	}
	o.stay, _ = o.addresses()
	selector.ResourceVersion = list.ResourceVersion
	if o.watch, err = cluster.Kubernetes.DiscoveryV1().EndpointSlices("default").Watch(ctx, selector); err != nil {
		t.Fatal(err)
	}
	go o.run()
	return o
}

func (o *sliceObserver) run() {
	defer close(o.done)
	for event := range o.watch.ResultChan() {
		slice, ok := event.Object.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		o.mu.Lock()
		o.slices[slice.Name] = slice
		if event.Type == watch.Deleted {
			delete(o.slices, slice.Name)
		}
		addresses, doubled := o.addresses()
		if doubled != "" {
			o.problems = append(o.problems, fmt.Sprintf("%s %s: %s is in two slices", event.Type, slice.Name, doubled))
		}
		for _, address := range o.stay {
			if !slices.Contains(addresses, address) {
				o.problems = append(o.problems, fmt.Sprintf("%s %s: %s is missing", event.Type, slice.Name, address))
			}
		}
		o.mu.Unlock()
	}
}

// addresses returns the ready addresses, and one that is in two slices.
func (o *sliceObserver) addresses() (ready []string, doubled string) {
	for _, slice := range o.slices {
		for i := range slice.Endpoints {
			address := slice.Endpoints[i].Addresses[0]
			if slices.Contains(ready, address) {
				doubled = address
			}
			if ready1 := slice.Endpoints[i].Conditions.Ready; ready1 == nil || *ready1 {
				ready = append(ready, address)
			}
		}
	}
	return ready, doubled
}

// state returns how many ready endpoints there are, and who manages the slices.
func (o *sliceObserver) state() (int, []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	ready, _ := o.addresses()
	var managers []string
	for _, slice := range o.slices {
		managers = append(managers, endpointslice.Manager(nil, slice))
	}
	slices.Sort(managers)
	return len(ready), slices.Compact(managers)
}

func (o *sliceObserver) stop() []string {
	o.watch.Stop()
	<-o.done
	return o.problems
}

// startRival runs kube-controller-manager's endpoint controllers, and returns
// what ends them.
func startRival(t *testing.T) (stop func()) {
	t.Helper()
	log, err := os.Create(filepath.Join(cluster.Setup.State, "logs", "other.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(cluster.Setup.Programs, "kube-controller-manager"),
		"--kubeconfig="+cluster.AdminConfig(), "--leader-elect=false", "--secure-port=0",
		"--controllers=endpointslice-controller,endpoints-controller,endpointslice-mirroring-controller")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cluster.Machine(lab.ControlPlane).Start(cmd); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// TestHandOver gives the slices of a Service to kube-controller-manager and
// takes them back, with clients asking and Pods coming all the time.
func TestHandOver(t *testing.T) {
	ctx := need(t)
	deployment, address := deploy(t, ctx, "handed", 3)
	name := types.NamespacedName{Namespace: "default", Name: "handed"}
	generator := asking(t, ctx, address)
	observed := observeSlices(t, ctx, "handed")
	t.Cleanup(observed.watch.Stop)

	setMode := func(mode string) {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.EndpointSlicesAnnotation, mode)
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
		if err := api.Patch(ctx, s, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	want := func(ready int, manager, charge string) {
		t.Helper()
		testkit.Eventually(t, 30*time.Second, fmt.Sprintf("%d endpoints of %s", ready, manager), func() error {
			var s corev1.Service
			if err := api.Get(ctx, name, &s); err != nil {
				return err
			}
			got := "none"
			if c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ServiceEndpointSlicesManaged); c != nil {
				got = string(c.Status) + "/" + c.Reason
			}
			n, managers := observed.state()
			if n != ready || !slices.Equal(managers, []string{manager}) || got != charge {
				return fmt.Errorf("%d endpoints of %v, condition %s, want %s", n, managers, got, charge)
			}
			return nil
		})
	}
	want(3, endpointslice.ManagedBy, "none")

	setMode("hand-back")
	want(3, endpointslice.KubeManagedBy, "False/HandedBack")
	stopRival := startRival(t)
	change(t, ctx, deployment, `{"spec":{"replicas":4}}`)
	want(4, endpointslice.KubeManagedBy, "False/HandedBack")

	stopRival()
	setMode("take-over")
	want(4, endpointslice.ManagedBy, "True/Managed")
	change(t, ctx, deployment, `{"spec":{"replicas":5}}`)
	want(5, endpointslice.ManagedBy, "True/Managed")
	labtest.More(t, ctx, 40, generator) // what has gone wrong may show late

	none(t, generator.Stop())
	for _, problem := range observed.stop() {
		t.Error(problem)
	}
}

// TestStandBy lets kube-controller-manager keep the slices of a Service from
// the beginning, since it keeps others of this cluster already.
func TestStandBy(t *testing.T) {
	ctx := need(t)
	startRival(t)
	// A Service that is the other controller's: from it Causeway learns that there is one.
	first, _ := deploy(t, ctx, "others", 1)
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"hand-back"}}}`, v1alpha1.EndpointSlicesAnnotation)
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: first.Name}}
	if err := api.Patch(ctx, s, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, "slices of the other controller", func() error {
		list, err := cluster.Kubernetes.DiscoveryV1().EndpointSlices("default").List(ctx,
			metav1.ListOptions{LabelSelector: discoveryv1.LabelManagedBy + "=" + endpointslice.KubeManagedBy})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if endpointslice.Manager(nil, &list.Items[i]) == endpointslice.KubeManagedBy {
				return nil
			}
		}
		return errors.New("none")
	})
	observed := observeSlices(t, ctx, "second")
	_, address := deploy(t, ctx, "second", 2)
	if _, err := get(ctx, address); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, 20*time.Second, "two endpoints of the other controller alone", func() error {
		if n, managers := observed.state(); n != 2 || !slices.Equal(managers, []string{endpointslice.KubeManagedBy}) {
			return fmt.Errorf("%d endpoints of %v", n, managers)
		}
		return nil
	})
	for _, problem := range observed.stop() {
		t.Error(problem)
	}
}
