// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// flakyAPI holds slices as an API server does: with resource versions, names
// that can be taken, and a watch that lags. It fails at random, also after it
// has done what it was asked for.
type flakyAPI struct {
	client.Client // nil: what is not below is not used

	mu      sync.Mutex
	rng     *rand.Rand
	failing bool
	serial  int
	slices  map[string]*discoveryv1.EndpointSlice
	watch   []func(*endpointslice.Index) // all events, in order
	changed func()                       // called after each change
}

var errFlaky = errors.New("injected")

// fail decides about one request: not at all, before, or after it is done.
func (a *flakyAPI) fail() (before, after error) {
	if !a.failing {
		return nil, nil
	}
	switch a.rng.IntN(10) {
	case 0, 1:
		return errFlaky, nil
	case 2, 3:
		return nil, errFlaky
	}
	return nil, nil
}

func (a *flakyAPI) put(slice *discoveryv1.EndpointSlice) {
	a.serial++
	slice.ResourceVersion = strconv.Itoa(a.serial)
	if slice.UID == "" {
		slice.UID = types.UID("uid-" + slice.ResourceVersion)
	}
	stored := slice.DeepCopy()
	a.slices[slice.Name] = stored
	a.watch = append(a.watch, func(x *endpointslice.Index) { x.SetSlice(stored.DeepCopy()) })
	a.changed()
}

func (a *flakyAPI) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, after := a.fail()
	if before != nil {
		return before
	}
	slice := object.(*discoveryv1.EndpointSlice)
	if slice.Name == "" {
		slice.Name = slice.GenerateName + strconv.Itoa(a.serial)
	}
	if a.slices[slice.Name] != nil {
		return apierrors.NewAlreadyExists(discoveryv1.Resource("endpointslices"), slice.Name)
	}
	a.put(slice)
	return after
}

func (a *flakyAPI) Update(_ context.Context, object client.Object, _ ...client.UpdateOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, after := a.fail()
	if before != nil {
		return before
	}
	slice := object.(*discoveryv1.EndpointSlice)
	old := a.slices[slice.Name]
	switch {
	case old == nil:
		return apierrors.NewNotFound(discoveryv1.Resource("endpointslices"), slice.Name)
	case old.ResourceVersion != slice.ResourceVersion || old.UID != slice.UID:
		return apierrors.NewConflict(discoveryv1.Resource("endpointslices"), slice.Name, errors.New("changed"))
	}
	a.put(slice)
	return after
}

func (a *flakyAPI) Delete(_ context.Context, object client.Object, options ...client.DeleteOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, after := a.fail()
	if before != nil {
		return before
	}
	var wanted client.DeleteOptions
	wanted.ApplyOptions(options)
	old := a.slices[object.GetName()]
	switch {
	case old == nil:
		return apierrors.NewNotFound(discoveryv1.Resource("endpointslices"), object.GetName())
	case *wanted.Preconditions.UID != old.UID || *wanted.Preconditions.ResourceVersion != old.ResourceVersion:
		return apierrors.NewConflict(discoveryv1.Resource("endpointslices"), object.GetName(), errors.New("another one"))
	}
	a.remove(old)
	return after
}

func (a *flakyAPI) remove(old *discoveryv1.EndpointSlice) {
	a.serial++
	delete(a.slices, old.Name)
	a.watch = append(a.watch, func(x *endpointslice.Index) { x.DeleteSlice(old.DeepCopy()) })
	a.changed()
}

func (a *flakyAPI) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if before, after := a.fail(); before != nil || after != nil {
		return errFlaky
	}
	slice := a.slices[key.Name]
	if slice == nil {
		return apierrors.NewNotFound(discoveryv1.Resource("endpointslices"), key.Name)
	}
	slice.DeepCopyInto(into.(*discoveryv1.EndpointSlice))
	return nil
}

func (a *flakyAPI) List(_ context.Context, into client.ObjectList, _ ...client.ListOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if before, after := a.fail(); before != nil || after != nil {
		return errFlaky
	}
	list := into.(*discoveryv1.EndpointSliceList)
	for _, slice := range a.slices {
		list.Items = append(list.Items, *slice.DeepCopy())
	}
	return nil
}

// addresses returns how often each address is in the slices.
func (a *flakyAPI) addresses() map[string]int {
	counts := map[string]int{}
	for _, slice := range a.slices {
		for _, endpoint := range slice.Endpoints {
			counts[endpoint.Addresses[0]]++
		}
	}
	return counts
}

// flakyPod returns a ready Pod.
func flakyPod(n int) *corev1.Pod {
	address := fmt.Sprintf("10.244.%d.%d", n/250, n%250+1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "spec", Name: fmt.Sprintf("web-%d", n), UID: types.UID(fmt.Sprint(n)),
			Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{NodeName: "node-1"},
		Status: corev1.PodStatus{PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// flakyHistory lets Pods come and go while the API fails, the watch lags, and
// now one, now the other of two replicas takes itself for the leader.
type flakyHistory struct {
	rng       *rand.Rand
	api       *flakyAPI
	replicas  [2]*flakyReplica
	steady    int // Pods 0 to steady-1 stay all the time
	pods      map[int]bool
	next      int
	converged bool
	missing   string
}

// flakyReplica is a reconciler with an index, and a watch, of its own.
type flakyReplica struct {
	*SliceReconciler
	told int // how many of the API's events
}

// tell delivers up to n events of the watch.
func (r *flakyReplica) tell(api *flakyAPI, n int) {
	api.mu.Lock()
	events := api.watch[r.told:min(r.told+n, len(api.watch))]
	api.mu.Unlock()
	r.told += len(events)
	for _, event := range events {
		event(r.source.index)
	}
}

var flakyService = types.NamespacedName{Namespace: "spec", Name: "web"}

func (r *flakyReplica) pass(ctx context.Context) error {
	_, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: flakyService})
	return err
}

func newFlakyHistory(seed uint64) *flakyHistory {
	h := &flakyHistory{rng: rand.New(rand.NewPCG(seed, 3)), steady: 150, pods: map[int]bool{}}
	h.api = &flakyAPI{rng: h.rng, slices: map[string]*discoveryv1.EndpointSlice{}, changed: h.check}
	for i := range h.replicas {
		source := &serviceSource{index: endpointslice.NewIndex()}
		source.index.SetNode(endpointslice.Node{Name: "node-1"})
		source.index.SetService(&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "spec", Name: "web", UID: "service"},
			Spec: corev1.ServiceSpec{
				ClusterIP: "10.96.0.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": "web"},
				Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
			},
		})
		h.replicas[i] = &flakyReplica{SliceReconciler: &SliceReconciler{
			Client: h.api, Live: h.api, Recorder: events.NewFakeRecorder(100), source: source,
		}}
	}
	for range h.steady {
		h.come()
	}
	return h
}

// check looks, after each write, whether a Pod that stays is without endpoint.
func (h *flakyHistory) check() {
	if !h.converged || h.missing != "" {
		return
	}
	counts := h.api.addresses()
	for n := range h.steady {
		if address := flakyPod(n).Status.PodIP; counts[address] == 0 {
			h.missing = address
			return
		}
	}
}

func (h *flakyHistory) come() {
	h.pods[h.next] = true
	for _, replica := range h.replicas {
		replica.source.index.SetPod(flakyPod(h.next))
	}
	h.next++
}

func (h *flakyHistory) change() {
	if h.rng.IntN(2) == 0 {
		for range 1 + h.rng.IntN(60) {
			h.come()
		}
		return
	}
	going := h.rng.IntN(len(h.pods))
	for n := range h.pods {
		if n >= h.steady && going > 0 {
			going--
			delete(h.pods, n)
			for _, replica := range h.replicas {
				replica.source.index.DeletePod(client.ObjectKeyFromObject(flakyPod(n)))
			}
		}
	}
}

// vandalise deletes a slice behind the controller's back.
func (h *flakyHistory) vandalise() {
	h.api.mu.Lock()
	defer h.api.mu.Unlock()
	for _, slice := range h.api.slices {
		h.converged = false // until the next quiet pass, endpoints may miss
		h.api.remove(slice)
		return
	}
}

// settle lets the API recover and checks the outcome.
func (h *flakyHistory) settle(ctx context.Context) {
	GinkgoHelper()
	h.api.failing = false
	leader := pick(h.rng, h.replicas[:]...)
	for range 2 {
		leader.tell(h.api, len(h.api.watch))
		Expect(leader.pass(ctx)).To(Succeed())
	}
	want := map[string]int{}
	for n := range h.pods {
		want[flakyPod(n).Status.PodIP] = 1
	}
	Expect(h.api.addresses()).To(Equal(want))
	h.converged = true
}

var _ = Describe("EndpointSlices kept by two replicas on an API that fails", func() {
	It("come out right, and no endpoint is ever missing that should be there", func(ctx SpecContext) {
		for seed := range uint64(15) {
			h := newFlakyHistory(seed)
			h.settle(ctx)
			for range 25 {
				h.api.failing = true
				for range 1 + h.rng.IntN(4) {
					h.change()
					leader := pick(h.rng, h.replicas[:]...)
					leader.states.of(flakyService).sparseSince = pick(h.rng, time.Time{}, time.Unix(1, 0))
					_ = leader.pass(ctx) // may fail: that is the point
					leader.tell(h.api, h.rng.IntN(4))
				}
				if h.rng.IntN(5) == 0 {
					h.vandalise()
				}
				h.settle(ctx)
				Expect(h.missing).To(BeEmpty(), "seed %d: an endpoint of a Pod that stayed was missing", seed)
			}
		}
	}, SpecTimeout(2*time.Minute))
})

// pick returns one of the values.
func pick[T any](rng *rand.Rand, values ...T) T { return values[rng.IntN(len(values))] }

var _ = Describe("EndpointSlices that have become sparse", func() {
	It("are merged when they have been so for long enough, and not before", func(ctx SpecContext) {
		h := newFlakyHistory(1)
		h.settle(ctx)
		leader := h.replicas[0]
		leader.tell(h.api, len(h.api.watch))
		// Slice by slice, or merging them would be free.
		for _, slice := range maps.Clone(h.api.slices) {
			for _, endpoint := range slice.Endpoints[10:] {
				leader.source.index.DeletePod(types.NamespacedName{Namespace: "spec", Name: endpoint.TargetRef.Name})
			}
			Expect(leader.pass(ctx)).To(Succeed())
		}
		Expect(h.api.slices).To(HaveLen(2))
		result, err := leader.Reconcile(ctx, ctrl.Request{NamespacedName: flakyService})
		Expect(err).NotTo(HaveOccurred())
		Expect(result.RequeueAfter).To(And(BeNumerically(">", 0), BeNumerically("<=", compactAfter)))
		Expect(h.api.slices).To(HaveLen(2))

		before := h.api.addresses()
		leader.states.of(flakyService).sparseSince = time.Now().Add(-compactAfter)
		Expect(leader.pass(ctx)).To(Succeed())
		Expect(h.api.slices).To(HaveLen(1))
		Expect(h.api.addresses()).To(Equal(before))
		Expect(before).To(HaveLen(20))
	})
})

var _ = Describe("An EndpointSlice that is deleted and held back by a finalizer", func() {
	It("keeps its name from a new one, and nothing else", func(ctx SpecContext) {
		h := newFlakyHistory(1)
		h.settle(ctx)
		leader := h.replicas[0]
		leader.tell(h.api, len(h.api.watch))
		Expect(h.api.slices).To(HaveLen(2))
		held := map[string]bool{}
		for _, slice := range maps.Clone(h.api.slices) {
			leader.source.index.ForgetSlice(slice) // as after a delete of ours
			slice.DeletionTimestamp = &metav1.Time{Time: time.Unix(1_000, 0)}
			held[slice.Name] = true
		}
		Expect(leader.pass(ctx)).To(Succeed())
		count := 0
		for name, slice := range h.api.slices {
			if !held[name] {
				count += len(slice.Endpoints)
			}
		}
		Expect(count).To(Equal(h.steady))
	})
})

var _ = Describe("A Service without a selector", func() {
	It("is reported when nobody has written slices for a while", func(ctx SpecContext) {
		for _, young := range []bool{true, false} {
			recorder := events.NewFakeRecorder(10)
			source := &serviceSource{index: endpointslice.NewIndex()}
			service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "spec", Name: "web", UID: "service"},
				Spec: corev1.ServiceSpec{IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}}}
			if young {
				service.CreationTimestamp = metav1.Now()
			}
			source.index.SetService(service)
			r := &SliceReconciler{Recorder: recorder, source: source}
			for range 3 {
				result, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: flakyService})
				Expect(err).NotTo(HaveOccurred())
				Expect(result.RequeueAfter > 0).To(Equal(young))
			}
			if young {
				Expect(recorder.Events).To(BeEmpty())
				continue
			}
			Expect(recorder.Events).To(Receive(ContainSubstring(endpointslice.ReasonSelectorEmpty)))
			Expect(recorder.Events).To(BeEmpty(), "it is said once")
			written := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: metav1.ObjectMeta{
				Namespace: "spec", Name: "written", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
			}}
			source.index.SetSlice(written)
			_, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: flakyService})
			Expect(err).NotTo(HaveOccurred())
			Expect(recorder.Events).To(BeEmpty())
			source.index.DeleteSlice(written)
			_, err = r.Reconcile(ctx, ctrl.Request{NamespacedName: flakyService})
			Expect(err).NotTo(HaveOccurred())
			Expect(recorder.Events).To(Receive(ContainSubstring(endpointslice.ReasonSelectorEmpty)), "it is so again")
		}
	})
})
