// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

func TestRotateGossipKey(t *testing.T) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "system", Name: v1alpha1.GossipSecret},
		Data:       map[string][]byte{v1alpha1.GossipKey: []byte("old")},
	}
	c := fake.NewClientBuilder().WithObjects(secret).Build()
	var out bytes.Buffer
	if err := rotateGossipKey(t.Context(), c, "system", false, &out); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(secret), secret); err != nil {
		t.Fatal(err)
	}
	if secret.Annotations[v1alpha1.RotateGossipKeyAnnotation] == "" || string(secret.Data[v1alpha1.GossipKey]) != "old" {
		t.Errorf("the Secret became %v", secret)
	}
	if err := rotateGossipKey(t.Context(), c, "elsewhere", false, &out); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("without a Secret: %v", err)
	}

	for _, tc := range []struct{ key, previous, asked, want string }{
		{"old", "", "now", "Waiting"},
		{"old", "new", "", "get the new key"},
		{"new", "old", "", "in use"},
		{"new", "", "", "no longer accepted"},
		{"newer", "new", "", "no longer accepted"},
	} {
		s := &corev1.Secret{Data: map[string][]byte{v1alpha1.GossipKey: []byte(tc.key), v1alpha1.GossipPreviousKey: []byte(tc.previous)}}
		if tc.asked != "" {
			s.Annotations = map[string]string{v1alpha1.RotateGossipKeyAnnotation: tc.asked}
		}
		if got := rotation(s, "old"); !strings.Contains(got, tc.want) {
			t.Errorf("key %q, previous %q: %q", tc.key, tc.previous, got)
		}
	}
}
