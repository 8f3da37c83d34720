// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/book"
)

const (
	serviceWebhookPath = "/mutate--v1-service"

	// patience is how long a request waits for somebody who may grant; it is a
	// little less than the webhook's timeoutSeconds.
	patience   = 9 * time.Second
	retryEvery = 100 * time.Millisecond
	// forwardFor is how long another replica may take to answer.
	forwardFor = 2 * time.Second
)

// The second webhook is the same again, for a Service that the first left
// without: when the replica that is asked dies, the API server goes on without
// its answer (failurePolicy Ignore), and would allocate by itself, perhaps a
// value that another request was just granted. It asks a second time instead,
// on a new connection, which ends at a replica that lives. A Service that was
// served is not sent twice. The port audit's dry runs are sent not at all.
//
// +kubebuilder:webhook:path=/mutate--v1-service,mutating=true,failurePolicy=ignore,sideEffects=NoneOnDryRun,groups="",resources=services,verbs=create;update,versions=v1,name=services.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=10,reinvocationPolicy=Never,patch=`{"matchConditions":[{"name":"not-an-audit","expression":"!has(object.metadata.name) || object.metadata.name != 'causeway-port-audit' || !has(request.dryRun) || !request.dryRun"}]}`
// +kubebuilder:webhook:path=/mutate--v1-service,mutating=true,failurePolicy=ignore,sideEffects=NoneOnDryRun,groups="",resources=services,verbs=create;update,versions=v1,name=unserved-services.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=10,reinvocationPolicy=Never,patch=`{"matchConditions":[{"name":"lacks-something","expression":"object.spec.type != 'ExternalName' && (!has(object.spec.clusterIP) || object.spec.clusterIP == '' || (object.spec.type in ['NodePort', 'LoadBalancer'] && (!has(object.spec.allocateLoadBalancerNodePorts) || object.spec.allocateLoadBalancerNodePorts) && has(object.spec.ports) && object.spec.ports.exists(p, !has(p.nodePort) || p.nodePort == 0)) || (object.spec.type == 'LoadBalancer' && has(object.spec.externalTrafficPolicy) && object.spec.externalTrafficPolicy == 'Local' && (!has(object.spec.healthCheckNodePort) || object.spec.healthCheckNodePort == 0)))"},{"name":"not-an-audit","expression":"!has(object.metadata.name) || object.metadata.name != 'causeway-port-audit' || !has(request.dryRun) || !request.dryRun"}]}`

// ServiceAllocator is the mutating webhook that gives Services their ClusterIPs
// and NodePorts before the API server's own allocator does.
type ServiceAllocator struct {
	// Client reads from the cache and writes; Live reads past the cache.
	Client client.Client
	Live   client.Reader

	// exempt is the name of the dry runs that the port audit makes.
	exempt client.ObjectKey

	book *serviceBook
	term grantor
	peer *peer
}

// grantor knows which replica may grant; see term.
type grantor interface {
	held() bool
	holder() string
	turn() alloc.Turn
}

// Handle answers an admission request. What needs no grant it answers itself;
// for the rest it asks the replica that holds the term, which may be this one,
// and waits for one to hold it when none does.
func (a *ServiceAllocator) Handle(ctx context.Context, req admission.Request) admission.Response {
	start := time.Now()
	response, how := a.answer(ctx, req)
	observeAdmission(how, time.Since(start))
	return response
}

func (a *ServiceAllocator) answer(ctx context.Context, req admission.Request) (admission.Response, string) {
	if isDryRun(req) && req.Namespace == a.exempt.Namespace && req.Name == a.exempt.Name {
		return admission.Allowed(""), "nothing"
	}
	svc, old, err := decodeServices(req)
	if err != nil {
		return leaveToAPIServer(err), "error"
	}
	if !a.concerned(svc, old) {
		return admission.Allowed(""), "nothing"
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	forwarded := wasForwarded(ctx)
	for {
		if a.term.held() {
			response, err := a.grant(ctx, req, svc, old)
			if !errors.Is(err, errNotHolder) {
				return response, "granted"
			}
		}
		if forwarded {
			return admission.Errored(http.StatusServiceUnavailable, errNotHolder), "nobody"
		}
		if address := a.term.holder(); address != "" {
			response, err := a.forward(ctx, address, req)
			if err == nil {
				return response, "forwarded"
			}
			logf.FromContext(ctx).V(1).Info("Forwarding failed, will retry", "address", address, "reason", err.Error())
		}
		select {
		case <-time.After(retryEvery):
		case <-ctx.Done():
			return leaveToAPIServer(errors.New("no replica of Causeway may grant addresses and ports")), "nobody"
		}
	}
}

// forward asks another replica, for no longer than forwardFor: one whose node has
// lost its power answers nothing, while a successor may be there already.
func (a *ServiceAllocator) forward(ctx context.Context, address string, req admission.Request) (admission.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardFor)
	defer cancel()
	return a.peer.forward(ctx, address, serviceWebhookPath, req)
}

func isDryRun(req admission.Request) bool { return req.DryRun != nil && *req.DryRun }

// leaveToAPIServer lets a Service pass as it is, so that the API server
// allocates: trouble of Causeway's own must not keep anyone from creating
// Services. To answer with an error would, because failurePolicy Ignore is for
// webhooks that do not answer. The reconciler reports what came of it.
func leaveToAPIServer(err error) admission.Response {
	return admission.Allowed("").WithWarnings("not allocated from Causeway's pools: " + err.Error())
}

func decodeServices(req admission.Request) (svc, old *corev1.Service, err error) {
	svc = &corev1.Service{}
	if err := json.Unmarshal(req.Object.Raw, svc); err != nil {
		return nil, nil, fmt.Errorf("read Service: %w", err)
	}
	if req.Operation == admissionv1.Update {
		old = &corev1.Service{}
		if err := json.Unmarshal(req.OldObject.Raw, old); err != nil {
			return nil, nil, fmt.Errorf("read old Service: %w", err)
		}
	}
	if svc.Namespace == "" {
		svc.Namespace = req.Namespace
	}
	if svc.Name == "" {
		svc.Name = req.Name // empty for generateName
	}
	return svc, old, nil
}

// concerned tells whether there is anything to grant or to check.
func (a *ServiceAllocator) concerned(svc, old *corev1.Service) (yes bool) {
	select {
	case <-a.book.synced:
	default:
		return true // not known yet: somebody else may know
	}
	a.book.with(func(b *book.Book) { yes = b.Concerns(svc, old) })
	return yes
}

// grant answers as the holder of the term. It returns errNotHolder when the
// term ended before the answer was ready.
func (a *ServiceAllocator) grant(ctx context.Context, req admission.Request, svc, old *corev1.Service) (admission.Response, error) {
	namespace, err := a.namespaceLabels(ctx, req.Namespace)
	if err != nil {
		return leaveToAPIServer(err), nil
	}
	if old != nil {
		a.book.catchUp(old)
	}
	ask := book.Request{
		Service: svc, Old: old, NamespaceLabels: namespace, UID: string(req.UID),
		DryRun: isDryRun(req), Now: a.book.now(), Random: rand.Uint64, Turn: a.term.turn(),
	}
	grant, err := a.admit(ctx, ask)
	for tries := 0; err == nil && tries < 3; tries++ {
		var again bool
		if again, err = a.letGo(ctx, ask, grant.Former); !again {
			break
		}
		grant, err = a.admit(ctx, ask)
	}
	var refused *book.Refused
	switch {
	case errors.As(err, &refused):
		return refuse(refused), nil
	case err != nil:
		return leaveToAPIServer(err), nil
	case !a.term.held():
		return admission.Response{}, errNotHolder // the picks end by themselves
	}
	return admission.Patched("", patches(svc, grant)...), nil
}

// admit asks the book. Before it refuses a value as taken it makes sure that
// the holder still has it: the book hears of changes a moment late.
func (a *ServiceAllocator) admit(ctx context.Context, ask book.Request) (grant book.Grant, err error) {
	for range 3 {
		a.book.with(func(b *book.Book) { grant, err = b.Admit(ask) })
		var refused *book.Refused
		if !errors.As(err, &refused) || refused.Reason != book.Taken || refused.Holder.Name == "" {
			return grant, err
		}
		if fault := a.book.correct(ctx, a.Live, refused.Holder); fault != nil {
			return grant, fault
		}
	}
	return grant, err
}

// namespaceLabels reads the labels of a namespace, past the cache when it is so
// new that the cache has not heard of it.
func (a *ServiceAllocator) namespaceLabels(ctx context.Context, name string) (map[string]string, error) {
	var ns corev1.Namespace
	err := a.Client.Get(ctx, client.ObjectKey{Name: name}, &ns)
	if apierrors.IsNotFound(err) {
		err = a.Live.Get(ctx, client.ObjectKey{Name: name}, &ns)
	}
	if err != nil {
		return nil, fmt.Errorf("read namespace: %w", err)
	}
	return ns.Labels, nil
}

// letGo removes the IPAddresses with which resting addresses were kept from the
// API server's allocator, which is about to make its own. It returns true when
// one is the API server's already, which lost it or has not freed it yet: the
// book knows now, and has to be asked again. Nobody else gets the address that
// the user asked for, so that is left to the API server's judgement.
func (a *ServiceAllocator) letGo(ctx context.Context, ask book.Request, former []netip.Addr) (again bool, err error) {
	if ask.DryRun {
		return false, nil
	}
	if len(former) > 0 {
		a.book.awaitHold()
	}
	for _, addr := range former {
		var hold networkingv1.IPAddress
		err := a.Live.Get(ctx, client.ObjectKey{Name: addr.String()}, &hold)
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return false, fmt.Errorf("read IPAddress %s: %w", addr, err)
		}
		if isHold(&hold) {
			err = a.Client.Delete(ctx, &hold, client.Preconditions{UID: &hold.UID})
			if client.IgnoreNotFound(err) != nil {
				return false, fmt.Errorf("release IPAddress %s: %w", addr, err)
			}
			continue
		}
		if !slices.Contains(ask.Service.Spec.ClusterIPs, addr.String()) && ask.Service.Spec.ClusterIP != addr.String() {
			a.book.deny(addr, book.OwnerOf(ask.Service), &hold)
			again = true
		}
	}
	return again, nil
}

// refuse answers 403, as a quota does, and 422 for a value that somebody has,
// as the API server's allocator does.
func refuse(r *book.Refused) admission.Response {
	response := admission.Denied(r.Error())
	if r.Reason == book.Taken {
		response.Result.Code, response.Result.Reason = http.StatusUnprocessableEntity, metav1.StatusReasonInvalid
	}
	return response
}

// patches writes a grant as JSON patches (RFC 6902).
func patches(svc *corev1.Service, g book.Grant) []jsonpatch.JsonPatchOperation {
	var out []jsonpatch.JsonPatchOperation
	if len(g.ClusterIPs) > 0 {
		out = append(out,
			jsonpatch.NewOperation("add", "/spec/clusterIP", g.ClusterIPs[0]),
			jsonpatch.NewOperation("add", "/spec/clusterIPs", g.ClusterIPs))
	}
	for _, i := range sortedKeys(g.NodePorts) {
		out = append(out, jsonpatch.NewOperation("add", "/spec/ports/"+strconv.Itoa(i)+"/nodePort", g.NodePorts[i]))
	}
	if g.HealthCheckNodePort != 0 {
		out = append(out, jsonpatch.NewOperation("add", "/spec/healthCheckNodePort", g.HealthCheckNodePort))
	}
	return out
}

func sortedKeys(m map[int]uint16) []int {
	return slices.Sorted(maps.Keys(m))
}

type forwardedKey struct{}

// markForwarded remembers that a request came from another replica, so that it
// is not sent on in a circle.
func markForwarded(ctx context.Context, r *http.Request) context.Context {
	if r.Header.Get(forwardedHeader) == "" {
		return ctx
	}
	return context.WithValue(ctx, forwardedKey{}, true)
}

func wasForwarded(ctx context.Context) bool { return ctx.Value(forwardedKey{}) != nil }
