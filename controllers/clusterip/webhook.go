// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/allocator"
)

// The second webhook is the same again, for a Service that the first left without values:
// when the replica that is called dies, the API server continues without its answer
// (failurePolicy Ignore), and would allocate itself, perhaps a value that another request
// was just granted. It calls a second time instead, on a new connection to a replica that
// is alive. A Service that was served is not sent twice. The port audit's dry runs are not
// sent at all.
//
// +kubebuilder:webhook:path=/mutate--v1-service,mutating=true,failurePolicy=ignore,sideEffects=NoneOnDryRun,groups="",resources=services,verbs=create;update,versions=v1,name=services.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=10,reinvocationPolicy=Never,patch=`{"matchConditions":[{"name":"not-an-audit","expression":"!has(object.metadata.name) || object.metadata.name != 'causeway-port-audit' || !has(request.dryRun) || !request.dryRun"}]}`
// +kubebuilder:webhook:path=/mutate--v1-service,mutating=true,failurePolicy=ignore,sideEffects=NoneOnDryRun,groups="",resources=services,verbs=create;update,versions=v1,name=unserved-services.causeway.dev,admissionReviewVersions=v1,timeoutSeconds=10,reinvocationPolicy=Never,patch=`{"matchConditions":[{"name":"lacks-something","expression":"object.spec.type != 'ExternalName' && (!has(object.spec.clusterIP) || object.spec.clusterIP == '' || (object.spec.type in ['NodePort', 'LoadBalancer'] && (!has(object.spec.allocateLoadBalancerNodePorts) || object.spec.allocateLoadBalancerNodePorts) && has(object.spec.ports) && object.spec.ports.exists(p, !has(p.nodePort) || p.nodePort == 0)) || (object.spec.type == 'LoadBalancer' && has(object.spec.externalTrafficPolicy) && object.spec.externalTrafficPolicy == 'Local' && (!has(object.spec.healthCheckNodePort) || object.spec.healthCheckNodePort == 0)))"},{"name":"not-an-audit","expression":"!has(object.metadata.name) || object.metadata.name != 'causeway-port-audit' || !has(request.dryRun) || !request.dryRun"}]}`

// Webhook is the mutating webhook that gives Services their ClusterIPs and
// NodePorts before the API server's own allocator does.
type Webhook struct {
	Allocator *allocator.Allocator
}

// Handle answers an admission request. A fault of Causeway must not prevent Services from
// being created: the Service is admitted with a warning, and the API server allocates. An
// error would deny it, because failurePolicy Ignore is for webhooks that do not answer.
func (w *Webhook) Handle(ctx context.Context, req admission.Request) admission.Response {
	start := time.Now()
	var grant services.Grant
	ask, err := requestOf(ctx, req)
	if err == nil {
		grant, err = w.Allocator.Grant(ctx, ask)
	} else {
		allocator.ObserveAdmission("error", time.Since(start))
		err = &allocator.UnavailableError{Cause: err}
	}
	denied, isDenied := errors.AsType[*services.Denied](err)
	switch {
	case isDenied:
		return deny(denied)
	case errors.Is(err, allocator.ErrNotLeader):
		return admission.Errored(http.StatusServiceUnavailable, err)
	case err != nil:
		return admission.Allowed("").WithWarnings(err.Error())
	}
	return admission.Patched("", allocator.Patch(grant)...)
}

func requestOf(ctx context.Context, req admission.Request) (out allocator.Request, err error) {
	out = allocator.Request{UID: string(req.UID), DryRun: req.DryRun != nil && *req.DryRun, Forwarded: ctx.Value(forwardedKey{}) != nil}
	out.Service = &corev1.Service{}
	if err := json.Unmarshal(req.Object.Raw, out.Service); err != nil {
		return out, fmt.Errorf("read Service: %w", err)
	}
	if req.Operation == admissionv1.Update {
		out.Old = &corev1.Service{}
		if err := json.Unmarshal(req.OldObject.Raw, out.Old); err != nil {
			return out, fmt.Errorf("read old Service: %w", err)
		}
	}
	if out.Service.Namespace == "" {
		out.Service.Namespace = req.Namespace
	}
	if out.Service.Name == "" {
		out.Service.Name = req.Name // empty for generateName
	}
	return out, nil
}

// deny answers 403, as a quota does, and 422 for a value that another Service
// has, as the API server's allocator does.
func deny(r *services.Denied) admission.Response {
	response := admission.Denied(r.Error())
	if r.Reason == services.Taken {
		response.Result.Code, response.Result.Reason = http.StatusUnprocessableEntity, metav1.StatusReasonInvalid
	}
	return response
}

type forwardedKey struct{}

// markForwarded marks a request of another replica in its context.
func markForwarded(ctx context.Context, r *http.Request) context.Context {
	if r.Header.Get(allocator.ForwardedHeader) == "" {
		return ctx
	}
	return context.WithValue(ctx, forwardedKey{}, true)
}
