// SPDX-License-Identifier: Apache-2.0

// Package gossipkey makes the Secret with which the agents encrypt their gossip, and
// rotates its key so that two agents understand each other at any time. It imports the
// API only.
package gossipkey

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

const (
	// KeySize is that of AES-256, the strongest that memberlist takes.
	KeySize = 32
	// KeyAge is how long a key is used.
	KeyAge = 30 * 24 * time.Hour
	// KeySpread is how long agents have to learn of a new key before
	// one encrypts with it, and how long the old one is accepted after that.
	KeySpread = 5 * time.Minute
	// keyCheck is how often the Secret is read, in case it was deleted or damaged.
	keyCheck = 15 * time.Second
)

// Reconciler keeps the Secret with the key of the agents' gossip:
//
//	data key   data previous
//	A          -                first
//	A          B                B is accepted everywhere, not yet used
//	B          A                KeySpread later; A is still accepted
//	B          -                KeySpread later; A is no longer of any use
//	B          C                and so on, after KeyAge, or when
//	                            RotateGossipKeyAnnotation asks for it
//
// Agents encrypt with `key` and accept both. The Secret is polled rather than
// watched, for a watch would need the right to read every Secret in the
// namespace.
type Reconciler struct {
	// Client reads Secrets without a cache.
	Client    client.Client
	Namespace string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

var _ manager.LeaderElectionRunnable = (*Reconciler)(nil)

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (r *Reconciler) NeedLeaderElection() bool { return true }

// Start keeps the Secret until ctx ends.
func (r *Reconciler) Start(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next := keyCheck
		if err := r.Ensure(ctx); err != nil {
			log.FromContext(ctx).Error(err, "Gossip key is not kept", "namespace", r.Namespace, "secret", v1alpha1.GossipSecret)
			next = 5 * time.Second
		}
		timer.Reset(next)
	}
}

// Ensure makes the Secret, or takes the step that is due.
func (r *Reconciler) Ensure(ctx context.Context) error {
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: r.Namespace, Name: v1alpha1.GossipSecret}}
	err := r.Client.Get(ctx, client.ObjectKeyFromObject(secret), secret)
	if apierrors.IsNotFound(err) {
		advance(secret, now())
		if err := r.Client.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create gossip Secret: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("get gossip Secret: %w", err)
	}
	if !advance(secret, now()) {
		return nil
	}
	if err := r.Client.Update(ctx, secret); err != nil { // a conflict: another writer did it; look again
		return fmt.Errorf("update gossip Secret: %w", err)
	}
	log.FromContext(ctx).Info("Gossip key changed", "since", secret.Annotations[v1alpha1.GossipKeySinceAnnotation], "next", secret.Annotations[v1alpha1.GossipKeyNextAnnotation])
	return nil
}

// advance takes the step that is due at now and reports whether there
// was one. A key of the wrong size is replaced immediately, by the other key if
// that is good: agents cannot use it anyway. A time that cannot be read counts
// as now.
func advance(secret *corev1.Secret, now time.Time) bool {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	key, other := secret.Data[v1alpha1.GossipKey], secret.Data[v1alpha1.GossipPreviousKey]
	since, sinceKnown := annotatedTime(secret, v1alpha1.GossipKeySinceAnnotation)
	next, nextKnown := annotatedTime(secret, v1alpha1.GossipKeyNextAnnotation)
	retire, retireKnown := annotatedTime(secret, v1alpha1.GossipKeyRetireAnnotation)
	_, asked := secret.Annotations[v1alpha1.RotateGossipKeyAnnotation]
	soon := now.Add(KeySpread).UTC().Format(time.RFC3339)
	stamp := now.UTC().Format(time.RFC3339)
	switch {
	case len(key) != KeySize:
		if len(other) != KeySize {
			other = newKey()
		}
		secret.Data[v1alpha1.GossipKey] = other
		delete(secret.Data, v1alpha1.GossipPreviousKey)
		secret.Annotations[v1alpha1.GossipKeySinceAnnotation] = stamp
		delete(secret.Annotations, v1alpha1.GossipKeyNextAnnotation)
	case !sinceKnown:
		secret.Annotations[v1alpha1.GossipKeySinceAnnotation] = stamp
	case nextKnown && len(other) != KeySize:
		delete(secret.Annotations, v1alpha1.GossipKeyNextAnnotation) // begin again
	case nextKnown && !now.Before(next):
		secret.Data[v1alpha1.GossipKey], secret.Data[v1alpha1.GossipPreviousKey] = other, key
		secret.Annotations[v1alpha1.GossipKeySinceAnnotation] = stamp
		secret.Annotations[v1alpha1.GossipKeyRetireAnnotation] = soon
		delete(secret.Annotations, v1alpha1.GossipKeyNextAnnotation)
	case nextKnown:
		return false
	case len(other) > 0 && !retireKnown: // left by a version that kept it until the next change
		secret.Annotations[v1alpha1.GossipKeyRetireAnnotation] = soon
	case len(other) > 0 && !now.Before(retire):
		delete(secret.Data, v1alpha1.GossipPreviousKey)
		delete(secret.Annotations, v1alpha1.GossipKeyRetireAnnotation)
	case len(other) > 0:
		return false // one change at a time
	case retireKnown:
		delete(secret.Annotations, v1alpha1.GossipKeyRetireAnnotation)
	case asked || !now.Before(since.Add(KeyAge)):
		secret.Data[v1alpha1.GossipPreviousKey] = newKey()
		secret.Annotations[v1alpha1.GossipKeyNextAnnotation] = soon
		delete(secret.Annotations, v1alpha1.RotateGossipKeyAnnotation)
	default:
		return false
	}
	return true
}

func annotatedTime(secret *corev1.Secret, annotation string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339, secret.Annotations[annotation])
	return t, err == nil
}

func newKey() []byte {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails: crypto/rand ends the program instead
	return key
}
