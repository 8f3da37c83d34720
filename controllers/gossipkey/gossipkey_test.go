// SPDX-License-Identifier: Apache-2.0

package gossipkey

import (
	"bytes"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// TestGossipKeyRotationKeepsAgentsConnected walks through a year in steps and checks
// that an agent that read the Secret KeySpread ago understands one
// that has just read it, and vice versa.
func TestGossipKeyRotationKeepsAgentsConnected(t *testing.T) {
	secret := &corev1.Secret{}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type version struct {
		from         time.Time
		key, another []byte
	}
	var versions []version
	used := map[string]bool{}
	for now := start; now.Before(start.Add(365 * 24 * time.Hour)); now = now.Add(keyCheck * 7) {
		if !advance(secret, now) {
			continue
		}
		v := version{now, bytes.Clone(secret.Data[v1alpha1.GossipKey]), bytes.Clone(secret.Data[v1alpha1.GossipPreviousKey])}
		if len(v.key) != KeySize {
			t.Fatalf("%v: the key has %d bytes", now, len(v.key))
		}
		used[string(v.key)] = true
		versions = append(versions, v)
	}
	if len(used) != 13 {
		t.Errorf("%d keys were used in a year, want 13", len(used))
	}
	accepts := func(v version, key []byte) bool { return bytes.Equal(v.key, key) || bytes.Equal(v.another, key) }
	for i := 1; i < len(versions); i++ {
		old, now := versions[i-1], versions[i]
		if !accepts(old, now.key) || !accepts(now, old.key) {
			t.Errorf("%v: agents with the Secret of %v and of %v do not understand each other", now.from, old.from, now.from)
		}
		if i > 1 && now.from.Sub(old.from) < KeySpread {
			t.Errorf("%v: the Secret changes again after %v", now.from, now.from.Sub(old.from))
		}
	}
}

func TestGossipKeyIsRepaired(t *testing.T) {
	good := bytes.Repeat([]byte{7}, KeySize)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, data := range map[string]map[string][]byte{
		"nothing":                      nil,
		"short":                        {v1alpha1.GossipKey: []byte("short")},
		"short, but the other is good": {v1alpha1.GossipKey: []byte("short"), v1alpha1.GossipPreviousKey: good},
		"no dates":                     {v1alpha1.GossipKey: good},
	} {
		secret := &corev1.Secret{Data: data}
		if !advance(secret, now) {
			t.Errorf("%s: nothing was done", name)
		}
		if len(secret.Data[v1alpha1.GossipKey]) != KeySize {
			t.Errorf("%s: the key has %d bytes", name, len(secret.Data[v1alpha1.GossipKey]))
		}
		if len(data[v1alpha1.GossipPreviousKey]) == KeySize && !bytes.Equal(secret.Data[v1alpha1.GossipKey], good) {
			t.Errorf("%s: the good key is not used", name)
		}
		if advance(secret, now) {
			t.Errorf("%s: not settled after one step", name)
		}
	}
}

// TestGossipKeyOnDemand: the key is changed when somebody asks for it, once, and the
// old one is worth nothing some minutes later.
func TestGossipKeyOnDemand(t *testing.T) {
	secret := &corev1.Secret{}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	advance(secret, start)
	first := bytes.Clone(secret.Data[v1alpha1.GossipKey])
	secret.Annotations[v1alpha1.RotateGossipKeyAnnotation] = "now"
	holds := func(key []byte) bool {
		return bytes.Equal(secret.Data[v1alpha1.GossipKey], key) || bytes.Equal(secret.Data[v1alpha1.GossipPreviousKey], key)
	}
	var used, gone time.Duration
	keys := map[string]bool{string(first): true}
	for after := time.Duration(0); after < 24*time.Hour; after += keyCheck {
		advance(secret, start.Add(after))
		key := secret.Data[v1alpha1.GossipKey]
		keys[string(key)] = true
		if used == 0 && !bytes.Equal(key, first) {
			used = after
			if !holds(first) {
				t.Error("the old key is not accepted when the new one comes into use")
			}
		}
		if gone == 0 && !holds(first) {
			gone = after
		}
	}
	if used < KeySpread || used > KeySpread+keyCheck {
		t.Errorf("the new key is used after %v", used)
	}
	if gone < used+KeySpread || gone > 15*time.Minute {
		t.Errorf("the old key is accepted for %v", gone)
	}
	if len(keys) != 2 {
		t.Errorf("%d keys were used, want 2", len(keys))
	}
	if len(secret.Data[v1alpha1.GossipPreviousKey]) != 0 || secret.Annotations[v1alpha1.RotateGossipKeyAnnotation] != "" {
		t.Errorf("left behind: %v", secret.Annotations)
	}
}

// A version that kept the last key until the next change has left one.
func TestGossipKeyOfFormerVersionIsRetired(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	secret := &corev1.Secret{Data: map[string][]byte{
		v1alpha1.GossipKey: bytes.Repeat([]byte{1}, KeySize), v1alpha1.GossipPreviousKey: bytes.Repeat([]byte{2}, KeySize),
	}}
	secret.Annotations = map[string]string{v1alpha1.GossipKeySinceAnnotation: now.Format(time.RFC3339)}
	for after := time.Duration(0); after < time.Hour; after += keyCheck {
		advance(secret, now.Add(after))
	}
	if secret.Data[v1alpha1.GossipPreviousKey] != nil || secret.Data[v1alpha1.GossipKey][0] != 1 {
		t.Error("the last key is still accepted after an hour")
	}
}
