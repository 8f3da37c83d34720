// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// worker creates, changes and deletes Services of its own, one at a time.
type worker struct {
	*allocation
	id  int
	rng *rand.Rand
	has map[int]string // slot -> type of the Service there
}

func (w *worker) run(ctx context.Context) {
	for w.left.Add(-1) >= 0 && ctx.Err() == nil {
		slot := w.rng.IntN(slots)
		kind, there := w.has[slot]
		switch {
		case !there:
			w.create(ctx, slot)
		case w.rng.IntN(3) == 0:
			w.delete(ctx, slot)
		default:
			w.change(ctx, slot, kind)
		}
	}
}

func (w *worker) service(slot int) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: tenants[(w.id+slot)%len(tenants)].namespace, Name: fmt.Sprintf("w%d-s%d", w.id, slot),
	}}
}

func (w *worker) create(ctx context.Context, slot int) {
	svc := w.service(slot)
	svc.Spec.Type = corev1.ServiceTypeClusterIP
	for i := range 1 + w.rng.IntN(3) {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(80 + i)})
	}
	explicit := false
	switch w.rng.IntN(10) {
	case 0, 1, 2:
		svc.Spec.Type = corev1.ServiceTypeNodePort
	case 3, 4:
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	case 5:
		svc.Spec.ClusterIP = corev1.ClusterIPNone
	case 6:
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
	case 7:
		explicit = true
		svc.Spec.ClusterIP = map[string]string{"blue": "10.96.64.", "green": "10.97.0.", "grey": "10.96.1."}[svc.Namespace] + fmt.Sprint(1+w.rng.IntN(60))
	}
	switch err := w.api.Create(ctx, svc); {
	case err == nil:
		w.note(svc)
		w.has[slot] = string(svc.Spec.Type)
		if svc.Spec.ClusterIP == corev1.ClusterIPNone {
			w.has[slot] = corev1.ClusterIPNone
		}
	case explicit && isTaken(err):
		w.taken.Add(1)
	default:
		w.fail("create %s %s: %v%s", svc.Spec.Type, client.ObjectKeyFromObject(svc), err, w.holders(ctx, err))
	}
}

// note counts Services that the API server allocated for.
func (w *worker) note(svc *corev1.Service) {
	if !placed(svc) {
		w.outside.Add(1)
	}
}

// isTaken tells whether an explicit request met somebody who has the value,
// which is nobody's fault.
func isTaken(err error) bool {
	for _, text := range []string{"is held by Service", "is on its way by Service", "is already allocated"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// holders says which Services have the NodePort that an error is about.
func (w *worker) holders(ctx context.Context, err error) string {
	_, text, ok := strings.Cut(err.Error(), "nodePort: Invalid value: ")
	var port int32
	if _, scanErr := fmt.Sscan(text, &port); !ok || scanErr != nil {
		return ""
	}
	var list corev1.ServiceList
	if err := w.api.List(ctx, &list); err != nil {
		return ""
	}
	var names []string
	for _, svc := range list.Items {
		has := svc.Spec.HealthCheckNodePort == port
		for _, p := range svc.Spec.Ports {
			has = has || p.NodePort == port
		}
		if has {
			names = append(names, client.ObjectKeyFromObject(&svc).String())
		}
	}
	return fmt.Sprintf(" (Services that have %d: %v)", port, names)
}

func (w *worker) delete(ctx context.Context, slot int) {
	if err := w.api.Delete(ctx, w.service(slot)); err != nil {
		w.fail("delete %s: %v", client.ObjectKeyFromObject(w.service(slot)), err)
		return
	}
	delete(w.has, slot)
}

// The changes of type, as merge patches.
const (
	toNodePort     = `{"spec":{"type":"NodePort","externalName":null,"ports":[{"name":"http","port":80},{"name":"https","port":443}]}}`
	toLoadBalancer = `{"spec":{"type":"LoadBalancer","externalTrafficPolicy":"Local"}}`
	toClusterIP    = `{"spec":{"type":"ClusterIP","externalTrafficPolicy":null,"healthCheckNodePort":null,"allocateLoadBalancerNodePorts":null}}`
	toExternalName = `{"spec":{"type":"ExternalName","externalName":"example.com","clusterIP":null,"clusterIPs":null,"ipFamilies":null,` +
		`"ipFamilyPolicy":null,"externalTrafficPolicy":null,"internalTrafficPolicy":null,"allocateLoadBalancerNodePorts":null,"healthCheckNodePort":null,"ports":null}}`
	toMorePorts = `{"spec":{"ports":[{"name":"http","port":80},{"name":"https","port":443},{"name":"metrics","port":9090}]}}`
)

// change gives a Service another type or other ports.
func (w *worker) change(ctx context.Context, slot int, kind string) {
	var next, patch string
	switch corev1.ServiceType(kind) {
	case corev1.ClusterIPNone:
		next, patch = kind, `{"metadata":{"labels":{"touched":"`+fmt.Sprint(w.rng.IntN(1000))+`"}}}`
	case corev1.ServiceTypeClusterIP:
		next, patch = w.pick(string(corev1.ServiceTypeNodePort), toNodePort, string(corev1.ServiceTypeExternalName), toExternalName)
	case corev1.ServiceTypeNodePort:
		next, patch = w.pick(string(corev1.ServiceTypeLoadBalancer), toLoadBalancer, kind, toMorePorts)
	case corev1.ServiceTypeLoadBalancer:
		next, patch = w.pick(string(corev1.ServiceTypeClusterIP), toClusterIP, string(corev1.ServiceTypeExternalName), toExternalName)
	case corev1.ServiceTypeExternalName:
		next, patch = string(corev1.ServiceTypeNodePort), toNodePort
	}
	svc := w.service(slot)
	if err := w.api.Patch(ctx, svc, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		w.fail("change %s from %s to %s: %v%s", client.ObjectKeyFromObject(svc), kind, next, err, w.holders(ctx, err))
		return
	}
	w.note(svc)
	w.has[slot] = next
}

func (w *worker) pick(a, aPatch, b, bPatch string) (next, patch string) {
	if w.rng.IntN(2) == 0 {
		return a, aPatch
	}
	return b, bPatch
}
