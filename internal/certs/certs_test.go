// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

var (
	names = []string{"webhook.causeway-system.svc", "webhook.causeway-system.svc.cluster.local"}
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func mustRenew(t *testing.T, old Bundle, now time.Time) (Bundle, bool) {
	t.Helper()
	b, changed, err := Renew(old, names, now)
	if err != nil {
		t.Fatal(err)
	}
	return b, changed
}

// handshake reports whether a client that trusts trusted accepts what b serves.
func handshake(t *testing.T, trusted []byte, b Bundle, name string, now time.Time) error {
	t.Helper()
	pair, err := tls.X509KeyPair(b.Cert, b.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trusted)
	clientEnd, serverEnd := net.Pipe()
	defer clientEnd.Close()
	go tls.Server(serverEnd, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake()
	return tls.Client(clientEnd, &tls.Config{RootCAs: pool, ServerName: name, Time: func() time.Time { return now }}).Handshake()
}

func TestRenew(t *testing.T) {
	first, changed := mustRenew(t, Bundle{}, start)
	if !changed {
		t.Fatal("nothing made from nothing")
	}
	for _, name := range names {
		if err := handshake(t, first.CA, first, name, start); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := handshake(t, first.CA, first, "other.svc", start); err == nil {
		t.Error("a name that nobody asked for is served")
	}
	if _, changed := mustRenew(t, first, start.Add(servingValidity/2)); changed {
		t.Error("renewed though half its life is left")
	}
	late := start.Add(servingValidity * 3 / 4)
	second, changed := mustRenew(t, first, late)
	if !changed || bytes.Equal(first.Cert, second.Cert) || !bytes.Equal(first.CA, second.CA) {
		t.Error("past two thirds of its life the serving certificate, and it alone, is to be renewed")
	}
	if err := handshake(t, first.CA, second, names[0], late); err != nil {
		t.Errorf("an API server that has the CA only does not trust the renewed certificate: %v", err)
	}
}

func TestRenewNearTheEndOfTheCA(t *testing.T) {
	first, _ := mustRenew(t, Bundle{}, start)
	late := start.Add(caValidity - servingValidity/2)
	second, changed := mustRenew(t, first, late)
	if !changed {
		t.Fatal("not renewed")
	}
	if err := handshake(t, second.CA, second, names[0], late); err != nil {
		t.Errorf("new bundle: %v", err)
	}
	if !bytes.Contains(second.CA, bytes.TrimSpace(first.CA)) {
		t.Error("the old CA is no longer trusted, though another replica may still serve its certificate")
	}
	third, _ := mustRenew(t, second, start.Add(caValidity+servingValidity/2))
	if bytes.Contains(third.CA, bytes.TrimSpace(first.CA)) && !bytes.Equal(third.CA, second.CA) {
		t.Error("an expired CA is carried along for ever")
	}
}

func TestRenewRepairsDamage(t *testing.T) {
	good, _ := mustRenew(t, Bundle{}, start)
	for name, damage := range map[string]func(*Bundle){
		"no serving key":    func(b *Bundle) { b.Key = nil },
		"nonsense":          func(b *Bundle) { b.Cert = []byte("hello") },
		"no CA key":         func(b *Bundle) { b.CAKey = nil },
		"mismatched CA key": func(b *Bundle) { other, _ := mustRenew(t, Bundle{}, start); b.CAKey = other.CAKey },
	} {
		t.Run(name, func(t *testing.T) {
			b := good
			damage(&b)
			fixed, changed := mustRenew(t, b, start)
			if !changed {
				t.Fatal("not noticed")
			}
			if err := handshake(t, fixed.CA, fixed, names[0], start); err != nil {
				t.Error(err)
			}
		})
	}
}

func webhookConfigs() []client.Object {
	return []client.Object{
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "m"},
			Webhooks: []admissionv1.MutatingWebhook{{Name: "a.x"}, {Name: "b.x"}}},
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "v"},
			Webhooks: []admissionv1.ValidatingWebhook{{Name: "c.x"}}},
	}
}

func newTestKeeper(t *testing.T, c client.Client) *Keeper {
	t.Helper()
	k, err := NewKeeper(Config{Client: c, Secret: client.ObjectKey{Namespace: "ns", Name: "tls"}, DNSNames: names, MutatingConfig: "m", ValidatingConfig: "v"})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestReplicasServeTheSameCertificate(t *testing.T) {
	c := fake.NewClientBuilder().WithObjects(webhookConfigs()...).Build()
	one, two := newTestKeeper(t, c), newTestKeeper(t, c)
	for _, k := range []*Keeper{one, two, one} {
		if err := k.Sync(t.Context(), start); err != nil {
			t.Fatal(err)
		}
	}
	a, err := one.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := two.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Certificate[0], b.Certificate[0]) {
		t.Error("the replicas serve different certificates")
	}
	secret := &corev1.Secret{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: "tls"}, secret); err != nil {
		t.Fatal(err)
	}
	mutating := &admissionv1.MutatingWebhookConfiguration{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "m"}, mutating); err != nil {
		t.Fatal(err)
	}
	for _, w := range mutating.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, secret.Data["ca.crt"]) {
			t.Errorf("%s does not trust the CA in the Secret", w.Name)
		}
	}
}

// TestLosingTheRace lets another replica create the Secret between this one's
// look and its write.
func TestLosingTheRace(t *testing.T) {
	base := fake.NewClientBuilder().WithObjects(webhookConfigs()...).Build()
	winner := newTestKeeper(t, base)
	raced := false
	c := interceptor.NewClient(base, interceptor.Funcs{
		Create: func(ctx context.Context, next client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			if !raced {
				raced = true
				if err := winner.Sync(ctx, start); err != nil {
					t.Error(err)
				}
			}
			return next.Create(ctx, obj, opts...)
		},
	})
	loser := newTestKeeper(t, c)
	if err := loser.Sync(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	a, _ := winner.GetCertificate(nil)
	b, _ := loser.GetCertificate(nil)
	if !raced || !bytes.Equal(a.Certificate[0], b.Certificate[0]) {
		t.Error("the loser serves a certificate of its own")
	}
}

func TestNothingIsServedBeforeTheSecretIsWritten(t *testing.T) {
	boom := errors.New("boom")
	c := interceptor.NewClient(fake.NewClientBuilder().Build(), interceptor.Funcs{
		Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error { return boom },
	})
	k := newTestKeeper(t, c)
	if err := k.Sync(t.Context(), start); !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if _, err := k.GetCertificate(nil); err == nil {
		t.Error("a certificate that no other replica can see is served")
	}
}

// A CA with one altered byte in its name has its key still, but no client trusts
// what it signs: it is replaced.
func TestRenewAlteredCA(t *testing.T) {
	good, _ := mustRenew(t, Bundle{}, start)
	block, _ := pem.Decode(good.CA)
	at := bytes.LastIndex(block.Bytes, []byte("Causeway")) // the issuer is before the subject
	if at < 0 {
		t.Fatal("the CA's name is not in its certificate")
	}
	block.Bytes[at] ^= 0x20
	bad := good
	bad.CA = pem.EncodeToMemory(block)
	if err := handshake(t, bad.CA, bad, names[0], start); err == nil {
		t.Fatal("a client trusts the altered CA: this test tests nothing")
	}
	mended, changed := mustRenew(t, bad, start)
	if !changed {
		t.Fatal("the altered CA counts as good")
	}
	if err := handshake(t, mended.CA, mended, names[0], start); err != nil {
		t.Errorf("after the repair: %v", err)
	}
	if _, changed := mustRenew(t, mended, start); changed {
		t.Error("what was repaired is repaired again")
	}
}
