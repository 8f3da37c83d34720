// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// watchGossipKeys sends the keys of the gossip Secret, the one to encrypt with first,
// whenever they change, until ctx ends. out has a buffer of one; a value that was not
// received yet is replaced.
func watchGossipKeys(ctx context.Context, kube kubernetes.Interface, namespace string, out chan [][]byte) {
	lw := cache.NewFilteredListWatchFromClient(kube.CoreV1().RESTClient(), "secrets", namespace, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, v1alpha1.GossipSecret).String()
	})
	log := logr.FromContextOrDiscard(ctx).WithValues("secret", v1alpha1.GossipSecret)
	follow(ctx, "gossip key", lw, &corev1.Secret{}, keyFeed{log, out})
}

// keyFeed is a cache.ReflectorStore that keeps nothing but the keys. Without the Secret
// the agents continue with the keys that they have.
type keyFeed struct {
	log logr.Logger
	out chan [][]byte
}

func (f keyFeed) Add(obj any) error {
	secret := obj.(*corev1.Secret)
	keys := [][]byte{secret.Data[v1alpha1.GossipKey]}
	if previous := secret.Data[v1alpha1.GossipPreviousKey]; len(previous) > 0 {
		keys = append(keys, previous)
	}
	select {
	case <-f.out:
	default:
	}
	f.out <- keys
	return nil
}

func (f keyFeed) Update(obj any) error { return f.Add(obj) }

func (f keyFeed) Delete(any) error {
	f.log.Info("The gossip key was deleted; the agent continues with the old one until the controller has created another")
	return nil
}

func (f keyFeed) Replace(objs []any, _ string) error {
	if len(objs) == 0 {
		f.log.Info("There is no gossip key yet; nothing is announced before the controller has created one")
	}
	for _, obj := range objs {
		if err := f.Add(obj); err != nil {
			return err
		}
	}
	return nil
}

func (f keyFeed) Resync() error { return nil }
