// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

type serviceName = types.NamespacedName

const component = "causeway-agent"

func newRecorder(b events.EventBroadcaster) events.EventRecorder {
	return b.NewRecorder(clientscheme.Scheme, component)
}

// problemEvents turns problems into events, each once for as long as it lasts.
type problemEvents struct {
	store    *Store
	recorder events.EventRecorder

	mu    sync.Mutex
	known map[serviceName][]model.Problem
}

func newProblemEvents(s *Store, r events.EventRecorder) *problemEvents {
	return &problemEvents{store: s, recorder: r, known: map[serviceName][]model.Problem{}}
}

// report takes the present problems of a Service.
func (p *problemEvents) report(name serviceName, ps []model.Problem) {
	p.mu.Lock()
	old := p.known[name]
	if len(ps) == 0 {
		delete(p.known, name)
	} else {
		p.known[name] = ps
	}
	p.mu.Unlock()
	for _, pr := range ps {
		if !slices.Contains(old, pr) {
			p.warn(name, pr.Reason, pr.Message)
		}
	}
}

// warn puts a Warning on a Service.
func (p *problemEvents) warn(name serviceName, reason, message string) {
	svc := p.store.Service(name)
	if svc == nil {
		return
	}
	ref := &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Service", Namespace: name.Namespace, Name: name.Name,
		UID: svc.UID, // no version: a problem that comes back is then told by the same event
	}
	p.recorder.Eventf(ref, nil, corev1.EventTypeWarning, reason, "Program", "%s", message)
}

// warnNode puts a Warning on this Node.
func (e *Env) warnNode(reason, note string, args ...any) {
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: e.NodeName}
	if n := e.Store.Node(e.NodeName); n != nil {
		ref.UID = n.UID
	}
	e.Recorder.Eventf(ref, nil, corev1.EventTypeWarning, reason, "Program", note, args...)
}
